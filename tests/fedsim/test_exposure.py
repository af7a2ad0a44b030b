"""What is exposed is told before training, agrees with rank, and is quick."""

import time
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest

from attacks.isolation.identifiability import PRIME, ReducedRows
from attacks.isolation.linear import Problem
from attacks.isolation.unknowns import Unknowns
from fedsim.config import parse_experiment
from fedsim.errors import ConfigError
from fedsim.exposure import Exposure, exposed, exposure
from fedsim.protocols.coefficients import coefficients
from fedsim.protocols.d_psgd import DecentralisedPSGD
from fedsim.protocols.gradient_sharing import GradientSharing
from fedsim.protocols.gradient_tracking import GradientTracking
from fedsim.protocols.peer_protocol import PeerProtocol
from fedsim.protocols.push_sum import PushSum
from fedsim.protocols.residues import residue_units
from fedsim.protocols.ring_all_reduce import RingAllReduce
from fedsim.protocols.tree_all_reduce import TreeAllReduce
from fedsim.topologies.network import PeerNetwork
from tests.fedsim.protocols.playing import Graph, random_graph, ring

TREE = Graph(num_peers=6, links=[(0, 1), (0, 2), (1, 3), (1, 4), (2, 5)], name="tree")


@pytest.mark.parametrize("own", [(0,), (1, 4), ()], ids=["one peer", "two peers", "a tap"])
@pytest.mark.parametrize(
    ("protocol", "graph"),
    [
        (DecentralisedPSGD(order="adapt-then-combine"), random_graph(6, 0)),
        (DecentralisedPSGD(order="combine-then-adapt"), random_graph(6, 1)),
        (DecentralisedPSGD(order="at-once"), random_graph(6, 2)),
        (GradientSharing(), random_graph(6, 3)),
        (GradientTracking(), random_graph(6, 4)),
        (PushSum(), random_graph(6, 5, directed=True)),
        (TreeAllReduce(), TREE),
    ],
    ids=lambda one: type(one).__name__,
)
def test_the_map_agrees_with_rank_and_with_what_is_isolated(
    protocol: PeerProtocol, graph: Graph, own: tuple[int, ...]
) -> None:
    def hears(sender: int, receiver: int) -> bool:
        return bool({sender, receiver} & set(own)) or (not own and (sender, receiver) == (0, 1))

    rounds, unknowns = 3, Unknowns(num_peers=6, rounds=3)
    known = [0, *unknowns.of_peers(own)]
    heard = coefficients(protocol, graph, unknowns, learning_rate=0.1, hears=hears)
    rows = np.stack([one.row for said in heard for one in said.messages])
    units = np.eye(len(unknowns))

    found = exposed(protocol, graph, rounds=rounds, own=own, hears=hears)

    free = np.delete(rows, known, axis=1)
    expected = [
        column in known
        or np.linalg.matrix_rank(np.vstack([free, np.delete(units[column], known)]), tol=1e-9)
        == np.linalg.matrix_rank(free, tol=1e-9)
        for column in range(len(unknowns))
    ]
    assert (found.shares == 1).ravel().tolist() == expected[1:]
    problem = Problem(unknowns=unknowns, rows=rows, known=known, sizes=np.ones(len(rows)))
    assert [one is not None for one in problem.exact(units)] == expected


@pytest.mark.parametrize("num_peers", [2, 3, 7, 16])
def test_a_peer_of_a_ring_all_reduce_exposes_one_nth_to_each_neighbour(num_peers: int) -> None:
    found = exposed(RingAllReduce(), ring(num_peers), rounds=1, own=(0,))

    shares = np.zeros(num_peers)
    shares[[1, num_peers - 1]] = 1 / num_peers if num_peers > 2 else 1
    shares[0] = 1
    np.testing.assert_allclose(found.shares[0], shares)


@pytest.mark.parametrize("num_peers", [3, 8, 16])
def test_both_neighbours_in_a_ring_all_reduce_expose_all(num_peers: int) -> None:
    found = exposed(RingAllReduce(), ring(num_peers), rounds=1, own=(0, 2))

    assert found.shares[0, 1] == 1


def test_updates_are_known_from_the_round_on_in_which_they_follow() -> None:
    found = exposed(DecentralisedPSGD(order="combine-then-adapt"), ring(3), rounds=4, own=(0,))

    assert found.since[:, 1].tolist() == [2, 3, 4, 0]  # a model is sent before its step


def test_distances_are_links_to_where_is_listened() -> None:
    peer = exposed(DecentralisedPSGD(), ring(6), rounds=1, own=(1,))
    tap = exposed(DecentralisedPSGD(), ring(6), rounds=1, hears=lambda *link: link == (2, 3))

    assert peer.distances.tolist() == [1, 0, 1, 2, 3, 2]
    assert tap.distances.tolist() == [3, 2, 1, 2, 3, 4]
    assert [distance for distance, _ in peer.by_distance()] == [1, 2, 3]


