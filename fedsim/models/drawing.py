"""Initial weights from a generator of ours, never from the global one."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from attacks.global_generators import global_generators


@contextmanager
def weights_from(rng: torch.Generator) -> Iterator[None]:
    """Let modules built inside draw their initial weights from `rng`.

    PyTorch's layers draw from the global CPU generator; it is reseeded from `rng` and put back
    afterwards.

    Args:
        rng: A CPU generator; it advances by one draw, whatever is built.
    """
    seed = int(torch.randint(2**62, (), generator=rng))
    with global_generators(seed):
        yield


def draw_uniform(model: nn.Module, half_width: float, rng: torch.Generator) -> None:
    """Redraw every weight and bias of `model` in place from U(-half_width, half_width)."""
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -half_width, half_width, generator=rng)
