"""Where peers stand in a picture, as suits their graph."""

import math
from collections.abc import Iterable

import networkx as nx
import numpy as np

from fedsim.topologies.graph import PeerGraph

Positions = dict[int, tuple[float, float]]
"""Peer -> (across, upwards); units are free, but the same in both directions."""

CIRCLES = ("ring", "complete", "watts-strogatz", "one-peer-exponential")
"""Graphs whose peers stand in a circle, in order."""
LONGEST_LINE = 16
"""Peers of a line that stand in one row."""
WIDEST_TREE = 64
"""Peers of a tree that is drawn from the root down."""
MOST_SPRINGS = 120
"""Of more peers, a layout by all distances takes too long."""


def positions(name: str, graph: PeerGraph) -> Positions:
    """Return where each peer stands; always the same for the same graph.

    Args:
        name: Of the topology, as experiments name it.
        graph: Of one round.
    """
    if "lattice" in graph.graph:
        _, columns = graph.graph["lattice"]
        return {peer: (peer % columns, -(peer // columns)) for peer in graph}
    if len(graph) == 2 or name == "line":
        return _meander(len(graph))
    if name in CIRCLES:
        return _circle(graph)
    if name == "star":
        return {0: (0.0, 0.0)} | _circle(peer for peer in graph if peer)
    if name == "hypercube":
        return _shadow(graph)
    if name == "tree" and len(graph) <= WIDEST_TREE:
        return _layers(graph)
    return _by_distance(graph)


def _circle(peers: Iterable[int]) -> Positions:
    """From the top, clockwise."""
    around = list(peers)
    angles = [2 * math.pi * place / len(around) for place in range(len(around))]
    return {
        peer: (math.sin(angle), math.cos(angle)) for peer, angle in zip(around, angles, strict=True)
    }


def _meander(num_peers: int) -> Positions:
    """In one row, or in several, every second one backwards."""
    row = num_peers if num_peers <= LONGEST_LINE else math.ceil(math.sqrt(2 * num_peers))
    return {
        peer: (
            float(peer % row if peer // row % 2 == 0 else row - 1 - peer % row),
            -float(peer // row),
        )
        for peer in range(num_peers)
    }


def _layers(tree: PeerGraph) -> Positions:
    """The root at the top, and everybody above the middle of its children."""
    children = {peer: sorted(set(tree[peer]) & set(range(peer + 1, len(tree)))) for peer in tree}
    across: dict[int, float] = {}
    leaves = 0
    for peer in nx.dfs_postorder_nodes(tree, 0, sort_neighbors=sorted):
        below = [across[child] for child in children[peer]]
        across[peer] = sum(below) / len(below) if below else float(leaves)
        leaves += not below
    depth = nx.single_source_shortest_path_length(tree, 0)
    height = max(1.0, 0.45 * leaves / max(1, max(depth.values())))
    return {peer: (across[peer], -height * depth[peer]) for peer in tree}


def _shadow(cube: PeerGraph) -> Positions:
    """A direction for each bit, all upwards; later bits go less far, so that no two peers meet."""
    dimension = (len(cube) - 1).bit_length()
    angles = np.pi * (0.5 + np.arange(dimension)) / dimension
    ways = 0.8 ** np.arange(dimension)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    found = {peer: [peer >> bit & 1 for bit in range(dimension)] @ ways for peer in cube}
    return {peer: (float(place[0]), float(place[1])) for peer, place in found.items()}


def _by_distance(graph: PeerGraph) -> Positions:
    """Far apart in the picture where they are in the graph."""
    plain = nx.Graph(graph.to_undirected(as_view=True))
    start = {peer: np.array(place) for peer, place in _circle(plain).items()}
    if len(plain) <= MOST_SPRINGS and nx.is_connected(plain):
        found = nx.kamada_kawai_layout(plain, pos=start)
    else:
        found = nx.spring_layout(plain, pos=start, seed=0)
    places = _spread(np.array([found[peer] for peer in plain]))
    return {peer: (float(x), float(y)) for peer, (x, y) in zip(plain, places, strict=True)}


def _spread(places: np.ndarray, steps: int = 200) -> np.ndarray:
    """Push peers apart that stand too close to be told from each other; places: (N, 2)."""
    num = len(places)
    places = places / np.abs(places - places.mean(axis=0)).max()
    room = 1.3 / math.sqrt(num)
    for _ in range(steps):
        away = places[:, None] - places[None]
        apart = np.linalg.norm(away, axis=-1) + np.eye(num)
        push = np.where(apart < room, (room - apart) / apart, 0.0)
        if not push.any():
            break
        places = places + 0.25 * (push[..., None] * away).sum(axis=1)
    return places
