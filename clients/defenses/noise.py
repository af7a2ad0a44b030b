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

from attacks.defense import Family, add_noise, noise_deviation
from attacks.network import known_architecture, trace
from attacks.observation import AttackFailed, Kind, Knowledge, Observation, Tensors
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
        """Say how exact each coordinate is."""
        return seen, add_noise(known, dict.fromkeys(seen.update, self.deviation), self.family)

    def estimated(self, seen: Observation, known: Knowledge) -> "GaussianNoise":
        """Read the scale off the classifier's gradient, whose columns sum to zero without noise."""
        scale = None
        if seen.kind in (Kind.GRADIENT, Kind.AGGREGATE, Kind.CHUNK, Kind.DELTA):
            try:
                classifier = trace(*known_architecture(known)).classifier()
            except AttackFailed:
                classifier = None
            if classifier is not None:
                scale = noise_deviation(seen, f"{classifier.name}.weight".lstrip("."))
        return type(self)(scale=self.scale if scale is None else scale)

    def _draw(self, shape: torch.Size, rng: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=rng)


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
