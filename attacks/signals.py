"""What is known at one place of a chain of layers that is undone from the top, and what was heard.

V stands for the number of victims of the same weights. At every place three things are carried:
what flows there, how sure that is, and the loss's derivative there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.network import Layer
from attacks.observation import Tensors

ROUNDING = 3e-7
"""Relative error of an entry of a float32 gradient, which is a sum of rounded products."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Signal:
    """What is known at one place of the chain, float64, (V, ...) like the examples there.

    Attributes:
        value: What flows there.
        error: Standard deviation of the error of `value`; infinite where nothing is known.
        delta: Derivative of the loss with respect to `value`.
        delta_error: Standard deviation of the error of `delta`.
        at_most: True where `value` is an upper bound only; None when nowhere.
        notes: Per victim, how well the layer above could be inverted, "" for nothing to say; None
            for layers that lose nothing.
    """

    value: Tensor
    error: Tensor
    delta: Tensor
    delta_error: Tensor
    at_most: Tensor | None = None
    notes: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Heard:
    """What every layer's inversion may use.

    Attributes:
        gradient: The gradients, float64, (V, ...) by parameter name, zero where not heard.
        masks: True where a coordinate was heard, for those not heard completely.
        noise: Standard deviation of noise in each, beyond rounding, (V,).
        is_whole: Whether everything was heard, without noise: then a layer that is not determined
            is the architecture's doing, and no guess is made.
        lowest: Name of the lowest layer with weights: its input may be known in part, as nothing
            is built on it.
        head: Name of the classifier, whose outputs are known up to a constant; None when it was
            not entered by it.
        centre: What each layer receives when the image is mid-grey, by layer name.
        rngs: One generator per victim.
    """

    gradient: Tensors
    masks: Tensors
    noise: Tensor
    is_whole: bool
    lowest: str | None
    head: str | None
    centre: Tensors
    rngs: Sequence[torch.Generator]


Undo = Callable[[Layer, Signal, Heard], Signal]
"""(layer, what is known at its output, what was heard) -> what is known at its input."""


def reshaped(signal: Signal, shape: tuple[int, ...]) -> Signal:
    """Return the signal with examples of another shape."""
    whole = (len(signal.value), *shape)
    return Signal(
        value=signal.value.reshape(whole),
        error=signal.error.reshape(whole),
        delta=signal.delta.reshape(whole),
        delta_error=signal.delta_error.reshape(whole),
        at_most=None if signal.at_most is None else signal.at_most.reshape(whole),
    )


def gradient_error(gradient: Tensor, noise: Tensor) -> Tensor:
    """Return the standard deviation, (V,), of the error of gradients (V, ...)."""
    return (ROUNDING * gradient.flatten(1).square().mean(1).sqrt()).maximum(noise)
