"""Where a search for inputs begins.

clouds       random inputs with the power of natural images (`attacks.matching.coordinates`)
normal       every pixel N(0, 1), as DLG starts
patterned    a small random patch, tiled (CPL; Wei et al., 2020, https://arxiv.org/abs/2004.10397)
grey         the middle of the range, with a trace of noise
closed-form  what the layer-by-layer solution gives (`attacks.closed_form`): one example only;
             clouds where it cannot be had, and for further restarts
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from attacks.matching.coordinates import Coordinates
from attacks.matching.victim import Victim
from attacks.observation import AttackFailed
from attacks.peeling import peel

Start = Literal["clouds", "normal", "patterned", "grey", "closed-form"]

STARTS: tuple[str, ...] = get_args(Start)

_PATCH = 4
"""Patches along a side of an image."""
_TRACE = 0.01
"""Standard deviation of the noise on grey, as a fraction of the range."""


def starting_inputs(
    start: Start,
    batch_size: int,
    input_shape: tuple[int, ...],
    input_range: tuple[float, float],
    *,
    rng: torch.Generator,
) -> Tensor:
    """Draw inputs (B, *input_shape) to start from, on the CPU, in double precision.

    They are not clamped to the range. "closed-form" draws clouds: see `warm_start`.

    Args:
        start: Which kind.
        batch_size: B.
        input_shape: Shape of one input.
        input_range: Lowest and highest value of an input.
        rng: Draws them.
    """
    low, high = input_range
    shape = (batch_size, *input_shape)
    if start == "normal":
        return torch.randn(shape, generator=rng, dtype=torch.float64)
    if start == "grey":
        noise = torch.randn(shape, generator=rng, dtype=torch.float64)
        return (low + high) / 2 + _TRACE * (high - low) * noise
    if start == "patterned":
        patch = [
            -(-length // _PATCH) if axis >= len(input_shape) - 2 else length
            for axis, length in enumerate(input_shape)
        ]
        drawn = torch.rand(batch_size, *patch, generator=rng, dtype=torch.float64)
        for axis, length in enumerate(shape):
            if drawn.shape[axis] < length:
                copies = [1] * len(shape)
                copies[axis] = _PATCH
                drawn = drawn.tile(copies).narrow(axis, 0, length)
        return low + (high - low) * drawn
    double = torch.empty(0, dtype=torch.float64)
    coordinates = Coordinates(input_shape, input_range, like=double)
    return coordinates.inputs(coordinates.clouds(batch_size, rng=rng))


def warm_start(victim: Victim, *, rng: torch.Generator) -> Tensor | None:
    """Return what solving layer by layer gives, (1, *input_shape); None where it gives nothing.

    From a gradient that was heard in part, or with noise, comes the best guess, however bad: good
    enough to start from.
    """
    if victim.batch_size != 1 or victim.num_steps > 1:
        return None
    training = victim.model.training
    try:
        found = peel(
            victim.model.eval(),
            victim.target,
            input_shape=victim.input_shape,
            input_range=victim.input_range,
            rng=rng,
            visible={name: mask.bool() for name, mask in victim.visible.items()},
        )
    except AttackFailed:
        return None
    finally:
        victim.model.train(training)
    return found.inputs if bool(found.inputs.isfinite().all()) else None
