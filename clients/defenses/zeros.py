"""Updates with zeros in place of what is not sent, and how they are read."""

from dataclasses import replace

import torch
from torch import Tensor

from attacks.defense import surviving
from attacks.observation import Kind, Knowledge, Observation, Tensors, delta_of


def moved(seen: Observation) -> Observation:
    """Return `seen` as what defenses changed: new weights become how far they moved.

    New weights stay what they are where those in force were not heard.
    """
    if seen.kind is not Kind.WEIGHTS or seen.weights is None:
        return seen
    return replace(seen, kind=Kind.DELTA, update=delta_of(seen))


def smallest(values: Tensor, count: int) -> Tensor:
    """Return True at the `count` entries of smallest magnitude, bool, shaped like `values`.

    Of equal magnitudes, those that stand first: the number is exact on every device.
    """
    if count <= 0:
        return torch.zeros_like(values, dtype=torch.bool)
    magnitude = values.abs().flatten()
    if count >= magnitude.numel():
        return torch.ones_like(values, dtype=torch.bool)
    threshold = magnitude.kthvalue(count).values
    below = magnitude < threshold
    tied = magnitude == threshold
    chosen = below | (tied & (tied.cumsum(0) <= count - below.sum()))
    return chosen.reshape(values.shape)


def smallest_of_all(update: Tensors, count: int) -> dict[str, Tensor]:
    """Return True at the `count` entries of smallest magnitude in all tensors together, by name."""
    flat = torch.cat([tensor.flatten() for tensor in update.values()])
    parts = torch.split(smallest(flat, count), [tensor.numel() for tensor in update.values()])
    return {
        name: part.reshape(tensor.shape)
        for (name, tensor), part in zip(update.items(), parts, strict=True)
    }


def zero_share(update: Tensors) -> float:
    """Return the share of all coordinates that are zero."""
    count = sum(tensor.numel() for tensor in update.values())
    zeros = sum(int(tensor.eq(0).sum()) for tensor in update.values())
    return zeros / max(count, 1)


def sent_of(update: Tensors, known: Knowledge, dropped: Tensors) -> dict[str, Tensor]:
    """Return True where a coordinate was sent, bool, by name.

    What is not zero was sent. Where noise that was added later covers the zeros, `dropped` says
    which coordinates were most likely not.

    Args:
        update: What was heard.
        known: Its noise is that of later links of the chain.
        dropped: The guess, by name.
    """
    noise = {} if known.noise is None else known.noise.deviation
    masks = surviving(update)
    return {
        name: ~dropped[name] if noise.get(name, 0.0) and bool(mask.all()) else mask
        for name, mask in masks.items()
    }
