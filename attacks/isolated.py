"""Images that a malicious server read off single rows of a layer: which to keep, in which order."""

import torch
from torch import Tensor

_SLACK = 1e-2
"""How far a pixel may leave the range, as a fraction of it, when an image is read off."""


def inside(images: Tensor, input_range: tuple[float, float]) -> Tensor:
    """Whether images (M, ...) can be images, as far as rounding tells, (M,) bool."""
    low, high = input_range
    excursion = torch.maximum(low - images, images - high).flatten(1).amax(1)
    return excursion <= _SLACK * (high - low)


def best_first(good: Tensor, sure: Tensor, strength: Tensor) -> Tensor:
    """Return indices, sure ones first, then good ones, strong ones first among equals.

    Everything that is sure is good.

    Args:
        good: (M,) bool.
        sure: (M,) bool.
        strength: (M,).
    """
    order = strength.argsort(descending=True, stable=True)
    rank = -(good[order].to(torch.int8) + sure[order].to(torch.int8))
    return order[rank.argsort(stable=True)]
