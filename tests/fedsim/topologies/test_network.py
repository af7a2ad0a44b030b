"""Networks: graphs over rounds, graphs of the user's own, and what a run records of them."""

import pickle
import sys
import threading

import networkx as nx
import numpy as np
import pytest

from fedsim.config import parse_experiment
from fedsim.errors import ConfigError
from fedsim.schemas.topology import TopologyRecord
from fedsim.topologies.build import network_of, network_of_topology
from fedsim.topologies.network import KEPT, PeerNetwork

DECENTRALISED = """
name = "x"
seed = 5
partition.clients = 8
protocol.name = "d-psgd"
topology = { name = "random-regular", options = { degree = 3 }, mixing = "uniform" }
"""


def test_both_directions_of_every_link_are_edges_in_order() -> None:
    made = PeerNetwork(name="random-regular", num_peers=10, options={"degree": 3})

    edges = made.edges(1)
    assert list(edges) == sorted(edges)
    assert {*edges} == {(b, a) for a, b in edges}
    assert made.links(1) == tuple(edge for edge in edges if edge[0] < edge[1])
    assert made.senders(1, 4) == made.receivers(1, 4) == tuple(b for a, b in edges if a == 4)


def test_a_graph_that_does_not_change_is_made_once() -> None:
    made = PeerNetwork(name="erdos-renyi", num_peers=10)

    assert not made.varies
    assert made.graph(1) is made.graph(50)
    assert made.mixing(1) is made.mixing(50)


def test_a_graph_is_drawn_anew_after_so_many_rounds() -> None:
    made = PeerNetwork(name="erdos-renyi", num_peers=12, resample_every=3)

    assert made.varies
    assert made.links(1) == made.links(3)
    assert made.links(4) == made.links(6)
    assert len({made.links(first) for first in range(1, 31, 3)}) == 10
    assert all(made.facts(first).connected for first in range(1, 31, 3))


def test_rounds_can_be_asked_for_in_any_order() -> None:
    one = PeerNetwork(name="watts-strogatz", num_peers=12, resample_every=1)
    other = PeerNetwork(name="watts-strogatz", num_peers=12, resample_every=1)
    rounds = range(1, KEPT + 10)

    forward = [one.links(server_round) for server_round in rounds]

    assert [other.links(server_round) for server_round in reversed(rounds)] == forward[::-1]
    assert [one.links(server_round) for server_round in rounds] == forward


def test_a_run_that_could_begin_does_not_end_for_want_of_a_connected_graph() -> None:
    made = PeerNetwork(
        name="erdos-renyi", num_peers=16, options={"p": 0.09}, resample_every=1, seed=1
    )  # about one graph in two hundred is connected; a hundred draws often find none

    assert all(made.facts(server_round).connected for server_round in range(1, 40))


def test_threads_may_ask_for_rounds_at_the_same_time() -> None:
    made = PeerNetwork(name="one-peer-exponential", num_peers=4)
    failed: list[BaseException] = []

    def ask(step: int) -> None:
        try:
            for number in range(4000):
                made.snapshot(1 + number * step % (2 * KEPT - 5))
        except BaseException as error:
            failed.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=ask, args=(step,)) for step in (1, 7)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)

    assert not failed


@pytest.mark.parametrize("name", ["ring", "torus", "one-peer-exponential"])
def test_a_graph_that_is_not_random_cannot_be_drawn_anew(name: str) -> None:
    with pytest.raises(ConfigError, match=r"topology.resample_every is for graphs drawn at random"):
        PeerNetwork(name=name, num_peers=9, resample_every=2)


def test_what_a_network_gives_cannot_be_changed() -> None:
    made = PeerNetwork(name="ring", num_peers=4)

    with pytest.raises(nx.NetworkXError):
        made.graph(1).add_edge(0, 2)
    with pytest.raises(ValueError, match="read-only"):
        made.mixing(1)[0, 0] = 1


def test_rounds_count_from_1() -> None:
    with pytest.raises(ValueError, match="rounds count from 1, got 0"):
        PeerNetwork(name="ring", num_peers=4).graph(0)


