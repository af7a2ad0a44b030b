"""How far one gradient is from another."""

import torch
from torch import Tensor

from attacks.observation import Tensors


def squared_distance(guess: Tensors, seen: Tensors) -> Tensor:
    """Return the squared Euclidean distance over all tensors together, as in DLG.

    Args:
        guess: Gradient of the guess, by parameter name.
        seen: The gradient to match, with at least the same names.
    """
    return torch.stack([(guess[name] - seen[name]).square().sum() for name in guess]).sum()


def cosine_distance(guess: Tensors, seen: Tensors) -> Tensor:
    """Return 1 - cos of the angle between two gradients, all tensors as one vector, in [0, 2].

    A zero gradient has no direction: the distance is then 1.

    Args:
        guess: Gradient of the guess, by parameter name.
        seen: The gradient to match, with at least the same names.
    """
    one, other = _flat(guess, guess), _flat(seen, guess)  # a few large operations, not many small
    tiny = torch.finfo(one.dtype).tiny
    lengths = [(flat @ flat).clamp_min(tiny).sqrt() for flat in (one, other)]
    return 1 - (one @ other) / (lengths[0] * lengths[1])


def chord(guess: Tensors, seen: Tensors) -> Tensor:
    """Return the distance of two gradients' directions over the root of 2, in [0, sqrt(2)].

    That is the root of `cosine_distance`, without the rounding of 1 - cos: near 0 it tells apart
    what single precision can, down to about 1e-7, where it is rounded off so that it has a slope
    everywhere. A zero gradient has no direction: the chord is then about 0.7.

    Args:
        guess: Gradient of the guess, by parameter name.
        seen: The gradient to match, with at least the same names.
    """
    point = _flat(guess, guess)
    one, other = point.detach(), _flat(seen, guess)
    tiny = torch.finfo(one.dtype).tiny
    lengths = [(flat @ flat).clamp_min(tiny).sqrt() for flat in (one, other)]
    unit = one * (1 / lengths[0])
    apart = torch.addcmul(unit, other, -1 / lengths[1])
    square = apart @ apart
    value = (square / 2 + torch.finfo(one.dtype).eps ** 2).sqrt()
    # The slope at `one`, by hand: half the passes over a vector as long as the model.
    slope = torch.addcmul(apart, unit, -square / 2)  # without what only makes `one` longer
    linear = (point @ slope) / (2 * value * lengths[0])
    return value + (linear - linear.detach())


def _flat(tensors: Tensors, names: Tensors) -> Tensor:
    """Return the tensors of these names as one vector."""
    return torch.cat([tensors[name].flatten() for name in names])
