"""Graphs from a file: two peers on each line."""

from pathlib import Path

import networkx as nx

from fedsim.topologies.graph import PeerGraph

LARGEST = 2**24
"""Characters of a file."""
_MOST_DIGITS = 9


def edges(num_peers: int, *, path: str, directed: bool = False) -> PeerGraph:
    """The links that a file lists.

    A line holds two peers, numbered from 0, with a blank or a comma between them; the rest of a
    line from `#` on is ignored.

    Args:
        num_peers: N.
        path: The file; from the folder where fedsim is started, unless it is absolute.
        directed: Whether the first peer of a line speaks to the second, and not the other way.
    """
    graph: PeerGraph = nx.DiGraph() if directed else nx.Graph()
    graph.add_nodes_from(range(num_peers))
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    if len(text) > LARGEST:
        raise ValueError(f"{path}: more than {LARGEST} characters are no list of links")
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].replace(",", " ").split()
        if words:
            try:
                graph.add_edge(*_link(words, num_peers))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    return graph


def _link(words: list[str], num_peers: int) -> tuple[int, int]:
    if len(words) != 2 or not all(
        word.isascii() and word.isdigit() and len(word) <= _MOST_DIGITS for word in words
    ):
        raise ValueError(f"expected two peers, as '0 1', got '{' '.join(words)[:80]}'")
    one, other = map(int, words)
    if max(one, other) >= num_peers:
        raise ValueError(
            f"peers are numbered from 0 to {num_peers - 1}, got {max(one, other)}; raise "
            "partition.clients, or mend the file"
        )
    if one == other:
        raise ValueError(f"peer {one} is linked to itself")
    return one, other