def test_a_hundred_peers_over_twenty_rounds_take_at_most_ten_seconds_of_one_core() -> None:
    network = PeerNetwork(name="random-regular", num_peers=100, options={"degree": 4})

    start = time.process_time()
    found = exposed(DecentralisedPSGD(), network, rounds=20, own=(0,))
    seconds = time.process_time() - start

    neighbours = {sender for sender, receiver in network.edges(1) if receiver == 0}
    assert set(np.flatnonzero(found.shares[0])) == neighbours | {0}
    assert not found.shares[1:, 1:].any()
    assert seconds < 10


def small(protocol: str = "d-psgd", **more: str) -> str:
    """Return an experiment of six peers."""
    lines = [f'{key} = "{value}"' for key, value in more.items()]
    return "\n".join(
        [
            'name = "six"',
            "rounds = 2",
            "[partition]\nclients = 6",
            '[topology]\nname = "ring"',
            f'[protocol]\nname = "{protocol}"',
            '[adversary]\nthreat = "curious-neighbour"\npeers = [2]',
            *lines,
        ]
    )


def test_an_experiment_says_whom_it_exposes() -> None:
    found: Exposure = exposure(parse_experiment(small()))

    assert found.own == (2,)
    exposed_once = {(one["round"], one["peer"]) for one in found.record()["exposed"]}
    assert exposed_once == {(1, 1), (1, 3)}


@pytest.mark.parametrize(
    ("adversary", "defenses", "shares"),
    [
        ('threat = "link-tap", links = [[0, 1]]', "", 2),
        ('threat = "uplink-tap", links = [[0, 1], [1, 0]]', "", 0),
        ('threat = "link-tap", links = [[0, 1]]', '[[defenses]]\nname = "tls"', 0),
    ],
    ids=["a tap", "one that was never told the start", "one on encrypted links"],
)
def test_the_first_round_is_exposed_to_who_knows_the_start_and_can_read(
    adversary: str, defenses: str, shares: int
) -> None:
    found = exposure(
        parse_experiment(
            f"""
            name = "tiny"
            rounds = 2
            partition = {{ clients = 6 }}
            topology = {{ name = "ring" }}
            protocol = {{ name = "d-psgd" }}
            adversary = {{ {adversary} }}
            {defenses}
            """
        )
    )

    assert found.shares[0].sum() == shares
    assert set(found.distances.tolist()) == {1, 2, 3}


def test_small_steps_expose_as_much_as_large_ones() -> None:
    tiny = parse_experiment(small() + "\n[training]\nlearning_rate = 1e-9")

    assert exposure(tiny).record() == exposure(parse_experiment(small())).record()


def test_what_is_not_linear_has_no_map() -> None:
    with pytest.raises(ConfigError, match="under protocol 'gossip' is not linear"):
        exposure(parse_experiment(small("gossip")))


def test_a_server_is_sent_everything() -> None:
    with pytest.raises(ConfigError, match="peers that train without a server"):
        exposure(parse_experiment('name = "server"'))


@pytest.mark.parametrize("rounds", [5, 28, 40])
def test_on_a_line_of_31_private_values_follow_as_far_as_rounds_go(rounds: int) -> None:
    """El Mrini, Cyffers and Bellet (2024) report distance 28 for an attacker at one end."""
    network = PeerNetwork(name="line", num_peers=31)
    unknowns = Unknowns(num_peers=31, rounds=rounds, own_starts=True)
    # averaging of values: peers start from their own, and nobody trains
    values = ReducedRows(31, known=[0])
    # gradients that stay as they are, from a common start
    gradients = ReducedRows(32, known=[0, 1])

    for said in _overheard(network, unknowns, "combine-then-adapt"):
        values.add(said[:, :31])
    unknowns = Unknowns(num_peers=31, rounds=rounds)
    for said in _overheard(network, unknowns, "adapt-then-combine"):
        gradients.add(unknowns.constant(said) % PRIME)

    reach = min(rounds, 30)
    assert np.flatnonzero(values.determined()).tolist() == list(range(reach + 1))
    assert np.flatnonzero(gradients.determined()[1:]).tolist() == list(range(reach + 1))


def _overheard(
    network: PeerNetwork,
    unknowns: Unknowns,
    order: Literal["adapt-then-combine", "combine-then-adapt"],
) -> Iterator[np.ndarray]:
    """Yield the rows that the peer at the end of a line hears in each round."""
    for said in coefficients(
        DecentralisedPSGD(order=order),
        network,
        unknowns,
        learning_rate=0.1,
        hears=lambda sender, receiver: receiver == 0,
        units=residue_units,
    ):
        yield np.stack([one.row for one in said.messages])
