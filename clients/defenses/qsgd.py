"""QSGD (Alistarh et al., 2017, https://arxiv.org/abs/1610.02132): few levels, the right mean.

Coordinates are cut into buckets; each becomes a whole number of levels of the bucket's Euclidean
norm, rounded at random such that the mean is right. Differs from the paper: levels and norms are
packed as they are, without Elias coding (`fedsim.packing` finds the shortest form).

With error feedback (Karimireddy et al., 2019, https://arxiv.org/abs/1901.09847), what is sent is
made smaller by 1 + min(n / s^2, sqrt(n) / s), for n coordinates and s levels: QSGD's variance may
be so many times what it rounds, and feedback needs compression that loses less than it is given.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from attacks.defense import Family, add_noise
from attacks.observation import Kind, Knowledge, Observation, Tensors
from clients.defenses.feedback import carried, with_feedback
from clients.defenses.rounding import root, rounded, rounding_variance, whole_levels
from clients.defenses.zeros import moved
from fedsim.defenses import Place, Situation

_BUCKETS = (None, *(1 << power for power in range(13, 5, -1)))
"""Sizes that are looked for where none is told."""


@dataclass(frozen=True, kw_only=True)
class QSGD:
    """Rounds each bucket of the update at random to a few levels of its norm.

    Attributes:
        levels: Levels between zero and the norm of a bucket.
        bucket: Coordinates of a tensor that share a norm; unset for all of them. Powers of two from
            64 to 8192 take the fewest bytes.
        error_feedback: Whether what rounding took off is added to the next update.
    """

    levels: int = 16
    bucket: int | None = 512
    error_feedback: bool = False

    place: ClassVar[Place] = Place.UPDATE

    def __post_init__(self) -> None:
        """Refuse no levels, and empty buckets."""
        if self.levels < 1:
            raise ValueError(f"levels must be at least 1, got {self.levels}")
        if self.bucket is not None and self.bucket < 1:
            raise ValueError(f"bucket must be at least 1, got {self.bucket}")

    def apply(self, update: Tensors, at: Situation) -> dict[str, Tensor]:
        """Round, all tensors in the order of their names in the update."""

        def compress(whole: Tensors) -> dict[str, Tensor]:
            return {name: self._round(tensor, at.rng) for name, tensor in whole.items()}

        return with_feedback(update, at, compress) if self.error_feedback else compress(update)

    def read(self, seen: Observation, known: Knowledge) -> tuple[Observation, Knowledge]:
        """Say how exact each parameter is: the smallest magnitude of a bucket is its unit.

        Levels times the unit is the norm before rounding, exactly; what is heard is longer. With
        error feedback it is first made as large again as it was.
        """
        seen = moved(seen)
        if seen.kind is Kind.WEIGHTS:
            return seen, known
        noise = {} if known.noise is None else known.noise.deviation
        wider = 1.0
        if self.error_feedback:
            wider = carried(seen)
            sizes = {name: 1 / self._shrink(tensor.numel()) for name, tensor in seen.update.items()}
            seen = replace(seen, update={n: t * sizes[n] for n, t in seen.update.items()})
        deviation = {}
        for name, tensor in seen.update.items():
            buckets = _cut(tensor, self.bucket)
            unit = _heard_unit(buckets)
            if noise.get(name, 0.0):  # later noise covers the levels
                unit = torch.linalg.vector_norm(buckets, dim=1, keepdim=True) / self.levels
            deviation[name] = wider * root(rounding_variance(buckets, unit, "stochastic"))
        return seen, add_noise(known, deviation, Family.UNIFORM)

    def estimated(self, seen: Observation, known: Knowledge) -> "QSGD":  # noqa: ARG002
        """Read the bucket off the values that are multiples of one, and the levels off their mean.

        If coordinates are normal, their mean magnitude is sqrt(2 / pi) of their deviation, which is
        the norm over sqrt(n).
        """
        update = moved(seen).update
        size = next((size for size in _BUCKETS if _fits(update, size)), self.bucket)
        guesses, weights = [], []
        for tensor in update.values():
            buckets = _cut(tensor, size)
            unit = _heard_unit(buckets)
            some = unit.squeeze(1) > 0
            if bool(some.any()):
                levels = (buckets[some] / unit[some]).abs().double().mean()
                length = math.sqrt(min(size or tensor.numel(), tensor.numel()))
                guesses.append(float(levels) * math.sqrt(math.pi / 2) * length)
                weights.append(tensor.numel())
        mean = sum(g * w for g, w in zip(guesses, weights, strict=True)) / max(sum(weights), 1)
        return QSGD(levels=max(1, round(mean)), bucket=size)

    def _round(self, tensor: Tensor, rng: torch.Generator) -> Tensor:
        buckets = _cut(tensor, self.bucket)
        norm: Tensor = torch.linalg.vector_norm(buckets.double(), dim=1, keepdim=True)
        unit = (norm / self.levels).to(tensor.dtype)
        safe = torch.where(unit > 0, unit, torch.ones_like(unit))
        levels = rounded((buckets / safe).clamp(-self.levels, self.levels), "stochastic", rng)
        if self.error_feedback:
            unit = unit * self._shrink(tensor.numel())
        flat: Tensor = (levels * unit).flatten()
        return flat[: tensor.numel()].reshape(tensor.shape)

    def _shrink(self, count: int) -> float:
        size = min(self.bucket or count, count)
        return 1 / (1 + min(size / self.levels**2, math.sqrt(size) / self.levels))


def _cut(tensor: Tensor, size: int | None) -> Tensor:
    """Return the buckets of a tensor, (N, size), the last one filled up with zeros."""
    count = tensor.numel()
    size = max(min(size or count, count), 1)
    return functional.pad(tensor.flatten(), (0, -count % size)).reshape(-1, size)


def _heard_unit(buckets: Tensor) -> Tensor:
    """Return the smallest magnitude of each bucket that is not zero, (N, 1); 0 if all are."""
    magnitude = buckets.abs()
    huge = torch.full_like(magnitude, torch.inf)
    least = torch.where(magnitude > 0, magnitude, huge)
    if not len(least):
        return magnitude.new_zeros(0, 1)
    found = least.amin(dim=1, keepdim=True)
    return torch.where(found.isinf(), torch.zeros_like(found), found)


def _fits(update: Tensors, size: int | None) -> bool:
    """Whether buckets of this size are multiples of a unit each."""
    for tensor in update.values():
        buckets = _cut(tensor, size)
        unit = _heard_unit(buckets)
        some = unit.squeeze(1) > 0
        if not whole_levels(buckets[some], unit[some]):
            return False
    return True
