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
    along = torch.stack([(guess[name] * seen[name]).sum() for name in guess]).sum()
    length = torch.stack([guess[name].square().sum() for name in guess]).sum()
    target = torch.stack([seen[name].square().sum() for name in guess]).sum()
    tiny = torch.finfo(length.dtype).tiny
    return 1 - along / (length.clamp_min(tiny).sqrt() * target.clamp_min(tiny).sqrt())
