"""Graphs that the number of peers and the options settle, by networkx."""

from typing import Annotated

import networkx as nx
from pydantic import Field

from fedsim.topologies.graph import PeerGraph


def ring(num_peers: int) -> PeerGraph:
    """Everybody has two neighbours, in a circle."""
    graph: PeerGraph = nx.cycle_graph(num_peers)
    return graph


def line(num_peers: int) -> PeerGraph:
    """A ring that is cut open between the last peer and the first."""
    graph: PeerGraph = nx.path_graph(num_peers)
    return graph


def star(num_peers: int) -> PeerGraph:
    """Peer 0 in the middle, everybody else its neighbour alone."""
    graph: PeerGraph = nx.star_graph(num_peers - 1)
    return graph


def complete(num_peers: int) -> PeerGraph:
    """Everybody is everybody's neighbour."""
    graph: PeerGraph = nx.complete_graph(num_peers)
    return graph


def hypercube(num_peers: int) -> PeerGraph:
    """Neighbours are peers whose numbers differ in one bit; N is a power of two."""
    dimension = num_peers.bit_length() - 1
    if num_peers != 2**dimension:
        raise ValueError(
            f"a hypercube has a power of two of peers, such as {2**dimension} or "
            f"{2 ** (dimension + 1)}, got {num_peers}"
        )
    cube = nx.hypercube_graph(dimension)
    return nx.convert_node_labels_to_integers(cube, ordering="sorted")


def tree(num_peers: int, *, branching: Annotated[int, Field(ge=1)] = 2) -> PeerGraph:
    """Peer 0 is the root, and levels are filled in order; any N.

    Args:
        num_peers: N.
        branching: Children of a peer, at most; peer i has those from `branching * i + 1` on.
    """
    return nx.full_rary_tree(branching, num_peers)
