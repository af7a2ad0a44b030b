"""Noise on every coordinate of an update, as in Deep Leakage from Gradients.

Zhu et al. (2019, https://arxiv.org/abs/1906.08935) add Gaussian and Laplacian noise with scales
from 1e-4 to 1e-1. The paper calls the scale a variance; read as a standard deviation, its results
come out. Both readings are offered. Without clipping there is no privacy guarantee: see `local-dp`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from attacks.defense import Family, add_noise, error_in_mean, noise_deviation
from attacks.network import known_architecture, trace
from attacks.observation import AttackFailed, Knowledge, Observation, Tensors
from fedsim.defenses import Place, Situation

Scale = Literal["deviation", "variance"]
"""What `scale` is: the standard deviation of the noise, or its variance."""


@dataclass(frozen=True, kw_only=True)
class GaussianNoise:
    """Adds Gaussian noise to every coordinate of the update.

    Attributes:
        scale: How much, in units of the update; 0 adds none.
        scale_is: Whether `scale` is the standard deviation, or the variance.
    """

    scale: float = 1e-3
    scale_is: Scale = "deviation"

    place: ClassVar[Place] = Place.UPDATE
    family: ClassVar[Family] = Family.GAUSSIAN

    def __post_init__(self) -> None:
        """Refuse a scale below zero."""
        if self.scale < 0:
            raise ValueError(f"scale must be 0 or more, got {self.scale}")

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise."""
        return self.scale if self.scale_is == "deviation" else math.sqrt(self.scale)

    def apply(self, update: Tensors, at: Situation) -> dict[str, Tensor]:
        """Add independent noise to each coordinate."""
        return {
            name: tensor + (self.deviation * self._draw(tensor.shape, at.rng)).to(tensor)
            for name, tensor in update.items()
        }

    def read(self, seen: Observation, known: Knowledge) -> tuple[Observation, Knowledge]:
        """Say how exact each coordinate is.

        A mean of several clients is more exact. Where a later link changed the length, the noise
        has changed with it: how much of it was heard is read off the classifier's gradient.
        """
        deviation = self.deviation * error_in_mean(seen, known)
        if not known.length_known and not known.signs_only:
            heard = noise_heard(seen, known)
            deviation = deviation if heard is None else min(deviation, heard)
        return seen, add_noise(known, dict.fromkeys(seen.update, deviation), self.family)

    def estimated(self, seen: Observation, known: Knowledge) -> "GaussianNoise":
        """Read the scale off the classifier's gradient, whose columns sum to zero without noise."""
        heard = noise_heard(seen, known)
        if heard is None:
            return type(self)(scale=self.deviation)
        return type(self)(scale=heard / error_in_mean(seen, known))

    def _draw(self, shape: torch.Size, rng: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=rng)


def noise_heard(seen: Observation, known: Knowledge) -> float | None:
    """Estimate the deviation of noise that is alike everywhere, beyond what is known of already.

    Returns:
        In units of what was heard; None where the classifier's gradient was not heard whole.
    """
    try:
        classifier = trace(*known_architecture(known)).classifier()
        if classifier is None:
            return None
        weight = classifier.parameter("weight")
        found = noise_deviation(seen, weight)
    except AttackFailed:
        return None
    if found is None:
        return None
    later = 0.0 if known.noise is None else known.noise.deviation.get(weight, 0.0)
    return math.sqrt(max(found**2 - later**2, 0.0))


@dataclass(frozen=True, kw_only=True)
class LaplacianNoise(GaussianNoise):
    """Adds Laplacian noise to every coordinate of the update.

    Attributes:
        scale: How much, in units of the update; 0 adds none.
        scale_is: Whether `scale` is the standard deviation, or the variance.
    """

    family: ClassVar[Family] = Family.LAPLACIAN

    def _draw(self, shape: torch.Size, rng: torch.Generator) -> Tensor:
        # the difference of two exponential variables is Laplacian with variance 2
        one, other = (torch.empty(shape).exponential_(generator=rng) for _ in range(2))
        return (one - other) / math.sqrt(2)
