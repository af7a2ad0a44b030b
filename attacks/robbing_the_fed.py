"""Robbing the Fed (Fowl et al., 2022, https://arxiv.org/abs/2110.13057).

The server puts a block in front of the model: a linear layer whose rows all measure the same thing,
mean brightness, with biases at the quantiles of that measurement; ReLU; and a linear layer back to
the image. Row i hears every image brighter than threshold i, so the difference of neighbouring rows
hears only the images between the two: x = (dW_i - dW_(i+1)) / (db_i - db_(i+1)) for a bin that
holds one, whatever follows the block. Averaging over many clients does not help them.

Differs from the paper. The block adds to the image instead of replacing it, and adds nothing
outside attacked rounds, so that the model learns as before. Which bins hold one image is decided
by recomputing what was heard (`attacks.proof`), which gives the label as well: in the bin, and, as
a proof, in the way back to the image, whose gradient has an equation per pixel. Bins with several
are not returned unless asked for. With a public sample the thresholds are its smoothed quantiles.
The layer is scaled down, so that an update sent as new weights loses little to rounding. The
sparse variant for several local steps is left out.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, prod
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from attacks.isolated import best_first, inside
from attacks.network import all_visible, known_architecture, with_weights
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
from attacks.threats import WHITE_BOX, Capability

_Law = Literal["auto", "gaussian", "laplace"]
_SCALE = 1e-3
"""Of the measuring layer: small weights, large gradients, little rounding in their sum."""
_GAIN = 0.5
"""Largest addition to a pixel, as a fraction of the range of the measurement."""
_EMPTY = 1e-6
"""A bin whose bias gradient is below this fraction of the largest holds nothing but rounding."""
_ROUNDING = 3e-7
"""Of a bin's bias gradient, as a fraction of the largest: single precision, summed."""
_DRAWS = 20_000
"""Draws from the smoothed public sample whose quantiles are taken."""


