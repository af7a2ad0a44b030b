"""Eight bits per coordinate, one unit per tensor or one for all.

Deep Leakage from Gradients (Zhu et al., 2019, https://arxiv.org/abs/1906.08935) finds that int8
stops the attack and costs accuracy; it does not say how it rounds, nor what a level is worth. Here
the largest magnitude of a tensor is level 127, unless a number is set for all. Stochastic rounding
(the default) has the right mean, so that it costs hardly any accuracy; rounding to the nearest
level loses what is below half a unit, unless error feedback makes up for it.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.defense import Family, add_noise
from attacks.observation import Kind, Knowledge, Observation, Tensors
from clients.defenses.feedback import carried, with_feedback
from clients.defenses.rounding import Rounding, root, rounded, rounding_variance
from clients.defenses.zeros import moved
from fedsim.defenses import Place, Situation

LEVELS = 127
"""Levels on each side of zero."""


@dataclass(frozen=True, kw_only=True)
class Int8:
    """Rounds each tensor of the update to 255 levels up to its largest magnitude.

    Attributes:
        largest: Level 127 of all tensors, larger values become it; None for the largest magnitude
            of each tensor. Fixed before training, as in fixed-point arithmetic, it loses what is
            small.
        rounding: To the nearest level, or at random such that the mean is right.
        error_feedback: Whether what rounding took off is added to the next update.
    """

    largest: float | None = None
    rounding: Rounding = "stochastic"
    error_feedback: bool = False

    place: ClassVar[Place] = Place.UPDATE

    def __post_init__(self) -> None:
        """Refuse levels that are worth nothing."""
        if self.largest is not None and not 0 < self.largest < math.inf:
            raise ValueError(f"largest must be a finite number above 0, got {self.largest}")

    def apply(self, update: Tensors, at: Situation) -> dict[str, Tensor]:
        """Round, all tensors in the order of their names in the update."""

        def compress(whole: Tensors) -> dict[str, Tensor]:
            return {name: self._round(tensor, at.rng) for name, tensor in whole.items()}

        return with_feedback(update, at, compress) if self.error_feedback else compress(update)

    def read(self, seen: Observation, known: Knowledge) -> tuple[Observation, Knowledge]:
        """Say how exact each parameter is: the largest magnitude heard gives the unit away."""
        seen = moved(seen)
        if seen.kind is Kind.WEIGHTS:
            return seen, known
        wider = carried(seen) if self.error_feedback else 1.0
        deviation = {name: wider * self._deviation(tensor) for name, tensor in seen.update.items()}
        return seen, add_noise(known, deviation, Family.UNIFORM)

    def _round(self, tensor: Tensor, rng: torch.Generator) -> Tensor:
        unit = self._unit(tensor)
        safe = torch.where(unit > 0, unit, torch.ones_like(unit))
        levels = rounded(tensor / safe, self.rounding, rng).clamp(-LEVELS, LEVELS)
        return (levels * unit).reshape(tensor.shape)

    def _deviation(self, tensor: Tensor) -> float:
        return root(rounding_variance(tensor.flatten(), self._unit(tensor), self.rounding))

    def _unit(self, tensor: Tensor) -> Tensor:
        """Return what one level is worth, (1,)."""
        if self.largest is not None:
            return tensor.new_full((1,), self.largest / LEVELS)
        if not tensor.numel():
            return tensor.new_zeros(1)
        return tensor.abs().max()[None] / LEVELS
