"""Weights of averaging: what must hold of all of them, and closed forms."""

import math
from fractions import Fraction

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.errors import ConfigError
from fedsim.topologies import MIXINGS
from fedsim.topologies.graph import PeerGraph
from fedsim.topologies.mixing import Weights, as_matrix, rational_mixing
from fedsim.topologies.network import PeerNetwork


@st.composite
def connected_graphs(draw: st.DrawFn) -> PeerGraph:
    """A random tree, and random links besides."""
    num_peers = draw(st.integers(2, 12))
    graph: PeerGraph = nx.Graph()
    graph.add_nodes_from(range(num_peers))
    graph.add_edges_from((draw(st.integers(0, peer - 1)), peer) for peer in range(1, num_peers))
    pairs = list(nx.non_edges(graph))
    if pairs:
        graph.add_edges_from(draw(st.lists(st.sampled_from(pairs), unique=True)))
    return graph


@given(graph=connected_graphs(), rule=st.sampled_from(sorted(MIXINGS)))
@settings(max_examples=60, deadline=None)
def test_weights_are_symmetric_doubly_stochastic_and_on_links_alone(
    graph: PeerGraph, rule: str
) -> None:
    weights = rational_mixing(graph, rule)

    matrix = as_matrix(weights, len(graph))
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_allclose(matrix.sum(axis=0), 1, rtol=0, atol=1e-12)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=0, atol=1e-12)
    assert (matrix >= 0).all()
    assert {place for place in weights if place[0] != place[1]} == {*nx.DiGraph(graph).edges}
    for peer in graph:
        assert sum(weight for (row, _), weight in weights.items() if row == peer) == 1


@given(graph=connected_graphs(), rule=st.sampled_from(sorted(MIXINGS)))
@settings(max_examples=40, deadline=None)
def test_averaging_on_a_connected_graph_ends_in_agreement(graph: PeerGraph, rule: str) -> None:
    matrix = as_matrix(rational_mixing(graph, rule), len(graph))

    assert np.sort(np.abs(np.linalg.eigvalsh(matrix)))[-2] < 1 - 1e-6


@pytest.mark.parametrize("rule", sorted(MIXINGS))
@pytest.mark.parametrize("num_peers", [2, 3, 7, 10])
def test_on_a_complete_graph_every_weight_is_one_in_n_to_the_bit(rule: str, num_peers: int) -> None:
    made = PeerNetwork(name="complete", num_peers=num_peers, mixing_name=rule)

    assert set(made.rational_mixing(1).values()) == {Fraction(1, num_peers)}
    np.testing.assert_array_equal(made.mixing(1), np.full((num_peers, num_peers), 1 / num_peers))
    assert made.facts(1).spectral_gap == 1


def test_the_rules_are_their_formulas_on_a_line_of_three() -> None:
    def row(rule: str) -> list[Fraction]:
        weights = PeerNetwork(name="star", num_peers=4, mixing_name=rule).rational_mixing(1)
        return [weights[0, 0], weights[0, 1], weights[1, 1]]

    quarter, half = Fraction(1, 4), Fraction(1, 2)
    assert row("metropolis") == [quarter, quarter, 3 * quarter]
    assert row("max-degree") == [quarter, quarter, 3 * quarter]
    line = PeerNetwork(name="line", num_peers=4, mixing_name="uniform").rational_mixing(1)
    assert [line[0, 0], line[0, 1], line[1, 1]] == [3 * quarter, quarter, half]


def test_unequal_degrees_tell_metropolis_from_the_largest_degree() -> None:
    def weight(rule: str) -> Fraction:  # of the link at the end of a tree's longest branch
        return PeerNetwork(name="tree", num_peers=8, mixing_name=rule).rational_mixing(1)[7, 3]

    assert weight("metropolis") == Fraction(1, 3)
    assert weight("max-degree") == Fraction(1, 4)
    assert weight("uniform") == Fraction(1, 8)