def test_a_network_can_be_sent_to_another_process() -> None:
    made = PeerNetwork(name="random-regular", num_peers=12, resample_every=2)
    made.mixing(3)

    there = pickle.loads(pickle.dumps(made))  # noqa: S301  # our own bytes

    assert there.links(7) == made.links(7)
    np.testing.assert_array_equal(there.mixing(3), made.mixing(3))


def wheel(num_peers: int, *, hub: str = "a") -> "nx.Graph[str]":
    """A graph with names, as a user may have it."""
    graph: nx.Graph[str] = nx.Graph()
    rim = [f"peer {n}" for n in range(num_peers - 1)]
    nx.add_cycle(graph, rim)
    graph.add_edges_from((hub, peer) for peer in rim)
    return graph


def wandering_star(num_peers: int, *, rng: np.random.Generator, server_round: int) -> object:
    """A star whose middle is drawn anew in each round."""
    middle = int(rng.integers(num_peers))
    graph = nx.empty_graph(num_peers)
    graph.add_edges_from((middle, peer) for peer in range(num_peers) if peer != middle)
    graph.graph["round"] = server_round
    return graph


def one_way(num_peers: int, *, server_round: int) -> object:
    """Never speaks back."""
    return nx.path_graph(num_peers, create_using=nx.DiGraph)


def too_many(num_peers: int) -> object:
    return nx.cycle_graph(num_peers + 1)


def loop(num_peers: int) -> object:
    return nx.Graph([*nx.cycle_graph(num_peers).edges, (2, 2)])


def matrix(num_peers: int) -> object:
    return np.eye(num_peers)


def test_a_graph_of_the_users_own_has_its_nodes_numbered_and_its_options_checked() -> None:
    made = PeerNetwork(name=f"{__name__}:wheel", num_peers=6, options={"hub": "middle"})

    assert list(made.graph(1)) == list(range(6))
    assert made.facts(1).max_degree == 5
    assert not made.varies
    with pytest.raises(ConfigError, match="unknown option 'hbu'; did you mean 'hub'"):
        PeerNetwork(name=f"{__name__}:wheel", num_peers=6, options={"hbu": "middle"})


def test_a_graph_that_asks_for_the_round_changes_with_it() -> None:
    made = PeerNetwork(name=f"{__name__}:wandering_star", num_peers=8)

    assert made.varies
    assert made.graph(3).graph["round"] == 3
    assert len({made.links(server_round) for server_round in range(1, 20)}) > 3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("too_many", "expected a graph of 5 peers, got 6 nodes"),
        ("loop", "peer 2 is linked to itself"),
        ("matrix", "expected a networkx Graph or DiGraph, got ndarray"),
        ("one_way", "nothing that peer 1 says ever comes to peer 0 in 5 rounds"),
    ],
)
def test_what_is_no_graph_of_so_many_peers_is_refused(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        PeerNetwork(name=f"{__name__}:{name}", num_peers=5)


def test_an_experiment_has_one_network_whoever_asks() -> None:
    experiment = parse_experiment(DECENTRALISED)

    made = network_of(experiment)

    assert made is network_of(parse_experiment(DECENTRALISED))
    assert (made.name, made.num_peers, made.facts(1).max_degree) == ("random-regular", 8, 3)
    assert made.mixing(1)[0, made.senders(1, 0)[0]] == 1 / 8
    other = parse_experiment(DECENTRALISED, overrides=["seed=6"])
    assert network_of(other).links(1) != made.links(1)


def test_a_command_line_gives_the_graph_of_the_experiment() -> None:
    typed = network_of_topology(
        "random-regular", num_peers=8, options=["degree=3"], mixing="uniform", seed=5
    )

    assert typed.record() == network_of(parse_experiment(DECENTRALISED)).record()


@pytest.mark.parametrize(
    ("name", "resample_every"), [("ring", None), ("erdos-renyi", 2), ("one-peer-exponential", None)]
)
def test_what_a_run_records_fits_its_schema(name: str, resample_every: int | None) -> None:
    made = PeerNetwork(name=name, num_peers=8, resample_every=resample_every)

    record = TopologyRecord.model_validate(made.record(2))

    assert record.facts.num_links == len(record.links) == len(made.links(2))
    assert record.varies == (name != "ring")
