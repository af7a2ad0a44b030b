"""One image read off a linear layer that sees it (Phong et al., 2017, eprint.iacr.org/2017/715).

For y = W x + b and one example, dW_i = db_i x for every row i: each row of the weight gradient is
the image, scaled by the bias gradient (Geiping et al., 2020, Proposition 3.1,
https://arxiv.org/abs/2003.14053). Whatever comes after the layer does not matter.

Differs from the papers: all rows together, in least squares, x = sum db_i dW_i / sum db_i^2. Under
noise of standard deviation s on every entry the error per pixel is s / |db|, so that PSNR is
-20 log10(s / |db|) for pixels in [0, 1], as long as s is small against the entries of db. Noise in
db itself is power that is not the bias gradient's; it is estimated from how much the rows disagree,
and taken off (regression with errors in the variables; Fuller, 1987, Measurement Error Models).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.labels import read_labels
from attacks.network import (
    Layer,
    Trace,
    known_architecture,
    normalisation,
    same_values,
    trace,
)
from attacks.observation import (
    AttackFailed,
    Budget,
    Knowledge,
    Observation,
    Reconstruction,
    gradient_of,
    only,
    require_one_step,
)
from attacks.threats import Capability

_LEAST_OWN = 0.1
"""Least share of the bias gradient's power that is taken for its own, however noisy it looks."""


@dataclass(frozen=True, kw_only=True)
class LinearInversion:
    """Read the image off the first linear layer that sees it, and the label off the last."""

    @property
    def needs(self) -> frozenset[Capability]:
        """The architecture, the inputs' shape and range, and that there is one; no weights."""
        return frozenset({Capability.ARCHITECTURE, Capability.INPUT_DOMAIN, Capability.BATCH_SIZE})

    def check(self, known: Knowledge) -> None:
        """Refuse several steps, several examples, and models whose linear layers see no input."""
        require_one_step(known.recipe)
        _target(known)

    def __call__(
        self,
        seen: Observation | Sequence[Observation],
        known: Knowledge,
        *,
        rng: torch.Generator,  # noqa: ARG002 - nothing is drawn
        budget: Budget | None = None,  # noqa: ARG002 - takes milliseconds
    ) -> Reconstruction:
        """Guess the image behind one update.

        Shapes:
            returns .inputs: (1, C, H, W); pixels of which no row was heard are mid-range
            returns .labels: (1,) int64, or None where the classifier was not heard

        The notes tell `excursion`, how far the image left the range before it was clamped;
        `expected_rmse`, its error as the rows' disagreement lets expect; `unseen`, pixels of
        which no row was heard.

        Raises:
            AttackFailed: More than one example, no linear layer with a bias sees the image, or
                nothing of its gradient was heard.
        """
        start = time.monotonic()
        seen = only(seen)
        traced, layer, normaliser = _target(known)
        gradient = gradient_of(seen, known.recipe)
        weight, bias = (
            _heard(name, gradient.get(name), (seen.visible or {}).get(name))
            for name in (layer.parameter("weight"), layer.parameter("bias"))
        )
        flat, error, known_pixels = _least_squares(*weight, *bias, name=layer.name)
        input_shape = traced.inputs.shape[1:]
        image, error = flat.view(input_shape), error.view(input_shape)
        if normaliser is not None:
            mean, std = (constant.to(image) for constant in normaliser)
            image, error = image * std + mean, error * std
        low, high = known.input_range
        image = torch.where(known_pixels.view(input_shape), image, (low + high) / 2)
        inputs = image.clamp(low, high)
        return Reconstruction(
            inputs=inputs[None].to(traced.inputs.dtype),
            labels=read_labels(gradient, traced, visible=seen.visible, batch_size=1),
            seconds=time.monotonic() - start,
            notes={
                "excursion": float((image - inputs).abs().max()),
                "expected_rmse": float(error.square().mean().sqrt()),
                "unseen": float((~known_pixels).sum()),
            },
        )


def _target(known: Knowledge) -> tuple[Trace, Layer, tuple[Tensor, Tensor] | None]:
    """Return the model's trace, and the layer to read the image off as below."""
    model, input_shape = known_architecture(known)
    if known.batch_size != 1:
        raise AttackFailed(
            f"every row mixes the {known.batch_size} examples of the batch; "
            "reading one off needs batch_size = 1"
        )
    traced = trace(model, input_shape)
    return (traced, *layer_that_sees_the_input(traced))


def layer_that_sees_the_input(traced: Trace) -> tuple[Layer, tuple[Tensor, Tensor] | None]:
    """Return the first linear layer with a bias that is given the whole input, flattened.

    Returns:
        The layer, and (mean, std) when it sees the input normalised by constants.

    Raises:
        AttackFailed: There is none.
    """
    views: list[tuple[Tensor, tuple[Tensor, Tensor] | None]] = [(traced.inputs, None)]
    without_bias = None
    for layer in traced.layers:
        sees = next((view for view in views if same_values(view[0], layer.inputs)), None)
        if sees is None:
            continue
        constants = normalisation(layer)
        if constants is not None and sees[1] is None:
            views.append((layer.outputs, constants))
        if isinstance(layer.module, nn.Linear) and layer.inputs.dim() == 2:
            if layer.module.bias is not None:
                return layer, sees[1]
            without_bias = without_bias or layer
    if without_bias is not None:
        raise AttackFailed(f"linear layer '{without_bias.name}' sees the input but has no bias")
    layers = ", ".join(f"'{layer.name}' ({layer.kind})" for layer in traced.layers[:1])
    raise AttackFailed(f"no linear layer sees the input; the first layer is {layers or 'not ours'}")


def _heard(name: str, gradient: Tensor | None, visible: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return a gradient, float64 with zeros where it was not heard, and where it was."""
    if gradient is None:
        raise AttackFailed(f"the gradient of '{name}' was not heard")
    mask = torch.ones_like(gradient, dtype=torch.bool) if visible is None else visible.bool()
    gradient = torch.where(mask, gradient.double(), 0.0)
    if not bool(gradient.isfinite().all()):
        raise AttackFailed(f"the gradient of '{name}' is not finite")
    return gradient, mask


def _least_squares(
    weight: Tensor, weight_heard: Tensor, bias: Tensor, bias_heard: Tensor, *, name: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve weight[i, j] = bias[i] x[j] for x (D,) over the entries (rows, D) that were heard.

    Returns:
        x; the standard deviation of its error, as the rows disagree; and which x[j] some row
        tells, the others being zero.
    """
    rows = (weight_heard & bias_heard[:, None]).double()
    power = bias.square() @ rows
    told = power > 0
    if not bool(told.any()):
        raise AttackFailed(
            f"the bias gradient of layer '{name}' is zero, or none of it was heard with its weights"
        )
    power = torch.where(told, power, 1.0)
    x = (bias @ (weight * rows)) / power
    misfit = (weight - torch.outer(bias, x)) * rows
    freedom = (rows.sum() - told.sum()).clamp_min(1)
    noise = (misfit.square().sum() / freedom).sqrt()
    # noise in the bias gradient is power that is not its own: it would pull the image towards black
    foreign = rows.sum(dim=0) * noise.square() / (1 + x.square().sum() / told.sum())
    x = x / (1 - foreign / power).clamp_min(_LEAST_OWN)
    return x, torch.where(told, noise / power.sqrt(), 0.0), told
