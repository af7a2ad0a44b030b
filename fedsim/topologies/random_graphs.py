"""Graphs drawn at random, by networkx; drawn again until they are connected."""

import math
from collections.abc import Callable
from typing import Annotated

import networkx as nx
import numpy as np
from pydantic import Field

from fedsim.topologies.graph import PeerGraph

TRIES = 100
"""Graphs are drawn so often before it is given up."""


class NotConnected(ValueError):
    """None of the graphs that were drawn was connected."""


def watts_strogatz(
    num_peers: int,
    *,
    rng: np.random.Generator,
    k: Annotated[int, Field(ge=2)] = 4,
    p: Annotated[float, Field(ge=0, le=1)] = 0.1,
) -> PeerGraph:
    """A ring with short cuts: a small world (Watts and Strogatz, 1998, doi 10.1038/30918).

    Args:
        num_peers: N.
        rng: Of the short cuts.
        k: Nearest peers on the ring that everybody begins with; even, less than N.
        p: Probability that a link is replaced by one to anybody.
    """
    if k % 2 or k >= num_peers:
        raise ValueError(f"k must be even and less than the {num_peers} peers, got {k}")
    return connected(
        lambda seed: nx.watts_strogatz_graph(num_peers, k, p, seed=seed), rng, "raise k, or lower p"
    )


def erdos_renyi(
    num_peers: int,
    *,
    rng: np.random.Generator,
    p: Annotated[float, Field(gt=0, le=1)] | None = None,
) -> PeerGraph:
    """Every two peers are linked with the same probability (Erdos and Renyi, 1959).

    Args:
        num_peers: N.
        rng: Of the links.
        p: The probability; unset means 2 ln(N) / N, twice where graphs begin to be connected.
    """
    chance = min(1.0, 2 * math.log(num_peers) / num_peers) if p is None else p
    fits = math.log(num_peers) / num_peers
    return connected(
        lambda seed: nx.gnp_random_graph(num_peers, chance, seed=seed),
        rng,
        f"raise p; graphs of {num_peers} begin to be connected at about {fits:.2g}",
    )


def random_regular(
    num_peers: int, *, rng: np.random.Generator, degree: Annotated[int, Field(ge=1)] = 4
) -> PeerGraph:
    """Everybody has the same number of neighbours, else at random (Steger and Wormald, 1999).

    Args:
        num_peers: N.
        rng: Of the links.
        degree: Neighbours of everybody: less than N, and even if N is odd.
    """
    if degree >= num_peers:
        raise ValueError(f"degree must be less than the {num_peers} peers, got {degree}")
    if degree * num_peers % 2:
        raise ValueError(f"degree must be even for an odd number of peers, got {degree}")

    # pairs of almost everybody take for ever to find; the pairs that are missing do not
    dense = 4 * degree > 3 * num_peers
    drawn = num_peers - 1 - degree if dense else degree

    def draw(seed: int) -> PeerGraph:
        graph: PeerGraph = nx.random_regular_graph(drawn, num_peers, seed=seed)
        return nx.complement(graph) if dense else graph

    return connected(draw, rng, "raise degree; of degree 2, a ring is the connected one")


def connected(draw: Callable[[int], PeerGraph], rng: np.random.Generator, remedy: str) -> PeerGraph:
    """Return the first graph that is connected.

    Args:
        draw: Returns the graph of a seed.
        rng: Of the seeds.
        remedy: What to do if there is none.

    Raises:
        NotConnected: None of `TRIES` graphs is.
    """
    for _ in range(TRIES):
        graph = draw(int(rng.integers(2**63)))
        if nx.is_connected(graph):
            return graph
    raise NotConnected(f"none of {TRIES} graphs drawn was connected; {remedy}")
