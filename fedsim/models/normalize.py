"""Normalisation as a part of the model, so that inputs stay pixels in [0, 1] everywhere else."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Subtract a mean and divide by a standard deviation, per channel.

    The two are constants of the architecture: buffers, so that they follow the model to its
    device, but not part of the state dict, so that nobody sends or averages them.

    Args:
        mean: One value per channel, in pixels.
        std: One value per channel, in pixels, above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (inputs - mean) / std, shape (B, C, H, W)."""
        return (inputs - self.mean) / self.std
