"""What a graph of peers is, and whether it can be one."""

from typing import Any, TypeAlias, cast

import networkx as nx

from fedsim.errors import ConfigError

PeerGraph: TypeAlias = "nx.Graph[int]"
"""Peers are 0 to N - 1; of a directed one (`nx.DiGraph`), a link leads from sender to receiver."""


def sound(graph: object, num_peers: int) -> PeerGraph:
    """Return a factory's graph, frozen and with peers 0 to N - 1 in order, if it can be one.

    Other names of nodes become numbers in their order in the graph. Whether the graph is connected
    is not looked at.

    Raises:
        ConfigError: It is no graph of so many peers.
    """
    if not isinstance(graph, nx.Graph) or graph.is_multigraph():
        raise ConfigError(f"expected a networkx Graph or DiGraph, got {type(graph).__name__}")
    if len(graph) != num_peers:
        raise ConfigError(f"expected a graph of {num_peers} peers, got {len(graph)} nodes")
    if set(graph) != set(range(num_peers)):
        graph = nx.convert_node_labels_to_integers(graph)
    loop = next(iter(nx.nodes_with_selfloops(graph)), None)
    if loop is not None:
        raise ConfigError(
            f"peer {loop} is linked to itself; leave that out, its own weight follows from the rest"
        )
    plain: PeerGraph = nx.DiGraph() if graph.is_directed() else nx.Graph()
    plain.graph.update(graph.graph)
    plain.add_nodes_from(range(num_peers))
    plain.add_edges_from(sorted(graph.edges))
    return cast(PeerGraph, nx.freeze(plain))


def is_connected(graph: PeerGraph) -> bool:
    """Whether everybody is reached from everybody, along the directions of links."""
    return _unreached(graph) is None


def refuse_parts(graph: PeerGraph, within: str = "") -> None:
    """Refuse a graph in which somebody never hears of somebody else.

    Args:
        graph: Of peers 0 to N - 1.
        within: What stands after "never", for messages.

    Raises:
        ConfigError: It is not connected.
    """
    pair = _unreached(graph)
    if pair is not None:
        raise ConfigError(
            f"the graph is not connected: nothing that peer {pair[0]} says ever comes to peer "
            f"{pair[1]}{within}; add links"
        )


def _unreached(graph: PeerGraph) -> tuple[int, int] | None:
    """Return two peers of which the first does not reach the second; None if there are none."""
    everybody = set(graph)
    missing = everybody - {0, *nx.descendants(graph, 0)}
    if missing:
        return 0, min(missing)
    backwards: Any = nx.reverse_view(graph) if isinstance(graph, nx.DiGraph) else graph
    missing = everybody - {0, *nx.descendants(backwards, 0)}
    return (min(missing), 0) if missing else None