@pytest.mark.parametrize("num_peers", [4, 5, 8, 16, 31])
def test_the_spectral_gap_of_a_ring_is_its_closed_form(num_peers: int) -> None:
    found = PeerNetwork(name="ring", num_peers=num_peers).facts(1)

    expected = 1 - (1 + 2 * math.cos(2 * math.pi / num_peers)) / 3
    assert found.spectral_gap == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dimension", [1, 2, 3, 5])
def test_the_spectral_gap_of_a_hypercube_is_its_closed_form(dimension: int) -> None:
    found = PeerNetwork(name="hypercube", num_peers=2**dimension).facts(1)

    assert found.spectral_gap == pytest.approx(2 / (dimension + 1), abs=1e-12)


def test_the_spectral_gap_of_a_torus_is_its_closed_form() -> None:
    found = PeerNetwork(name="torus", num_peers=30).facts(1)  # 5 rows of 6

    modes = [
        (1 + 2 * math.cos(2 * math.pi * a / 5) + 2 * math.cos(2 * math.pi * b / 6)) / 5
        for a in range(5)
        for b in range(6)
        if a or b
    ]
    assert found.second_eigenvalue == pytest.approx(max(map(abs, modes)), abs=1e-12)


@pytest.mark.parametrize("num_peers", [2, 4, 8, 16])
def test_a_period_of_a_one_peer_graph_averages_exactly(num_peers: int) -> None:
    made = PeerNetwork(name="one-peer-exponential", num_peers=num_peers)

    product = np.eye(num_peers)
    for server_round in range(1, int(math.log2(num_peers)) + 1):
        assert set(made.rational_mixing(server_round).values()) == {Fraction(1, 2)}
        product = made.mixing(server_round) @ product

    np.testing.assert_array_equal(product, np.full((num_peers, num_peers), 1 / num_peers))


def test_a_row_holds_what_the_peer_hears_and_not_whom_it_tells() -> None:
    made = PeerNetwork(name="one-peer-exponential", num_peers=5)

    assert made.edges(1)[0] == (0, 1)
    assert made.mixing(1)[1].tolist() == [0.5, 0.5, 0, 0, 0]
    assert made.facts(1).doubly_stochastic


def test_an_unbalanced_directed_graph_says_that_its_columns_do_not_sum_to_one() -> None:
    graph: PeerGraph = nx.DiGraph([(0, 1), (1, 2), (2, 0), (0, 2)])

    matrix = as_matrix(rational_mixing(graph, "metropolis"), 3)

    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=0, atol=1e-12)
    assert abs(matrix.sum(axis=0) - 1).max() > 0.1


def greedy(graph: PeerGraph) -> Weights:
    return {(0, 1): Fraction(3, 2)}


def own_as_well(graph: PeerGraph) -> Weights:
    return {(0, 0): Fraction(1, 2), (0, 1): Fraction(1, 2)}


def far(graph: PeerGraph) -> Weights:
    return {(0, 2): Fraction(1, 2)}


def negative(graph: PeerGraph) -> Weights:
    return {(0, 1): Fraction(-1, 2)}


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("own_as_well", r"gives \(0, 0\) a weight of 1/2, of no link"),
        ("far", r"gives \(0, 2\) a weight of 1/2, of no link"),
        ("negative", r"gives \(0, 1\) a weight of -1/2, below 0"),
    ],
)
def test_a_rule_weighs_links_alone_and_not_below_zero(rule: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        PeerNetwork(name="ring", num_peers=4, mixing_name=f"{__name__}:{rule}")


def test_a_rule_that_is_not_there_or_takes_too_much_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'metropolis'"):
        PeerNetwork(name="ring", num_peers=4, mixing_name="metroplis")
    with pytest.raises(ConfigError, match="gives peer 0 a weight of -1/2 for itself"):
        PeerNetwork(name="ring", num_peers=4, mixing_name=f"{__name__}:greedy")
