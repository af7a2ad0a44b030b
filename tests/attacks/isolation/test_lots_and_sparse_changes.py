"""Protocols that are not linear give away what their own rules say, and no more."""

import pytest
import torch
from torch import Tensor

from attacks.isolation.last_model import isolate_from_models
from attacks.isolation.sparse_changes import SparseChange, isolate_sparse_changes
from attacks.isolation.updates import Isolated
from fedsim.protocols.choco import Choco
from fedsim.protocols.gossip import Gossip
from fedsim.protocols.simulate import simulate
from tests.attacks.isolation.listening import relative_error, smooth_losses
from tests.fedsim.protocols.playing import Graph, complete, ring

DIM, RATE = 60, 0.1
Updates = dict[tuple[int, int], Tensor]


def under_choco(
    graph: Graph, hears: set[int], *, share: float = 0.3, rounds: int = 5
) -> tuple[list[Isolated], Updates]:
    """Return what is isolated of peer 1 by whoever hears some peers, and the truth."""
    protocol, gamma = Choco(share=share, gamma=0.2), 0.2
    start = torch.randn(DIM, generator=torch.Generator().manual_seed(1))
    losses, truth = smooth_losses(graph.num_peers, DIM), Updates()

    def local(peer: int, server_round: int, model: Tensor) -> Tensor:
        truth[peer, server_round] = losses(peer, server_round, model)
        return truth[peer, server_round]

    said: dict[int, dict[int, SparseChange]] = {}
    starts = [start] * graph.num_peers
    for played in simulate(protocol, graph, starts, local, rounds=rounds, learning_rate=RATE):
        for one in played.said:
            if one.sender in hears:
                tensors = one.parcel.tensors
                said.setdefault(one.sender, {})[one.round] = SparseChange(
                    values=tensors["values"], places=tensors["places"]
                )
    matrix = graph.mixing(1)
    found = isolate_sparse_changes(
        said,
        1,
        start=start,
        row=lambda server_round: {
            peer: float(matrix[1, peer]) for peer in range(graph.num_peers) if matrix[1, peer]
        },
        gamma=gamma,
        learning_rate=RATE,
        rounds=rounds,
    )
    return found, truth


def test_the_first_sparse_change_shows_the_largest_entries_of_the_gradient_exactly() -> None:
    found, truth = under_choco(ring(5), {1})

    first = found[0]
    assert first.how == "exact"
    assert first.visible is not None
    assert int(first.visible.sum()) == 18  # 0.3 of 60
    hidden = truth[1, 1][~first.visible].abs().max()
    assert truth[1, 1][first.visible].abs().min() >= hidden
    assert relative_error(first.update, truth[1, 1], first.visible) < 1e-5
    assert not first.update[~first.visible].any()


def test_later_sparse_changes_are_exact_where_the_round_before_spoke_of_the_same_entries() -> None:
    found, truth = under_choco(complete(4), {0, 1, 2, 3}, share=0.6)

    exact = [one for one in found if one.how == "exact"]
    assert len(exact) > 2
    for one in exact:
        assert relative_error(one.update, truth[1, one.round], one.visible) < 1e-4


def test_without_copies_of_all_neighbours_later_sparse_changes_are_estimates() -> None:
    found, _ = under_choco(complete(4), {0, 1, 2}, share=0.6)

    assert [one.how for one in found] == ["exact"] + ["estimated"] * 4


def test_a_change_that_was_not_heard_makes_the_next_one_an_estimate() -> None:
    start = torch.zeros(3)
    said = {
        1: {2: SparseChange(values=torch.tensor([1.0]), places=torch.tensor([0]))},
    }

    (one,) = isolate_sparse_changes(
        said, 1, start=start, row=lambda _: {1: 1.0}, gamma=0.2, learning_rate=None, rounds=2
    )

    assert one.round == 2
    assert one.how == "estimated"


def test_with_everything_sent_sparse_changes_hide_nothing() -> None:
    found, truth = under_choco(complete(4), {0, 1, 2, 3}, share=1.0)

    for one in found:
        assert one.how == "exact"
        assert one.visible is not None
        assert bool(one.visible.all())
        assert relative_error(one.update, truth[1, one.round]) < 1e-4


@pytest.mark.parametrize("hears_all", [True, False])
def test_gossip_gives_away_the_first_step_and_all_steps_to_whoever_knows_whom_one_met(
    hears_all: bool,
) -> None:
    num_peers, victim, rounds = 5, 1, 12
    start = torch.randn(DIM, generator=torch.Generator().manual_seed(1))
    losses, truth = smooth_losses(num_peers, DIM), Updates()

    def local(peer: int, server_round: int, model: Tensor) -> Tensor:
        truth[peer, server_round] = losses(peer, server_round, model)
        return truth[peer, server_round]

    said: dict[int, Tensor] = {}
    met: dict[int, list[Tensor]] = {}
    starts = [start] * num_peers
    for played in simulate(
        Gossip(), complete(num_peers), starts, local, rounds=rounds, learning_rate=RATE, seed=3
    ):
        for one in played.said:
            if one.sender == victim:
                said[one.round] = one.parcel.tensors["model"]
            if one.receiver == victim:
                met.setdefault(one.round, []).append(one.parcel.tensors["model"])

    found = isolate_from_models(
        said,
        victim,
        start=start,
        met=met if hears_all else {},
        hears_all=hears_all,
        learning_rate=RATE,
        rounds=rounds,
    )

    assert len(found) == rounds
    errors = [relative_error(one.update, truth[victim, one.round]) for one in found]
    assert found[0].how == "exact"
    assert errors[0] < 1e-5
    if hears_all:
        assert all(one.how == "exact" for one in found)
        assert max(errors) < 1e-4
    else:
        assert all(one.how == "estimated" for one in found[1:])
        assert max(errors) > 0.1  # it met others, and the adversary did not know


def test_a_pause_spreads_the_change_over_the_rounds_that_it_took() -> None:
    said = {1: torch.full((2,), 1.0), 4: torch.full((2,), 7.0)}

    found = isolate_from_models(
        said, 1, start=torch.zeros(2), met={}, hears_all=True, learning_rate=None, rounds=4
    )

    assert [one.how for one in found] == ["exact", "estimated"]
    assert found[1].update.tolist() == [2.0, 2.0]


def test_a_start_of_its_own_hides_the_first_step() -> None:
    said = {1: torch.ones(2), 2: torch.ones(2)}

    found = isolate_from_models(
        said, 1, start=None, met={}, hears_all=True, learning_rate=0.1, rounds=2
    )

    assert [(one.round, one.how) for one in found] == [(2, "exact")]
