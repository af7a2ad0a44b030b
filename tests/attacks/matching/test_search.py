from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from attacks.matching.search import Effort, search
from attacks.matching.victim import Victim, rebuild
from attacks.observation import AttackFailed, Budget

from .conftest import Overhear

EFFORT = Effort(steps=200, restarts=1, tolerance=1e-6)


@pytest.fixture
def victim(net: nn.Module, image: Tensor, overhear: Overhear) -> Victim:
    return rebuild(*overhear(net, image, torch.tensor([1])), dtype=torch.float64)


@pytest.mark.parametrize("labels", [torch.tensor([1]), None])
def test_the_only_image_with_this_gradient_is_found(
    labels: Tensor | None, victim: Victim, image: Tensor, rng: torch.Generator
) -> None:
    found = search(victim, labels, EFFORT, rng=rng, budget=None)

    assert found.labels is not None
    assert found.labels.tolist() == [1]
    torch.testing.assert_close(found.inputs, image, atol=1e-3, rtol=0)
    assert found.matching_loss is not None
    assert found.matching_loss <= 1e-12 * victim.square_norm
    assert found.notes["relative_distance"] == pytest.approx(
        (found.matching_loss / victim.square_norm) ** 0.5
    )


def test_snapshots_lead_from_the_start_to_the_guess(victim: Victim, rng: torch.Generator) -> None:
    found = search(victim, None, EFFORT, rng=rng, budget=None)

    losses = [one.matching_loss for one in found.snapshots]
    assert found.snapshots[0].step == 0
    assert found.snapshots[-1].step == found.steps
    assert losses == sorted(losses, reverse=True)
    assert found.inputs is not None
    assert torch.equal(found.snapshots[-1].inputs, found.inputs)


def test_a_stuck_search_starts_again_and_the_closest_guess_wins(
    victim: Victim, rng: torch.Generator
) -> None:
    wrong = torch.tensor([2])  # with this label nothing matches: every restart gets stuck
    few = Effort(steps=30, restarts=1, tolerance=1e-6)
    once = search(victim, wrong, few, rng=torch.Generator().manual_seed(5), budget=None)

    often = search(
        victim, wrong, replace(few, restarts=4), rng=torch.Generator().manual_seed(5), budget=None
    )

    assert often.steps > once.steps
    assert often.matching_loss is not None
    assert once.matching_loss is not None
    assert often.matching_loss <= once.matching_loss


def test_a_search_that_is_solved_does_not_start_again(victim: Victim, rng: torch.Generator) -> None:
    once = search(victim, None, EFFORT, rng=torch.Generator().manual_seed(5), budget=None)

    often = search(
        victim, None, replace(EFFORT, restarts=3), rng=torch.Generator().manual_seed(5), budget=None
    )

    assert often.steps == once.steps
    assert often.inputs is not None
    assert once.inputs is not None
    assert torch.equal(often.inputs, once.inputs)


def test_a_spent_budget_gives_the_best_so_far(victim: Victim, rng: torch.Generator) -> None:
    found = search(victim, None, EFFORT, rng=rng, budget=Budget(0.0))

    assert not found.finished
    assert found.steps == 0
    assert found.inputs is not None
    assert found.inputs.min() >= 0
    assert found.inputs.max() <= 1


def test_no_start_with_a_finite_distance_is_a_failure(victim: Victim, rng: torch.Generator) -> None:
    def broken(logits: Tensor, targets: Tensor) -> Tensor:
        return logits.square().sum() * torch.inf

    with pytest.raises(AttackFailed, match="not finite at any start"):
        search(replace(victim, loss=broken), None, EFFORT, rng=rng, budget=None)
