"""Search for the batch behind a gradient by squared distance, as DLG and iDLG do."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.matching.coordinates import Coordinates
from attacks.matching.lbfgs import Minimum, minimize
from attacks.matching.objectives import squared_distance
from attacks.matching.rows import GradientOf, by_rows
from attacks.matching.snapshots import Snapshots
from attacks.matching.victim import Victim, require_twice_differentiable
from attacks.observation import AttackFailed, Budget, Reconstruction

_STUCK = 1e-2
"""Relative distance above which a restart is stuck; below, another would end no closer."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long and how often to search.

    Attributes:
        steps: Most L-BFGS steps of one restart.
        restarts: Most restarts. The first runs alone; if it gets stuck, the others run together.
        tolerance: Distance to the gradient heard, relative to its norm, at which to stop.
    """

    steps: int
    restarts: int
    tolerance: float


def search(
    victim: Victim,
    labels: Tensor | None,
    effort: Effort,
    *,
    rng: torch.Generator,
    budget: Budget | None,
) -> Reconstruction:
    """Find inputs, and with `labels` None their labels too, whose gradient is the one heard.

    The whole batch is searched for at once, from clouds (see `Coordinates`) and N(0, 1) logits of
    the labels. Of several restarts the one closest to the gradient heard is returned.

    Args:
        victim: Whose gradient to match.
        labels: Shape (B,), int64.
        effort: When to stop.
        rng: Draws the starts.
        budget: Wall-clock allowance.

    Raises:
        AttackFailed: The model is not twice differentiable, or no start has a finite distance.
    """
    began = time.monotonic()
    require_twice_differentiable(victim)
    coordinates = Coordinates(victim.input_shape, victim.input_range, like=victim.like)
    num_inputs = victim.batch_size * coordinates.size
    num_logits = victim.batch_size * victim.num_classes if labels is None else 0

    def inputs_of(point: Tensor) -> Tensor:
        return coordinates.inputs(point[:num_inputs])

    def logits_of(point: Tensor) -> Tensor:
        return point[num_inputs:].view(victim.batch_size, victim.num_classes)

    def objective(point: Tensor, gradient: GradientOf) -> Tensor:
        targets = logits_of(point).softmax(dim=1) if labels is None else labels
        return squared_distance(gradient(inputs_of(point), targets), victim.target)

    def draw() -> Tensor:
        logits = torch.randn(num_logits, generator=rng).to(victim.like)
        return torch.cat((coordinates.clouds(victim.batch_size, rng=rng), logits))

    snapshots = Snapshots(
        inputs_of, steps=effort.steps * min(effort.restarts, 2), input_range=victim.input_range
    )
    value_and_grad = by_rows(objective, victim)
    square_norm = victim.square_norm

    def run(starts: Tensor, before: int) -> Minimum:
        return minimize(
            value_and_grad,
            starts,
            steps=effort.steps,
            tolerance=effort.tolerance**2 * square_norm,
            budget=budget,
            on_step=lambda step, points, values: snapshots.look(before + step, points, values),
        )

    starts = torch.stack([draw() for _ in range(effort.restarts)])
    found = run(starts[:1], 0)
    points, values, steps = found.points, found.values, found.steps
    if effort.restarts > 1 and found.finished and float(values) > _STUCK**2 * square_norm:
        found = run(starts[1:], steps)
        points, values = torch.cat((points, found.points)), torch.cat((values, found.values))
        steps += found.steps
    best = int(values.argmin())
    if not bool(values[best].isfinite()):
        raise AttackFailed("the distance to the gradient heard is not finite at any start")
    return Reconstruction(
        inputs=inputs_of(points[best]).clamp(*victim.input_range).float(),
        labels=logits_of(points[best]).argmax(dim=1) if labels is None else labels,
        matching_loss=float(values[best]),
        steps=steps,
        seconds=time.monotonic() - began,
        finished=found.finished,
        snapshots=snapshots.end(steps, points, values),
        notes={"relative_distance": (float(values[best]) / square_norm) ** 0.5},
    )
