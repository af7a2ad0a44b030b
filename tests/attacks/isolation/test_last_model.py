"""What models of a peer that meets others by lot give away of its updates."""

import pytest
import torch
from torch import Tensor

from attacks.isolation.last_model import isolate_from_models
from fedsim.protocols.gossip import Gossip
from fedsim.protocols.simulate import simulate
from tests.attacks.isolation.listening import relative_error, smooth_losses
from tests.fedsim.protocols.playing import complete

DIM, RATE = 60, 0.1
Updates = dict[tuple[int, int], Tensor]


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
