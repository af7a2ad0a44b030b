"""How well a gradient agrees with signs.

For updates of which the signs alone are known, as those of signSGD (Bernstein et al., 2018,
https://arxiv.org/abs/1802.04434).
"""

import torch
from torch import Tensor

from attacks.observation import Tensors


def sign_distance(guess: Tensors, seen: Tensors) -> Tensor:
    """Return the share of a gradient's magnitude that has the wrong sign, in [0, 1].

    The length of the guess does not count, nor magnitudes of what was seen. Coordinates where that
    is zero are left out; where a gradient is zero everywhere else, half of it is wrong. Tensors
    count by their coordinates, each at its own scale: a sign of a layer with small gradients says
    as much as any other.

    Args:
        guess: Gradient of the guess, by parameter name; differentiable.
        seen: Values whose signs are known, with at least the same names.
    """
    shares, counts = [], []
    for name, tensor in guess.items():
        signs = torch.sign(seen[name]).to(tensor)
        size = (tensor.abs() * signs.abs()).sum()
        wrong = (-tensor * signs).clamp_min(0).sum()
        tiny = torch.finfo(tensor.dtype).tiny
        shares.append((wrong + tiny / 2) / (size + tiny))
        counts.append(signs.abs().sum())
    weights = torch.stack(counts)
    return (torch.stack(shares) * weights).sum() / weights.sum().clamp_min(1)
