"""The graph of one round, with what follows from it: links, weights, facts."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import networkx as nx
import numpy as np

from fedsim.topologies.graph import PeerGraph, is_connected
from fedsim.topologies.mixing import Weights, as_matrix, degrees, rational_mixing

ROUNDING = 1e-12
"""Eigenvalues below this are 0 but for rounding."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What can be said of the graph of a round, and of its mixing matrix.

    Attributes:
        num_peers: N.
        num_links: Pairs of peers that speak; of a directed graph, (sender, receiver) pairs.
        directed: Whether somebody may speak to a peer that does not speak to it.
        connected: Whether everybody is reached from everybody, in this round's graph alone.
        bipartite: Whether peers fall into two halves without links inside; directions aside.
        min_degree: Fewest peers that one hears.
        mean_degree: Mean of the peers that one hears.
        max_degree: Most peers that one hears.
        diameter: Links between the two peers that are farthest apart; None if not connected.
        second_eigenvalue: Second largest modulus of an eigenvalue of the mixing matrix: what is
            left of disagreement after a round of averaging, in the long run.
        spectral_gap: 1 minus that.
        doubly_stochastic: Whether columns of the mixing matrix sum to 1 as rows do, so that
            averaging keeps the mean.
    """

    num_peers: int
    num_links: int
    directed: bool
    connected: bool
    bipartite: bool
    min_degree: int
    mean_degree: float
    max_degree: int
    diameter: int | None
    second_eigenvalue: float
    spectral_gap: float
    doubly_stochastic: bool


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The graph of a round.

    Attributes:
        graph: Frozen, of peers 0 to N - 1.
        mixing: Name of the rule of weights.
    """

    graph: PeerGraph
    mixing: str

    @cached_property
    def links(self) -> tuple[tuple[int, int], ...]:
        """Each link once, in order: the lower number first, or (sender, receiver) if directed."""
        if self.graph.is_directed():
            return tuple(sorted(self.graph.edges))
        return tuple(sorted((min(link), max(link)) for link in self.graph.edges))

    @cached_property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """(sender, receiver) of every direction of every link, in order."""
        return tuple(sorted(self.graph.to_directed(as_view=True).edges))

    @cached_property
    def senders(self) -> Mapping[int, tuple[int, ...]]:
        """Whom each peer hears, in order."""
        heard: dict[int, list[int]] = {peer: [] for peer in self.graph}
        for sender, receiver in self.edges:
            heard[receiver].append(sender)
        return {peer: tuple(one) for peer, one in heard.items()}

    @cached_property
    def receivers(self) -> Mapping[int, tuple[int, ...]]:
        """To whom each peer speaks, in order."""
        told: dict[int, list[int]] = {peer: [] for peer in self.graph}
        for sender, receiver in self.edges:
            told[sender].append(receiver)
        return {peer: tuple(one) for peer, one in told.items()}

    @cached_property
    def weights(self) -> Weights:
        """The mixing matrix as fractions, without its zeros."""
        return rational_mixing(self.graph, self.mixing)

    @cached_property
    def matrix(self) -> np.ndarray:
        """The mixing matrix, (N, N), float64; not to be written to."""
        matrix = as_matrix(self.weights, self.graph.number_of_nodes())
        matrix.flags.writeable = False
        return matrix

    @cached_property
    def facts(self) -> Facts:
        """What can be said of it."""
        degree = degrees(self.graph).values()
        connected = is_connected(self.graph)
        second = second_eigenvalue(self.matrix)
        columns = dict.fromkeys(self.graph, Fraction(0))
        for (_, column), weight in self.weights.items():
            columns[column] += weight
        return Facts(
            num_peers=self.graph.number_of_nodes(),
            num_links=self.graph.number_of_edges(),
            directed=self.graph.is_directed(),
            connected=connected,
            bipartite=nx.is_bipartite(self.graph),
            min_degree=min(degree),
            mean_degree=sum(degree) / len(degree),
            max_degree=max(degree),
            diameter=nx.diameter(self.graph) if connected else None,
            second_eigenvalue=second,
            spectral_gap=1 - second,
            doubly_stochastic=all(total == 1 for total in columns.values()),
        )


def second_eigenvalue(matrix: np.ndarray) -> float:
    """Return the second largest modulus of an eigenvalue of a stochastic matrix, (N, N)."""
    symmetric = np.array_equal(matrix, matrix.T)
    values = np.linalg.eigvalsh(matrix) if symmetric else np.linalg.eigvals(matrix)
    second = float(np.sort(np.abs(values))[-2])
    return 0.0 if second < ROUNDING else min(1.0, second)
