"""The weights with which peers average what they hear: a mixing matrix, in whole fractions.

Row i is what peer i makes of the vectors of others and of its own: x_i <- sum_j W_ij x_j. Each rule
gives the weight of every link; what is left to 1 is the peer's own. On an undirected graph all of
them are symmetric, so that columns sum to 1 as well and averaging keeps the mean. On a directed
one, whose degrees here are those of hearing, rows sum to 1, and columns do where everybody hears
and is heard by equally many.
"""

from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction

import numpy as np

from fedsim.catalog import resolve
from fedsim.errors import ConfigError
from fedsim.topologies import MIXINGS
from fedsim.topologies.graph import PeerGraph

Weights = Mapping[tuple[int, int], Fraction]
"""(i, j) -> the weight W_ij that peer i gives to what it hears from j, or to its own."""
Rule = Callable[[PeerGraph], Weights]
"""graph -> the weight W_ij of each link on which i hears j."""


def metropolis(graph: PeerGraph) -> Weights:
    """1 / (1 + the larger degree of the two): local, and the usual choice.

    Metropolis-Hastings weights as Xiao, Boyd and Lall (2006,
    https://stanford.edu/~boyd/papers/avg_metropolis.html) have them.
    """
    degree = degrees(graph)
    return {(i, j): Fraction(1, 1 + max(degree[i], degree[j])) for i, j in _heard(graph)}


def uniform(graph: PeerGraph) -> Weights:
    """1 / N on every link: I - L / N with the Laplacian L; the mean, on a complete graph.

    The constant weight of Xiao, Boyd and Lall (2005, doi 10.1109/IPSN.2005.1440896), for which a
    peer must know the number of peers and no degree.
    """
    weight = Fraction(1, graph.number_of_nodes())
    return dict.fromkeys(_heard(graph), weight)


def max_degree(graph: PeerGraph) -> Weights:
    """1 / (1 + the largest degree of all) on every link: I - L / (1 + max degree).

    As Xiao and Boyd (2004, doi 10.1016/j.sysconle.2004.02.022), with 1 added so that everybody
    gives some weight to itself; without it a ring of even length never agrees.
    """
    weight = Fraction(1, 1 + max(degrees(graph).values()))
    return dict.fromkeys(_heard(graph), weight)


def degrees(graph: PeerGraph) -> dict[int, int]:
    """Return the number of peers that each hears."""
    return dict(graph.in_degree if graph.is_directed() else graph.degree)  # type: ignore[attr-defined]


def _heard(graph: PeerGraph) -> Iterator[tuple[int, int]]:
    """Give (who hears, who is heard) of every link, both ways if it has both."""
    for sender, receiver in graph.to_directed(as_view=True).edges:
        yield receiver, sender


def rational_mixing(graph: PeerGraph, name: str) -> Weights:
    """Return the mixing matrix as fractions, without its zeros, in order of rows and columns.

    Args:
        graph: Of peers 0 to N - 1.
        name: From `fedsim list mixings`, or `package.module:Name` of a rule as those here.

    Raises:
        ConfigError: There is no such rule, it gives away more than 1 in a row, or a weight to what
            is no link, or one below 0.
    """
    rule: Rule = resolve(name, MIXINGS, "mixing")
    weights = dict(rule(graph))
    own = dict.fromkeys(graph, Fraction(1))
    links = set(_heard(graph))
    for (row, column), weight in weights.items():
        if (row, column) not in links or weight < 0:
            fault = "below 0" if (row, column) in links else "of no link"
            raise ConfigError(
                f"mixing '{name}' gives ({row}, {column}) a weight of {weight}, {fault}; a rule "
                "names links on which the first hears the second, and a peer's own weight follows"
            )
        own[row] -= weight
    for peer, left in own.items():
        if left < 0:
            raise ConfigError(
                f"mixing '{name}' gives peer {peer} a weight of {left} for itself; none may be "
                "below 0"
            )
        weights[peer, peer] = left
    return dict(sorted(weights.items()))


def as_matrix(weights: Weights, num_peers: int) -> np.ndarray:
    """Return a mixing matrix as an array, (N, N), float64, each entry rounded once."""
    matrix = np.zeros((num_peers, num_peers))
    for place, weight in weights.items():
        matrix[place] = float(weight)
    return matrix
