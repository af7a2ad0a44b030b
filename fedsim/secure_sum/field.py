"""Integers modulo a power of two, and how updates become such integers and sums come back."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from attacks.observation import Tensors

Elements = np.ndarray[Any, np.dtype[np.unsignedinteger[Any]]]
"""Integers modulo 2^32 (uint32) or modulo 2^64 (uint64); numpy's arithmetic wraps around."""

LOSS_CLIP = 64.0
"""A larger training loss counts as this."""


def element_type(field_bits: int) -> np.dtype[np.unsignedinteger[Any]]:
    """Return the type of an element, in the byte order of the wire."""
    return np.dtype("<u4" if field_bits == 32 else "<u8")


@dataclass(frozen=True)
class Quantiser:
    """Turns numbers into whole multiples of a step, and back.

    Attributes:
        clip: Largest absolute value.
        bits: Bits per level, sign included.
        rounding: To the nearest level, or at random to one of the two nearest, right on average.
    """

    clip: float
    bits: int
    rounding: Literal["nearest", "stochastic"]

    @property
    def most(self) -> int:
        """The largest level."""
        return (1 << (self.bits - 1)) - 1

    @property
    def step(self) -> float:
        """The distance between two levels."""
        return self.clip / self.most

    @property
    def deviation(self) -> float:
        """Standard deviation of one client's rounding error, where values do not favour levels."""
        return self.step / math.sqrt(12 if self.rounding == "nearest" else 6)

    @property
    def bound(self) -> float:
        """Largest error of a value that is not clipped."""
        return self.step * (0.5 if self.rounding == "nearest" else 1.0)

    def levels(self, values: Tensor, rng: torch.Generator) -> Tensor:
        """Return the levels of values, float64 whole numbers of the same shape."""
        scaled = values.detach().cpu().double().clamp(-self.clip, self.clip) / self.step
        if self.rounding == "nearest":
            return scaled.round()
        noise = torch.rand(scaled.shape, generator=rng, dtype=torch.float64)
        return (scaled + noise).floor().clamp(-self.most, self.most)

    def values(self, levels: Tensor) -> Tensor:
        """Return the values of (mean) levels, float64."""
        return levels.double() * self.step


@dataclass(frozen=True)
class Contribution:
    """What one client adds to the sum, or what all did, weighted by examples.

    Attributes:
        update: What the parameters do, by name.
        buffers: Change of the running statistics, by name; empty for models without.
        num_examples: The weight.
        train_loss: Mean training loss.
    """

    update: Tensors
    buffers: Tensors
    num_examples: int
    train_loss: float


@dataclass(frozen=True)
class Layout:
    """Where what lies in the vector that is summed: parameters, running statistics, two numbers.

    The last two are the weight itself and the weighted loss, so that neither is told of one client.

    Attributes:
        parameters: Shapes by name, in order.
        buffers: The same for running statistics.
    """

    parameters: Mapping[str, tuple[int, ...]]
    buffers: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, parameters: Tensors, buffers: Tensors) -> "Layout":
        """Return the layout of a model with these parameters and running statistics."""
        return cls(
            {name: tuple(tensor.shape) for name, tensor in parameters.items()},
            {name: tuple(tensor.shape) for name, tensor in buffers.items()},
        )

    @property
    def length(self) -> int:
        """Elements in a vector."""
        return sum(map(math.prod, [*self.parameters.values(), *self.buffers.values()])) + 2

    def parts(self, vector: Elements) -> dict[str, Elements]:
        """Return views of the parameters' and the running statistics' elements, by name."""
        found: dict[str, Elements] = {}
        place = 0
        for name, shape in (*self.parameters.items(), *self.buffers.items()):
            found[name] = vector[place : place + math.prod(shape)].reshape(shape)
            place += math.prod(shape)
        return found


def encode(
    own: Contribution,
    layout: Layout,
    quantiser: Quantiser,
    buffer_quantiser: Quantiser,
    *,
    field_bits: int,
    rng: torch.Generator,
) -> Elements:
    """Return a client's vector: weighted levels, in two's complement, (layout.length,)."""
    loss = Quantiser(LOSS_CLIP, quantiser.bits, "nearest")
    levels = [
        *(quantiser.levels(own.update[name], rng).flatten() for name in layout.parameters),
        *(buffer_quantiser.levels(own.buffers[name], rng).flatten() for name in layout.buffers),
        torch.ones(1, dtype=torch.float64),
        loss.levels(torch.tensor([own.train_loss]), rng),
    ]
    weighted = torch.cat(levels).to(torch.int64) * own.num_examples
    return weighted.numpy().astype(element_type(field_bits))


def decode(
    total: Elements, layout: Layout, quantiser: Quantiser, buffer_quantiser: Quantiser
) -> Contribution | None:
    """Return the mean behind a sum, weighted by examples; None if there are no examples behind it.

    Args:
        total: Sum of the vectors of all clients, (layout.length,).
        layout: Of the vectors.
        quantiser: Of the parameters.
        buffer_quantiser: Of the running statistics.
    """
    signed = np.dtype("<i4" if total.dtype.itemsize == 4 else "<i8")
    sums = torch.from_numpy(total.view(signed).astype(np.int64))
    num_examples = int(sums[-2])
    if num_examples < 1:
        return None
    levels = layout.parts(sums.double().div(num_examples).numpy())
    loss = Quantiser(LOSS_CLIP, quantiser.bits, "nearest")
    means = {name: torch.from_numpy(part) for name, part in levels.items()}
    return Contribution(
        update={name: quantiser.values(means[name]) for name in layout.parameters},
        buffers={name: buffer_quantiser.values(means[name]) for name in layout.buffers},
        num_examples=num_examples,
        train_loss=float(loss.values(sums[-1:].double() / num_examples)),
    )
