from itertools import pairwise

import pytest
import torch
from torch import Tensor

from attacks.matching.descent import Schedule, descend
from attacks.observation import Budget

BOX = (0.0, 1.0)


def bowl(points: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance to 0.3."""
    return (points - 0.3).square().flatten(1).sum(dim=1), 2 * (points - 0.3)


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_it_finds_the_bottom_of_a_bowl(schedule: Schedule, rng: torch.Generator) -> None:
    start = torch.rand(3, 2, 4, generator=rng)

    found = descend(bowl, start, steps=300, step_size=0.1, schedule=schedule, box=BOX)

    # The last step sizes are about 1e-4.
    torch.testing.assert_close(found.points, torch.full((3, 2, 4), 0.3), atol=1e-3, rtol=0)
    assert found.steps == 300


def test_the_first_step_has_the_size_asked_for_whatever_the_slope() -> None:
    start = torch.tensor([[0.9, 0.2]])

    def steep(points: Tensor) -> tuple[Tensor, Tensor]:
        values, slopes = bowl(points)
        return 1e6 * values, 1e6 * slopes

    found = descend(steep, start, steps=1, step_size=0.05, schedule="step", box=BOX)

    torch.testing.assert_close(found.points, torch.tensor([[0.85, 0.25]]))


def test_points_stay_inside_the_box() -> None:
    seen: list[Tensor] = []

    def outside(points: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(points)
        return points.sum(dim=1), torch.ones_like(points)

    found = descend(
        outside, torch.full((1, 3), 0.5), steps=30, step_size=0.1, schedule="cosine", box=BOX
    )

    assert torch.stack(seen).min() == 0
    assert found.points.eq(0).all()


def test_the_step_size_falls_to_a_tenth_three_times() -> None:
    path: list[float] = []

    def slope(points: Tensor) -> tuple[Tensor, Tensor]:
        path.append(points.item())
        return points[:, 0] + 9, torch.ones_like(points)  # above 0: nothing ends it early

    descend(slope, torch.zeros(1, 1), steps=8, step_size=1.0, schedule="step", box=(-9.0, 9.0))

    falls = [before - after for before, after in pairwise(path)]
    assert falls == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.001], abs=1e-4)


def test_the_best_point_goes_with_its_own_value() -> None:
    def misleading(points: Tensor) -> tuple[Tensor, Tensor]:
        return bowl(points)[0], -bowl(points)[1]  # leads uphill: the start stays best

    start = torch.tensor([[0.4], [0.2]])

    found = descend(misleading, start, steps=10, step_size=0.1, schedule="step", box=BOX)

    assert torch.equal(found.points, start)
    torch.testing.assert_close(found.values, bowl(start)[0])


def test_a_row_that_stops_being_finite_keeps_its_best() -> None:
    def cliff(points: Tensor) -> tuple[Tensor, Tensor]:
        values, slopes = bowl(points)
        return torch.where(points[:, 0] < 0.5, torch.nan, values), slopes

    start = torch.tensor([[0.9], [0.1]])

    found = descend(cliff, start, steps=20, step_size=0.1, schedule="step", box=BOX)

    assert 0.5 <= found.points[0].item() < 0.6
    assert found.values[1] == torch.inf


def test_rows_together_take_the_path_of_rows_alone(rng: torch.Generator) -> None:
    start = torch.rand(4, 5, generator=rng)

    together = descend(bowl, start, steps=40, step_size=0.1, schedule="cosine", box=BOX)

    for row in range(4):
        one = start[row : row + 1]
        alone = descend(bowl, one, steps=40, step_size=0.1, schedule="cosine", box=BOX)
        assert torch.equal(together.points[row], alone.points[0])


def test_a_spent_budget_ends_it_unfinished() -> None:
    start = torch.full((1, 2), 0.5)

    found = descend(
        bowl, start, steps=10, step_size=0.1, schedule="step", box=BOX, budget=Budget(0.0)
    )

    assert not found.finished
    assert found.steps == 0
    torch.testing.assert_close(found.values, bowl(start)[0])


def test_it_ends_when_a_row_is_solved() -> None:
    start = torch.tensor([[0.3], [0.9]])

    found = descend(bowl, start, steps=500, step_size=0.1, schedule="step", box=BOX, tolerance=1e-9)

    assert found.steps == 0
    assert found.finished
