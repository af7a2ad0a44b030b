"""Signed Adam inside a box, on R independent problems at once."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attacks.observation import Budget

ValueAndGrad = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Points (R, ...) -> values (R,) and gradients (R, ...), row by row."""

OnStep = Callable[[int, Tensor, Tensor], None]
"""Told (steps taken, best points so far (R, ...), their values (R,))."""

Schedule = Literal["step", "cosine"]
"""How the step size falls: to a tenth at 3/8, 5/8 and 7/8 of the run, or along a cosine to 0."""

_BETAS = 0.9, 0.999
_EPSILON = 1e-8
_LOOK_EVERY = 50


@dataclass(frozen=True, kw_only=True)
class Descent:
    """The best point of every row.

    Attributes:
        points: Shape (R, ...).
        values: The objective at those points, shape (R,); inf for a row that was never finite.
        steps: Steps taken.
        finished: False when the budget ended it.
    """

    points: Tensor
    values: Tensor
    steps: int
    finished: bool


def descend(
    objective: ValueAndGrad,
    start: Tensor,
    *,
    steps: int,
    step_size: float,
    schedule: Schedule,
    box: tuple[float, float],
    tolerance: float = 0.0,
    budget: Budget | None = None,
    on_step: OnStep | None = None,
) -> Descent:
    """Follow the sign of the gradient through Adam, clamped to the box after every step.

    Rows whose objective stops being finite keep their best point. Apart from `on_step`, the
    device is waited for every 50 steps only, to see whether a row is at `tolerance`.

    Args:
        objective: Values and gradients of the rows.
        start: Shape (R, ...), inside the box.
        steps: Steps to take.
        step_size: Of the first step, in the units of the box.
        schedule: How the step size falls over `steps`.
        box: Lowest and highest value of an entry.
        tolerance: The run ends when a row is seen at or below it.
        budget: Asked before every step.
        on_step: Told about the start and every step.
    """
    points = start.clone()
    best, best_values = start.clone(), start.new_full((len(start),), torch.inf)
    mean, square = torch.zeros_like(start), torch.zeros_like(start)
    rowwise = (-1,) + (1,) * (start.dim() - 1)
    taken, finished = 0, True
    while True:
        values, slopes = objective(points)
        better = values < best_values  # never true for nan
        best_values = torch.where(better, values, best_values)
        best = torch.where(better.view(rowwise), points, best)
        if on_step is not None:
            on_step(taken, best, best_values)
        if taken == steps:
            break
        if taken % _LOOK_EVERY == 0 and bool((best_values <= tolerance).any()):
            break
        if budget is not None and budget.spent:
            finished = False
            break
        size = step_size * _fraction(schedule, taken / steps)
        taken += 1
        signs = slopes.sign()
        mean.lerp_(signs, 1 - _BETAS[0])
        square.lerp_(signs.square(), 1 - _BETAS[1])
        length = (square / (1 - _BETAS[1] ** taken)).sqrt_().add_(_EPSILON)
        points = (points - size / (1 - _BETAS[0] ** taken) * mean / length).clamp_(*box)
    return Descent(points=best, values=best_values, steps=taken, finished=finished)


def _fraction(schedule: Schedule, done: float) -> float:
    """Return the step size at a fraction of the run, as a fraction of the first one."""
    if schedule == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return 0.1 ** sum(done >= milestone for milestone in (3 / 8, 5 / 8, 7 / 8))
