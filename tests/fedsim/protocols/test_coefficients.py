"""The rows of every message say what it is made of, whatever the protocol and its faults."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from attacks.isolation.identifiability import PRIME
from attacks.isolation.unknowns import Unknowns
from fedsim.protocols.choco import Choco
from fedsim.protocols.coefficients import coefficients
from fedsim.protocols.d_psgd import DecentralisedPSGD
from fedsim.protocols.gossip import Gossip
from fedsim.protocols.gradient_sharing import GradientSharing
from fedsim.protocols.gradient_tracking import GradientTracking
from fedsim.protocols.peer_protocol import PeerProtocol, State
from fedsim.protocols.push_sum import PushSum
from fedsim.protocols.residues import Residues, residue_of, residue_units
from fedsim.protocols.ring_all_reduce import RingAllReduce
from fedsim.protocols.simulate import Faults, Said, play_round
from fedsim.protocols.tree_all_reduce import TreeAllReduce
from tests.fedsim.protocols.playing import Graph, own_starts, quadratics, random_graph, ring

TREE = Graph(num_peers=6, links=[(0, 1), (0, 2), (1, 3), (1, 4), (2, 5)], name="tree")
LINEAR: list[tuple[PeerProtocol, Graph]] = [
    (DecentralisedPSGD(order="adapt-then-combine"), random_graph(6, 0)),
    (DecentralisedPSGD(order="combine-then-adapt"), random_graph(6, 1)),
    (DecentralisedPSGD(order="at-once"), random_graph(6, 2)),
    (GradientSharing(), random_graph(6, 3)),
    (GradientTracking(), random_graph(6, 4)),
    (PushSum(), random_graph(6, 5, directed=True)),
    (RingAllReduce(), ring(6)),
    (TreeAllReduce(), TREE),
]
RATE, DIM, ROUNDS = 0.125, 12, 4


@pytest.mark.parametrize(("protocol", "graph"), LINEAR, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("faulty", [False, True], ids=["no faults", "faults"])
@pytest.mark.parametrize("own", [False, True], ids=["same start", "own starts"])
def test_every_message_and_every_place_of_a_gradient_is_what_its_row_says(
    protocol: PeerProtocol, graph: Graph, faulty: bool, own: bool
) -> None:
    faults = Faults(failed={(2, 3): 1, (3, 0): 0, (3, 3): 0}) if faulty else Faults()
    unknowns = Unknowns(num_peers=6, rounds=ROUNDS, own_starts=own)
    values = torch.zeros(len(unknowns), DIM, dtype=torch.float64)
    starts = own_starts(6, DIM) if own else own_starts(1, DIM) * 6
    for peer in range(6):
        values[unknowns.start(peer)] = starts[peer]
    losses = quadratics(6, DIM)
    places: dict[tuple[int, int], Tensor] = {}

    def local(peer: int, server_round: int, model: Tensor) -> Tensor:
        places[peer, server_round] = model
        update = losses.gradient(peer, server_round, model)
        values[unknowns.update(peer, server_round)] = update
        return update

    states: list[State] = [protocol.begin(start) for start in starts]
    late: list[Said] = []
    said: list[tuple[Said, str, Tensor]] = []
    for number in range(1, ROUNDS + 1):
        played = play_round(
            protocol, graph, states, local, number,
            learning_rate=RATE, faults=faults, late=late,
        )  # fmt: skip
        states = list(played.states)
        if protocol.collective:
            for when, peer in faults.failed:
                if when == number:
                    others = [one for one in range(6) if (number, one) not in faults.failed]
                    states[peer] = protocol.begin(protocol.model(states[others[0]]))
        said += [
            (one, name, vector)
            for one in played.said
            for name, vector in one.parcel.tensors.items()
            if name != "mass"
        ]

    rounds = list(coefficients(protocol, graph, unknowns, learning_rate=RATE, faults=faults))

    rows = [row for one in rounds for row in one.messages]
    assert len(rows) == len(said) > 0
    for row, (one, name, vector) in zip(rows, said, strict=True):
        assert (row.round, row.hop, row.sender, row.receiver) == (
            one.round, one.hop, one.sender, one.receiver,
        )  # fmt: skip
        assert (row.kind, row.name, row.chunk) == (one.parcel.kind, name, one.parcel.chunk)
        made = torch.from_numpy(row.row) @ values
        if row.chunk is not None:
            made = made.tensor_split(row.num_chunks)[row.chunk]
        torch.testing.assert_close(made, vector, rtol=1e-10, atol=1e-10)
    at = {(peer, one.round): row for one in rounds for peer, row in one.weights.items()}
    assert set(at) == set(places)
    for key, row_of_weights in at.items():
        made = torch.from_numpy(row_of_weights) @ values
        torch.testing.assert_close(made, places[key], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("protocol", "graph"), LINEAR, ids=lambda one: type(one).__name__)
def test_residues_are_the_same_coefficients(protocol: PeerProtocol, graph: Graph) -> None:
    unknowns = Unknowns(num_peers=6, rounds=2)
    exact = coefficients(protocol, graph, unknowns, learning_rate=RATE, units=residue_units)

    for real, residues in zip(
        coefficients(protocol, graph, unknowns, learning_rate=RATE), exact, strict=True
    ):
        for one, other in zip(real.messages, residues.messages, strict=True):
            assert np.array_equal(one.row != 0, other.row != 0)
            for number, residue in zip(one.row, other.row, strict=True):
                assert _residue_of_any(number) == residue


def test_gossip_is_linear_for_whoever_knows_its_lots() -> None:
    graph, unknowns = random_graph(5, 0), Unknowns(num_peers=5, rounds=3)
    with pytest.raises(ValueError, match="what Gossip says is not linear"):
        next(coefficients(Gossip(), graph, unknowns, learning_rate=RATE))

    rounds = list(
        coefficients(Gossip(), graph, unknowns, learning_rate=RATE, seed=4, lots_known=True)
    )

    assert all(np.isclose(row.row[0], 1) for one in rounds for row in one.messages)


def test_sparse_changes_are_refused() -> None:
    with pytest.raises(ValueError, match="what Choco says is not linear"):
        next(coefficients(Choco(), ring(4), Unknowns(num_peers=4, rounds=1), learning_rate=RATE))


def test_only_links_that_are_asked_for_have_rows() -> None:
    unknowns = Unknowns(num_peers=5, rounds=2)

    rounds = list(
        coefficients(
            DecentralisedPSGD(), ring(5), unknowns, learning_rate=RATE,
            hears=lambda sender, receiver: receiver == 2,
        )
    )  # fmt: skip

    assert [(one.sender, one.receiver) for rows in rounds for one in rows.messages] == [
        (1, 2), (3, 2), (1, 2), (3, 2),
    ]  # fmt: skip


def test_a_change_of_weights_counts_once_whatever_the_rate() -> None:
    unknowns = Unknowns(num_peers=3, rounds=1)

    (rows,) = coefficients(
        DecentralisedPSGD(), ring(3), unknowns, learning_rate=0.01, moves_weights=True
    )

    assert rows.messages[0].row.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("number", [1 / 3, 0.1, -7 / 11, 4.0, 1e-5])
def test_small_fractions_are_recognised(number: float) -> None:
    back = residue_of(number) * 33 * 10**5 % PRIME

    assert back in (round(number * 33 * 10**5), PRIME + round(number * 33 * 10**5))


def test_weights_that_are_no_fractions_are_refused() -> None:
    with pytest.raises(ValueError, match="fractions with a denominator up to 1000000"):
        residue_of(0.1234567891234)


def test_residues_refuse_what_no_linear_protocol_does() -> None:
    rows = residue_units(1, 3, 0)
    assert isinstance(rows, Residues)

    with pytest.raises(NotImplementedError, match="is no operation of a linear protocol"):
        rows.exp()
    with pytest.raises(NotImplementedError, match="does not add numbers of its own"):
        rows + torch.ones(1, 3)


def test_residues_take_part_in_sums_and_differences() -> None:
    rows = [residue_units(1, 3, column) for column in range(2)]

    total = sum(rows)
    assert isinstance(total, Residues)
    assert total.numpy().tolist() == [[1, 1, 0]]
    assert (-rows[0]).numpy().tolist() == [[PRIME - 1, 0, 0]]
    with pytest.raises(NotImplementedError, match="does not add numbers of its own"):
        rows[0] + 1


def _residue_of_any(number: float) -> int:
    """Return the residue of a coefficient, a sum of products of small fractions."""
    fraction = Fraction(float(number)).limit_denominator(10**6)
    assert abs(float(fraction) - number) < 1e-12
    return fraction.numerator * pow(fraction.denominator, -1, PRIME) % PRIME
