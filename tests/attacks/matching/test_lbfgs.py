import pytest
import torch
from torch import Tensor

from attacks.matching.lbfgs import ValueAndGrad, _Memory, minimize
from attacks.observation import Budget


def rosenbrock(points: Tensor) -> tuple[Tensor, Tensor]:
    """Rosenbrock's valley over pairs of coordinates, minimum 0 at all ones."""
    points = points.detach().requires_grad_()
    x, y = points[:, ::2], points[:, 1::2]
    values = (100 * (y - x.square()).square() + (1 - x).square()).sum(dim=1)
    (slopes,) = torch.autograd.grad(values.sum(), points)
    return values.detach(), slopes


def quadratic(curvatures: Tensor) -> ValueAndGrad:
    """Half the sum of curvature times square, minimum 0 at 0."""
    return lambda points: ((curvatures * points.square()).sum(dim=1) / 2, curvatures * points)


def starts(rows: int, size: int, rng: torch.Generator) -> Tensor:
    return torch.randn(rows, size, generator=rng, dtype=torch.float64)


def test_it_walks_through_rosenbrocks_valley() -> None:
    start = torch.tensor([[-1.2, 1.0]], dtype=torch.float64)

    found = minimize(rosenbrock, start, steps=60)  # the published start takes about 35

    torch.testing.assert_close(found.points, torch.ones(1, 2, dtype=torch.float64))


def test_a_quadratic_of_four_curvatures_is_solved_in_a_few_times_four_steps(
    rng: torch.Generator,
) -> None:
    curvatures = torch.tensor([1.0, 10.0, 100.0, 1000.0], dtype=torch.float64).repeat(10)

    found = minimize(quadratic(curvatures), starts(1, 40, rng), steps=30, tolerance=1e-16)

    # Exact line searches would take four steps; these stop at the Wolfe conditions.
    assert found.values.item() <= 1e-16


def two_loops(steps: list[Tensor], changes: list[Tensor], slope: Tensor) -> Tensor:
    """The direction by the textbook's recursion (Nocedal and Wright 2006, algorithm 7.4)."""
    direction, weights = slope.clone(), []
    for step, change in zip(reversed(steps), reversed(changes), strict=True):
        weights.append((step @ direction) / (step @ change))
        direction = direction - weights[-1] * change
    direction = direction * (steps[-1] @ changes[-1]) / (changes[-1] @ changes[-1])
    for step, change, weight in zip(steps, changes, reversed(weights), strict=True):
        direction = direction + (weight - (change @ direction) / (step @ change)) * step
    return -direction


@pytest.mark.parametrize("num_pairs", [1, 4, 7])
def test_the_compact_form_is_the_textbooks_two_loops(num_pairs: int, rng: torch.Generator) -> None:
    matrix = starts(6, 6, rng)
    hessian = matrix @ matrix.T + torch.eye(6)
    steps = [starts(1, 6, rng)[0] for _ in range(num_pairs)]
    memory = _Memory(torch.zeros(1, 6, dtype=torch.float64), 4)
    for step in steps:
        memory.remember(step[None], (hessian @ step)[None])
    slope = starts(1, 6, rng)

    directions, along = memory.directions(slope)

    kept = steps[-4:]
    expected = two_loops(kept, [hessian @ step for step in kept], slope[0])
    torch.testing.assert_close(directions[0], expected)
    torch.testing.assert_close(along, (directions * slope).sum(dim=1))


def test_a_pair_of_negative_curvature_is_not_remembered(rng: torch.Generator) -> None:
    memory = _Memory(torch.zeros(2, 5, dtype=torch.float64), 4)
    good, bad = starts(2, 5, rng), torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    memory.remember(good, 2 * good)
    slope = starts(2, 5, rng)
    before, _ = memory.directions(slope)

    step = starts(2, 5, rng)
    memory.remember(step, 3 * bad * step)

    after, _ = memory.directions(slope)
    assert not torch.allclose(after[0], before[0])
    torch.testing.assert_close(after[1], before[1])


def test_rows_together_take_the_path_of_rows_alone(rng: torch.Generator) -> None:
    start = starts(5, 6, rng)

    together = minimize(rosenbrock, start, steps=25, history=7, progress=0)

    for row in range(5):
        alone = minimize(rosenbrock, start[row : row + 1], steps=25, history=7, progress=0)
        torch.testing.assert_close(together.points[row], alone.points[0], rtol=1e-8, atol=1e-8)


def test_no_row_ever_climbs(rng: torch.Generator) -> None:
    seen: list[Tensor] = []

    minimize(
        rosenbrock,
        5 * starts(4, 10, rng),
        steps=60,
        on_step=lambda _, __, values: seen.append(values),
    )

    path = torch.stack(seen)
    assert (path.diff(dim=0) <= 0).all()
    assert (path[-1] < path[0]).all()


def test_the_value_given_back_is_that_of_the_point_given_back(rng: torch.Generator) -> None:
    found = minimize(rosenbrock, starts(3, 8, rng), steps=10)

    torch.testing.assert_close(found.values, rosenbrock(found.points)[0])


def test_a_short_history_forgets_and_still_arrives(rng: torch.Generator) -> None:
    found = minimize(rosenbrock, starts(1, 20, rng), steps=500, history=3, tolerance=1e-12)

    assert found.values.item() <= 1e-12


def test_a_row_that_is_not_finite_is_left_behind() -> None:
    def logarithm(points: Tensor) -> tuple[Tensor, Tensor]:
        return (points - points.log()).sum(dim=1), 1 - 1 / points  # nan left of 0, minimum at 1

    start = torch.tensor([[-1.0], [3.0]], dtype=torch.float64)

    found = minimize(logarithm, start, steps=50, progress=0)

    assert found.values[0] == torch.inf
    assert found.points[0] == -1
    assert found.points[1].item() == pytest.approx(1)


def test_a_step_into_nothing_is_shortened() -> None:
    def wall(points: Tensor) -> tuple[Tensor, Tensor]:
        values = torch.where(points > 0.2, points.square(), torch.nan)
        return values.sum(dim=1), torch.where(points > 0.2, 2 * points, torch.nan)

    found = minimize(wall, torch.tensor([[1.0]]), steps=20)

    assert 0.2 < found.points.item() < 0.3


def test_a_row_that_is_solved_ends_the_search(rng: torch.Generator) -> None:
    start = torch.stack((torch.full((6,), 1e-9).double(), torch.full((6,), 5.0).double()))

    found = minimize(quadratic(torch.ones(6).double()), start, steps=50, tolerance=1e-12)

    assert found.steps == 0
    assert found.finished


def test_a_row_that_gets_no_further_ends_early() -> None:
    def floor(points: Tensor) -> tuple[Tensor, Tensor]:
        return 1 + 1e-9 * points.square().sum(dim=1), 2e-9 * points

    found = minimize(floor, torch.ones(1, 2, dtype=torch.float64), steps=1000)

    assert found.steps <= 20


def test_a_spent_budget_ends_it_unfinished(rng: torch.Generator) -> None:
    start = starts(2, 4, rng)

    found = minimize(rosenbrock, start, steps=50, budget=Budget(0.0))

    assert not found.finished
    assert found.steps == 0
    torch.testing.assert_close(found.points, start)


def test_the_start_is_not_modified(rng: torch.Generator) -> None:
    start = starts(2, 4, rng)
    before = start.clone()

    minimize(rosenbrock, start, steps=5)

    assert torch.equal(start, before)
