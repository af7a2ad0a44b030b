"""Rounding to whole levels of a unit, and how large the errors are."""

import math
from typing import Literal

import torch
from torch import Tensor

Rounding = Literal["nearest", "stochastic"]
"""Up or down to the closer level, or at random such that the mean is right."""


def rounded(levels: Tensor, rounding: Rounding, rng: torch.Generator) -> Tensor:
    """Return whole numbers next to `levels`, of the same shape and dtype; never minus zero.

    Args:
        levels: Of either sign.
        rounding: How.
        rng: A CPU generator; stochastic rounding draws one number per entry.
    """
    if rounding == "nearest":
        return levels.round() + 0.0
    chance = torch.rand(levels.shape, generator=rng).to(levels)
    floor = levels.floor()
    return floor + (chance < levels - floor).to(levels) + 0.0


def rounding_variance(heard: Tensor, unit: Tensor, rounding: Rounding) -> Tensor:
    """Estimate the mean variance of rounding errors along the last dimension, (...).

    Errors of rounding to the nearest level are uniform over a unit. Stochastic rounding has twice
    that variance at random places between levels, and less where most values are below the first
    one: a value v there becomes a unit u with chance v / u, so its variance is v u - v^2. The mean
    of v is heard, as rounding keeps it; that of v^2 is taken to be pi / 2 of its square, as of
    normal numbers.

    Args:
        heard: Rounded values, (..., N).
        unit: Their unit, (..., 1).
        rounding: How they were rounded.
    """
    square = unit.squeeze(-1).square()
    if rounding == "nearest":
        return square / 12
    mean = heard.abs().mean(dim=-1)
    below = unit.squeeze(-1) * mean - math.pi / 2 * mean.square()
    return torch.where(mean * math.pi < unit.squeeze(-1), below, square / 6)


def whole_levels(values: Tensor, unit: Tensor) -> bool:
    """Whether all values are whole multiples of a unit, but for rounding.

    Args:
        values: (..., N).
        unit: (..., 1).
    """
    levels = values.double() / unit.double()
    return bool(((levels - levels.round()).abs() < 1e-3).all())


def root(mean_square: Tensor) -> float:
    """Return the root of the mean of variances."""
    return math.sqrt(float(mean_square.double().mean())) if mean_square.numel() else 0.0