class Imprint(nn.Module):
    """Image in, image out; between the two, a layer of thresholds on one measurement.

    Args:
        input_shape: (C, H, W).
        bins: k, the number of thresholds.
    """

    def __init__(self, input_shape: tuple[int, ...], bins: int) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.measure = nn.Linear(prod(input_shape), bins)
        self.relu = nn.ReLU()
        self.back = nn.Linear(bins, prod(input_shape), bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        above = self.relu(self.measure(self.flatten(images)))
        added: Tensor = self.back(above)
        return images + added.view_as(images)


@dataclass(frozen=True, kw_only=True)
class RobbingTheFed:
    """Sort a batch into bins by brightness, and read off every bin that holds one image.

    Attributes:
        bins: k, thresholds on the measurement.
        law: What the measurement is taken to follow. "auto": the public sample where granted, a
            Gaussian otherwise. "gaussian" and "laplace" have `centre` and `spread`.
        centre: Mean brightness expected, as a fraction of the range.
        spread: Its standard deviation.
        mixtures: Whether to return what bins with several images show as well, not certified.
    """

    bins: int = 128
    law: _Law = "auto"
    centre: float = 0.47
    spread: float = 0.13
    mixtures: bool = False

    def __post_init__(self) -> None:
        if not self.bins >= 2:
            raise ValueError(f"bins must be at least 2, got {self.bins}")
        if not 0 < self.spread < inf:
            raise ValueError(f"spread must be above 0, got {self.spread}")
        if not 0 <= self.centre <= 1:
            raise ValueError(f"centre must be from 0 to 1, got {self.centre}")
        if self.law not in get_args(_Law):
            expected = ", ".join(get_args(_Law))
            raise ValueError(f"law must be one of {expected}, got {self.law!r}")

    @property
    def needs(self) -> frozenset[Capability]:
        """What it takes to recompute a gradient, and to send other weights and another model."""
        return WHITE_BOX | {Capability.CHANGE_WEIGHTS, Capability.CHANGE_ARCHITECTURE}

    def check(self, known: Knowledge) -> None:
        """Refuse several steps."""
        require_one_step(known.recipe)

    def implant(
        self,
        model: nn.Module,
        input_shape: tuple[int, ...],
        num_classes: int,  # noqa: ARG002 - the block is the same for any
    ) -> nn.Module:
        """Return `model` with a block in front, which adds nothing until it is tampered with."""
        block = Imprint(input_shape, self.bins)
        thresholds = self._from_law()
        with torch.no_grad():
            block.measure.weight.fill_(_SCALE / prod(input_shape))
            block.measure.bias.copy_(-_SCALE * thresholds)
            block.back.weight.zero_()
        block = block.to(next(model.parameters(), torch.empty(0)))
        if isinstance(model, nn.Sequential):  # the names of its parameters stay
            return nn.Sequential(OrderedDict(imprint=block, **dict(model.named_children())))
        return nn.Sequential(OrderedDict(imprint=block, network=model))

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
        """Return `weights` with the block's thresholds where the measurement is expected."""
        name = _imprint(known)
        changed = dict(weights)
        measure, bias, back = (weights[f"{name}.{part}"] for part in _PARTS)
        thresholds = self._thresholds(known, rng).to(bias)
        reach = _SCALE * float(thresholds[-1] - thresholds[0]) * len(bias)
        low, high = known.input_range
        changed[f"{name}.{_PARTS[0]}"] = torch.full_like(measure, _SCALE / measure.shape[1])
        changed[f"{name}.{_PARTS[1]}"] = -_SCALE * thresholds
        changed[f"{name}.{_PARTS[2]}"] = torch.full_like(back, _GAIN * (high - low) / reach)
        return changed

    def _thresholds(self, known: Knowledge, rng: torch.Generator) -> Tensor:
        """Return the thresholds in ascending order, (k,) float64."""
        low, high = known.input_range
        if self.law != "auto" or known.public_sample is None:
            return low + (high - low) * self._from_law()
        seen = known.public_sample.flatten(1).double().mean(1).cpu()
        width = 1.06 * float(seen.std()) * len(seen) ** -0.2  # Silverman's rule
        if not width > 0:
            raise AttackFailed("all images of the public sample are equally bright")
        chosen = seen[torch.randint(len(seen), (_DRAWS,), generator=rng)]
        draws = chosen + width * torch.randn(_DRAWS, generator=rng, dtype=torch.float64)
        thresholds: Tensor = draws.quantile(self._levels())
        return thresholds

    def _from_law(self) -> Tensor:
        laws: dict[str, torch.distributions.Distribution] = {
            "laplace": torch.distributions.Laplace(self.centre, self.spread / 2**0.5)
        }
        law = laws.get(self.law, torch.distributions.Normal(self.centre, self.spread))
        thresholds: Tensor = law.icdf(self._levels())
        return thresholds

    def _levels(self) -> Tensor:
        return torch.arange(1, self.bins + 1, dtype=torch.float64) / (self.bins + 1)

    def __call__(
        self,
        seen: Observation | Sequence[Observation],
        known: Knowledge,
        *,
        rng: torch.Generator,
        budget: Budget | None = None,  # noqa: ARG002 - takes a second
    ) -> Reconstruction:
        """Read off the images that are alone in their bin.

        Shapes:
            returns .inputs: (M, C, H, W), M up to B
            returns .labels: (M,) int64, or None where nothing can be proved
            returns .certified: (M,) bool, or None where nothing can be proved; those not certified
                explain their own bin, which a mixture may do by chance

        The notes tell `occupied`, the bins in which something was heard.

        Raises:
            AttackFailed: The model has no block, it was not heard completely, or no bin holds one
                image alone.
        """
        start = time.monotonic()
        seen = only(seen)
        model, input_shape = known_architecture(known)
        block = _imprint(known)
        names = [f"{block}.{part}" for part in _PARTS[:2]]
        gradient = gradient_of(seen, known.recipe)
        if seen.weights is None or names[1] not in seen.weights:
            raise AttackFailed("the thresholds in force were not heard")
        if any(name not in gradient for name in names) or not all_visible(seen.visible, *names):
            raise AttackFailed("the gradient of the implanted block was not heard completely")
        weight, bias = (gradient[name].double() for name in names)
        if not bool(weight.isfinite().all() and bias.isfinite().all()):
            raise AttackFailed("the gradient of the implanted block is not finite")
        if weight.dim() != 2 or weight.shape[1] != math.prod(input_shape):
            raise AttackFailed(
                f"the gradient heard of the implanted block has shape {tuple(weight.shape)}, which "
                f"does not fit inputs of shape {tuple(input_shape)}"
            )
        order = (-seen.weights[names[1]].double()).argsort()
        weight, bias = _differences(weight[order]), _differences(bias[order])
        largest = gradient[names[1]].double().abs().max()
        occupied = (bias.abs() > _EMPTY * largest).nonzero().squeeze(1)
        if not len(occupied):
            raise AttackFailed("no bin holds an image: all are darker than the lowest threshold")
        found = (weight[occupied] / bias[occupied, None]).view(-1, *input_shape)
        low, high = known.input_range
        plausible = inside(found, known.input_range)
        images = found.clamp(low, high).to(gradient[names[0]].dtype)
        good, proved, labels = plausible, None, None
        witness = _back(gradient, f"{block}.{_PARTS[2]}", seen.visible)
        if witness is not None and recomputable(model, known.recipe):
            explained = explained_by(
                with_weights(model, seen.weights, seen.buffers),
                images,
                bias[occupied],
                order[occupied],
                layer=f"{block}.measure",
                known=known,
                rounding=_ROUNDING * largest,
                witness=witness,
                rng=rng,
            )
            good, labels = explained.fits & plausible, explained.labels
            proved = explained.proved & plausible
        sure = good if proved is None else proved
        kept = best_first(good, sure, bias[occupied].abs())[: known.batch_size]
        kept = kept if self.mixtures else kept[good[kept]]
        if not len(kept):
            raise AttackFailed(
                f"none of {len(occupied)} bins with something in them holds one image alone"
            )
        return Reconstruction(
            inputs=images[kept],
            labels=None if labels is None else labels[kept],
            seconds=time.monotonic() - start,
            certified=None if proved is None else proved[kept],
            notes={"occupied": float(len(occupied)), "in_range": float(plausible.sum())},
        )


_PARTS = ("measure.weight", "measure.bias", "back.weight")


def expected_hits(probabilities: Tensor, batch_size: int) -> float:
    """Return the number of bins expected to hold exactly one of `batch_size` images.

    Args:
        probabilities: Of each bin, for one image, (k,); they need not sum to 1.
        batch_size: B.
    """
    p = probabilities.double()
    return float((batch_size * p * (1 - p) ** (batch_size - 1)).sum())


def _imprint(known: Knowledge) -> str:
    """Return the name of the implanted block."""
    model, _ = known_architecture(known)
    for name, module in model.named_modules():
        if isinstance(module, Imprint):
            return str(name)
    raise AttackFailed("the model has no implanted block; the server has to `implant` it first")


def _back(gradient: Tensors, name: str, visible: Tensors | None) -> Witness | None:
    """Return what the way back to the image heard, or None where nothing was heard.

    An image's gradient there is that by its own pixels: as many equations as pixels.
    """
    if name not in gradient:
        return None
    back = gradient[name].double()
    mask = None if visible is None else visible.get(name)
    heard = back.isfinite().all(1)
    if mask is not None:
        heard &= mask.to(back.device).bool().all(1)
    back = torch.where(heard[:, None], back, 0.0)
    return Witness(layer=name.removesuffix(".weight"), gradient=back, heard=heard)


def _differences(rows: Tensor) -> Tensor:
    """Return each row less the next; the last one as it is."""
    return torch.cat([rows[:-1] - rows[1:], rows[-1:]])
