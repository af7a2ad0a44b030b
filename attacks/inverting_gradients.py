"""Inverting Gradients (Geiping et al., 2020, https://arxiv.org/abs/2003.14053).

Images whose gradient points the way the observed one does, with little total variation, by signed
Adam inside the pixel box, from mid-grey plus noise. Differs from the paper: the labels are read
off the gradient for any batch size, unless they are asked for as oracle knowledge; one restart
unless more are asked for; the guess returned is the best one on the way, not the last.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attacks.matching.descent import Schedule, descend
from attacks.matching.objectives import cosine_distance
from attacks.matching.priors import total_variation
from attacks.matching.rows import GradientOf, by_rows
from attacks.matching.snapshots import Snapshots
from attacks.matching.victim import (
    check_matchable,
    labels_of,
    rebuild,
    require_twice_differentiable,
)
from attacks.observation import (
    AttackFailed,
    Budget,
    Knowledge,
    Observation,
    Reconstruction,
    only,
)
from attacks.threats import ORACLE, WHITE_BOX, Capability

_NOISE = (
    0.25  # of the start, as a fraction of the range; about 1 in normalised pixels, as published
)
_PRECISION = 1e-7  # what a cosine in single precision can tell from 1


@dataclass(frozen=True, kw_only=True)
class InvertingGradients:
    """Find the images whose gradient points the way the observed one does.

    Attributes:
        steps: Signed Adam steps.
        step_size: First step, as a fraction of the input range (1.0 is black to white).
        schedule: "step" divides it by 10 at 3/8, 5/8 and 7/8 of the steps, as published;
            "cosine" lowers it smoothly to 0.
        tv_weight: Weight of total variation against cosine distance.
        restarts: Starts, run together; the guess with the lowest objective is returned.
        labels: "recover" reads them off the gradient; "oracle" is told them.
    """

    steps: int = 4_800
    step_size: float = 0.1
    schedule: Schedule = "step"
    tv_weight: float = 1e-4
    restarts: int = 1
    labels: Literal["recover", "oracle"] = "recover"

    @property
    def needs(self) -> frozenset[Capability]:
        """The weights in force, the model, what inputs look like, how many; oracle labels."""
        return WHITE_BOX | ORACLE if self.labels == "oracle" else WHITE_BOX

    def check(self, known: Knowledge) -> None:
        """Refuse several steps, and models whose gradient cannot be differentiated again."""
        check_matchable(known)

    def __call__(
        self,
        seen: Observation | Sequence[Observation],
        known: Knowledge,
        *,
        rng: torch.Generator,
        budget: Budget | None = None,
    ) -> Reconstruction:
        """Guess the batch behind one gradient.

        Shapes:
            seen.update: one tensor per parameter, shaped like it
            returns .inputs: (B, C, H, W), inside known.input_range
            returns .labels: (B,) int64

        Raises:
            AttackFailed: The victim cannot be rebuilt (`attacks.matching.victim.rebuild`), the
                model is not twice differentiable, the labels are neither readable nor granted,
                or no start has a finite objective.
        """
        began = time.monotonic()
        victim = rebuild(only(seen), known, dtype=torch.float32)
        require_twice_differentiable(victim)
        labels = self._granted(known, victim.batch_size) if self.labels == "oracle" else None
        labels = labels_of(victim, known) if labels is None else labels.to(victim.like.device)

        def objective(images: Tensor, gradient: GradientOf) -> Tensor:
            distance = cosine_distance(gradient(images, labels), victim.target)
            return distance + self.tv_weight * total_variation(images)

        low, high = victim.input_range
        shape = (self.restarts, victim.batch_size, *victim.input_shape)
        noise = _NOISE * (high - low) * torch.randn(shape, generator=rng).to(victim.like)
        snapshots = Snapshots(lambda images: images, steps=self.steps, input_range=(low, high))
        found = descend(
            by_rows(objective, victim),
            ((low + high) / 2 + noise).clamp(low, high),
            steps=self.steps,
            step_size=self.step_size * (high - low),
            schedule=self.schedule,
            box=(low, high),
            tolerance=_PRECISION,
            budget=budget,
            on_step=snapshots.look,
        )
        best = int(found.values.argmin())
        if not bool(found.values[best].isfinite()):
            raise AttackFailed("the objective is not finite at any start")
        return Reconstruction(
            inputs=found.points[best],
            labels=labels,
            matching_loss=float(found.values[best]),
            steps=found.steps,
            seconds=time.monotonic() - began,
            finished=found.finished,
            snapshots=snapshots.end(found.steps, found.points, found.values),
            notes={"labels": "oracle"} if self.labels == "oracle" else {},
        )

    @staticmethod
    def _granted(known: Knowledge, batch_size: int) -> Tensor:
        if known.labels is None:
            raise AttackFailed("labels = 'oracle' needs the private labels; grant 'labels'")
        if known.labels.shape != (batch_size,):
            raise AttackFailed(
                f"the labels granted have shape {tuple(known.labels.shape)}, "
                f"expected ({batch_size},)"
            )
        return known.labels
