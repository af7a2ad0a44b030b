"""Somebody looks on while attacks run: they see whose guess it is, and change nothing."""

import pytest
import torch
from torch import Tensor, nn

from attacks.dlg import DLG
from attacks.inverting_gradients import InvertingGradients
from attacks.matching.snapshots import looked_on_by
from attacks.observation import AttackFailed, ManyAtOnce, Reconstruction, Snapshot
from tests.attacks.overhearing import overhear


@pytest.mark.parametrize(
    "attack", [DLG(steps=60, restarts=1), InvertingGradients(steps=60)], ids=["search", "descent"]
)
def test_an_onlooker_sees_whose_guess_it_is_and_changes_no_bit(
    attack: ManyAtOnce, model: nn.Module, blurred: Tensor
) -> None:
    heard = [overhear(model, image, torch.tensor([4])) for image in (blurred, 1 - blurred)]

    def found(rngs: list[torch.Generator]) -> list[Reconstruction]:
        seen, known = zip(*heard, strict=True)
        guesses = attack.many(seen, known, rngs=rngs, budget=None)
        assert not any(isinstance(guess, AttackFailed) for guess in guesses)
        return [guess for guess in guesses if isinstance(guess, Reconstruction)]

    rngs = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    told: list[tuple[Snapshot, torch.Generator | None]] = []
    with looked_on_by(lambda guess, rng: told.append((guess, rng))):
        watched = found(rngs)
    alone = found([torch.Generator().manual_seed(seed) for seed in (1, 2)])

    for one, other, rng in zip(watched, alone, rngs, strict=True):
        assert one.inputs is not None
        assert other.inputs is not None
        assert torch.equal(one.inputs, other.inputs)
        assert one.matching_loss == other.matching_loss
        assert [s.step for s in one.snapshots] == [s.step for s in other.snapshots]
        mine = [guess for guess, whose in told if whose is rng]
        assert len(mine) >= 5
        assert torch.equal(mine[0].inputs, one.snapshots[0].inputs)
        steps = [guess.step for guess in mine]
        assert steps == sorted(steps)
    assert len(told) == sum(whose in rngs for _, whose in told)
