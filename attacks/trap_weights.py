"""Trap weights (Boenisch et al., 2023, https://arxiv.org/abs/2112.02918).

The server draws the rows of the first linear layer anew: half of each row, chosen at random, is
negative; the other half are the same numbers, positive and a little smaller. Nearly every image
then leaves nearly every neuron silent, and a neuron that fires for one example of the batch alone
has it in its row of the gradient: x = dW_i / db_i.

Differs from the paper. The scale of the positive half is not fixed but found, so that a neuron
fires for one example per batch, on the public sample or on noise that looks like one. Rows that
hold one example are told from mixtures by recomputing what was heard (`attacks.proof`). Where
examples cannot be recomputed alone, images that two rows show alike are returned, and nothing is
proved: examples of one class can be mixed in the same proportion in two rows. A normalisation in
front of the layer is taken into account. The variant for convolutional networks, which passes the
image through kernels made for that, is left out.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.active import KeepsArchitecture
from attacks.first_layer import layer_gradient
from attacks.isolated import best_first, inside
from attacks.linear import layer_that_sees_the_input
from attacks.network import known_architecture, trace, with_weights
from attacks.observation import (
    AttackFailed,
    Budget,
    Knowledge,
    Observation,
    Reconstruction,
    Tensors,
    gradient_of,
    only,
    require_one_step,
)
from attacks.proof import Witness, explained_by, recomputable
from attacks.stand_ins import images_to_plan_with
from attacks.threats import WHITE_BOX, Capability

_SILENT = 1e-6
"""A bias gradient below this fraction of the largest is rounding."""
_SAME = 1e-3
"""Root mean square difference, as a fraction of the range, up to which two images are the same."""
_PLANNED = 256
"""Images of noise to plan with, where there is no public sample."""


@dataclass(frozen=True, kw_only=True)
class TrapWeights(KeepsArchitecture):
    """Make first-layer neurons fire for one example of a batch, and read it off their rows.

    Attributes:
        scale: The positive half of a row, relative to the negative; None finds the scale at which
            a neuron fires for one example of a batch.
        spread: Standard deviation of the negative half before its sign; None keeps that of the
            layer's weights in force.
    """

    scale: float | None = None
    spread: float | None = None

    def __post_init__(self) -> None:
        if self.scale is not None and not 0 < self.scale <= 1:
            raise ValueError(f"scale must be in (0, 1], got {self.scale}")
        if self.spread is not None and not 0 < self.spread < math.inf:
            raise ValueError(f"spread must be above 0, got {self.spread}")

    @property
    def needs(self) -> frozenset[Capability]:
        """What it takes to recompute a gradient, and to send other weights."""
        return WHITE_BOX | {Capability.CHANGE_WEIGHTS}

    def check(self, known: Knowledge) -> None:
        """Refuse several steps, and models without a linear layer that sees the image."""
        require_one_step(known.recipe)
        layer_that_sees_the_input(trace(*known_architecture(known)))

    def tamper(
        self,
        weights: Tensors,
        known: Knowledge,
        *,
        receiver: str,  # noqa: ARG002 - everybody is sent the same
        target: str,  # noqa: ARG002
        earlier: Sequence[Observation],  # noqa: ARG002 - nothing is learnt from round to round
        rng: torch.Generator,
    ) -> dict[str, Tensor]:
        """Return `weights` with traps in the first linear layer."""
        layer, constants = layer_that_sees_the_input(trace(*known_architecture(known)))
        names = layer.parameter("weight"), layer.parameter("bias")
        old = weights[names[0]].detach().cpu().double()
        negative, positive = _halves(old.shape, rng)
        spread = float(old.std()) if self.spread is None else self.spread
        scale = self.scale
        if scale is None:
            images = images_to_plan_with(known, count=_PLANNED, rng=rng).flatten(1).double()
            scale = _scale_for(images @ negative.T, images @ positive.T, 1 / _batch_size(known))
        rows = spread * (scale * positive - negative)
        bias = torch.zeros(len(rows), dtype=rows.dtype)
        if constants is not None:  # the layer sees (x - mean) / std
            _, shape = known_architecture(known)
            mean, std = (c.cpu().double().expand(shape).flatten() for c in constants)
            bias, rows = rows @ mean, rows * std
        changed = dict(weights)
        for name, value in zip(names, (rows, bias), strict=True):
            changed[name] = value.to(weights[name])
        return changed

    def __call__(
        self,
        seen: Observation | Sequence[Observation],
        known: Knowledge,
        *,
        rng: torch.Generator,
        budget: Budget | None = None,  # noqa: ARG002 - takes a second
    ) -> Reconstruction:
        """Read off the images that were alone in some row.

        Shapes:
            returns .inputs: (M, C, H, W), M up to B
            returns .labels: (M,) int64, or None where examples cannot be recomputed alone
            returns .certified: (M,) bool, or None where nothing can be proved; those not certified
                explain their own row, which a mixture may do by chance

        The notes tell `fired`, the rows that heard something, and `alone`, those that heard one
        example.

        Raises:
            AttackFailed: No linear layer sees the image, it was not heard, or no row heard one
                example alone.
        """
        start = time.monotonic()
        seen = only(seen)
        model, input_shape = known_architecture(known)
        layer, constants = layer_that_sees_the_input(trace(model, input_shape))
        heard = gradient_of(seen, known.recipe)
        weight, bias, rows_heard = layer_gradient(heard, layer.name, seen.visible)
        largest = bias.abs().max()
        rows = (rows_heard & (bias.abs() > _SILENT * largest)).nonzero().squeeze(1)
        images = (weight[rows] / bias[rows, None]).view(-1, *input_shape)
        if constants is not None:
            mean, std = (constant.to(images) for constant in constants)
            images = images * std + mean
        low, high = known.input_range
        keep = inside(images, known.input_range)
        fired, rows, images = len(rows), rows[keep], images[keep].clamp(low, high)
        labels: Tensor | None = None
        provable = recomputable(model, known.recipe) and seen.weights is not None
        if provable and seen.weights is not None:
            found = explained_by(
                with_weights(model, seen.weights, seen.buffers),
                images,
                bias[rows],
                rows,
                layer=layer.name,
                known=known,
                rounding=_SILENT * largest,
                witness=Witness(
                    layer=layer.name,
                    gradient=torch.cat([weight, bias[:, None]], 1),
                    heard=rows_heard,
                ),
                rng=rng,
            )
            fits, proved, labels = found.fits, found.proved, found.labels
        else:
            fits = proved = _seen_twice(images, _SAME * (high - low))
        if not bool(fits.any()):
            raise AttackFailed(
                f"{fired} rows of layer '{layer.name}' heard something, none one example alone"
            )
        strongest = best_first(fits, proved, bias[rows].abs())
        strongest = strongest[fits[strongest]]
        chosen = strongest[_first_of_each(images[strongest], _SAME * (high - low))]
        chosen = chosen[: known.batch_size]
        return Reconstruction(
            inputs=images[chosen].to(heard[layer.parameter("weight")].dtype),
            labels=None if labels is None else labels[chosen],
            seconds=time.monotonic() - start,
            certified=proved[chosen] if provable else None,
            notes={"fired": float(fired), "alone": float(fits.sum())},
        )


def _batch_size(known: Knowledge) -> int:
    if known.batch_size is None:
        raise AttackFailed("setting traps needs the batch size; grant 'batch-size'")
    return known.batch_size


def _halves(shape: torch.Size, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return two matrices (m, D), zero in complementary halves, with the same numbers in rows."""
    rows, width = shape
    half = width // 2
    order = torch.rand(rows, width, generator=rng).argsort(1)
    sizes = torch.randn(rows, half, generator=rng, dtype=torch.float64).abs()
    blank = torch.zeros(rows, width, dtype=torch.float64)
    negative = blank.scatter(1, order[:, :half], sizes)
    return negative, blank.scatter(1, order[:, half : 2 * half], sizes)


def _scale_for(negative: Tensor, positive: Tensor, rate: float) -> float:
    """Return the scale at which positive * scale > negative in a fraction `rate` of entries."""
    ratio = (negative / positive.clamp_min(1e-12)).flatten().sort().values
    return min(1.0, float(ratio[min(int(rate * len(ratio)), len(ratio) - 1)]))


def _seen_twice(images: Tensor, tolerance: float) -> Tensor:
    """Whether another row shows the same image, (M,) bool."""
    return (_distances(images) <= tolerance).sum(1) > 1


def _first_of_each(images: Tensor, tolerance: float) -> Tensor:
    """Return the indices of images that are like none before them."""
    same = _distances(images) <= tolerance
    return (same.tril(-1).sum(1) == 0).nonzero().squeeze(1)


def _distances(images: Tensor) -> Tensor:
    """Return root mean square differences, (M, M)."""
    flat = images.flatten(1)
    exact = "donot_use_mm_for_euclid_dist"
    between: Tensor = torch.cdist(flat, flat, compute_mode=exact)
    between /= flat.shape[1] ** 0.5
    return between
