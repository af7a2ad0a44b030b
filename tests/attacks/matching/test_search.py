from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.matching import search as module
from attacks.matching.company import Company
from attacks.matching.effort import Effort
from attacks.matching.search import search, search_many
from attacks.matching.victim import Victim, rebuild
from attacks.observation import AttackFailed, Budget, Reconstruction

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


@pytest.fixture
def crowd(net: nn.Module, overhear: Overhear, rng: torch.Generator) -> list[Victim]:
    """Three clients of one round; of the last, half of every weight was hidden."""
    found = []
    for label in range(3):
        inputs = torch.rand(1, 1, 4, 4, generator=rng)
        seen, known = overhear(net, inputs, torch.tensor([label]))
        if label == 2:
            visible = {n: torch.rand(t.shape, generator=rng) < 0.5 for n, t in seen.update.items()}
            seen = replace(seen, visible=visible)
        found.append(rebuild(seen, known, dtype=torch.float64))
    return found


def seeds(num: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(num)]


def test_company_changes_no_guess(crowd: list[Victim]) -> None:
    effort = replace(EFFORT, restarts=2)

    together = search_many(crowd, None, effort, rngs=seeds(3), budget=None)

    for victim, found, rng in zip(crowd, together, seeds(3), strict=True):
        alone = search(victim, None, effort, rng=rng, budget=None)
        assert isinstance(found, Reconstruction)
        assert found.inputs is not None
        assert alone.inputs is not None
        # Both solve the same equations to 1e-6, by paths that rounding may part.
        torch.testing.assert_close(found.inputs, alone.inputs, atol=1e-3, rtol=0)
        assert found.snapshots[-1].step == found.steps


def test_a_solved_victim_does_not_wait_for_a_stuck_one(crowd: list[Victim]) -> None:
    wrong = [torch.tensor([0]), torch.tensor([2]), torch.tensor([2])]  # the second is 1
    effort = replace(EFFORT, steps=100, restarts=3)

    found = search_many(crowd, wrong, effort, rngs=seeds(3), budget=None)

    alone = search(crowd[0], wrong[0], effort, rng=seeds(1)[0], budget=None)
    assert isinstance(found[0], Reconstruction)
    assert isinstance(found[1], Reconstruction)
    assert found[0].steps == pytest.approx(alone.steps, abs=3)
    assert found[1].steps > found[0].steps


def test_one_that_cannot_be_searched_for_leaves_the_others_alone(crowd: list[Victim]) -> None:
    broken = {name: torch.full_like(t, 1e200) for name, t in crowd[1].target.items()}
    crowd[1] = replace(crowd[1], target=broken)

    found = search_many(crowd, None, EFFORT, rngs=seeds(3), budget=None)

    assert isinstance(found[0], Reconstruction)
    assert isinstance(found[1], AttackFailed)
    assert found[0].notes["relative_distance"] == pytest.approx(0, abs=EFFORT.tolerance)


def test_what_does_not_fit_into_memory_is_searched_for_in_parts(
    crowd: list[Victim], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = search_many(crowd, None, EFFORT, rngs=seeds(3), budget=None)
    sizes: list[int] = []
    inner = module._search_company

    def little_memory(company: Company, *arguments: Any) -> Any:
        sizes.append(len(company.victims))
        found = inner(company, *arguments)  # runs out after it has drawn its random numbers
        if len(company.victims) > 1:
            raise torch.OutOfMemoryError("no")
        return found

    monkeypatch.setattr(module, "_search_company", little_memory)

    found = search_many(crowd, None, EFFORT, rngs=seeds(3), budget=None)

    assert sizes == [3, 1, 1, 1]
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, Reconstruction)
        assert isinstance(other, Reconstruction)
        assert one.inputs is not None
        assert other.inputs is not None
        torch.testing.assert_close(one.inputs, other.inputs, atol=1e-3, rtol=0)


def test_of_several_hypotheses_about_labels_the_one_that_matches_wins(
    victim: Victim, image: Tensor, rng: torch.Generator
) -> None:
    hypotheses = torch.tensor([[0], [2], [1]])

    found = search(victim, hypotheses, replace(EFFORT, restarts=3), rng=rng, budget=None)

    assert found.labels is not None
    assert found.inputs is not None
    assert found.labels.tolist() == [1]
    torch.testing.assert_close(found.inputs, image, atol=1e-3, rtol=0)


def test_a_box_holds_back_what_would_leave_the_range(victim: Victim, rng: torch.Generator) -> None:
    wrong = torch.tensor([2])  # with it, the closest match lies outside
    outside = []
    for box in (0.0, 100.0):
        effort = replace(EFFORT, steps=100, box=box)
        found = search(victim, wrong, effort, rng=torch.Generator().manual_seed(1), budget=None)
        assert found.inputs is not None
        outside.append(float(((found.inputs == 0) | (found.inputs == 1)).float().mean()))

    assert outside[1] < outside[0]  # fewer pixels had to be clamped


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"restarts": 0}, {"start": "x"}, {"box": -1.0}])
def test_settings_without_meaning_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        replace(EFFORT, **wrong)


def test_a_layer_that_was_not_heard_is_not_missed(
    net: nn.Module, image: Tensor, overhear: Overhear, rng: torch.Generator
) -> None:
    seen, known = overhear(net, image, torch.tensor([1]))
    heard = {name: tensor for name, tensor in seen.update.items() if not name.startswith("0.")}
    victim = rebuild(replace(seen, update=heard), known, dtype=torch.float64)

    found = search(victim, None, EFFORT, rng=rng, budget=None)

    assert found.inputs is not None
    torch.testing.assert_close(found.inputs, image, atol=1e-2, rtol=0)
