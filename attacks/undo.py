"""How each kind of layer is undone: from what is known at its output to what is known at its input.

Several victims of the same weights at once; V stands for their number. At every place of the chain
three things are carried: what flows there, how sure that is, and the loss's derivative there.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attacks.activations import UNDO_ACTIVATION
from attacks.convolution import Evidence, invert_convolution
from attacks.convolution import obstacle as convolution_obstacle
from attacks.network import Layer, normalisation
from attacks.observation import AttackFailed
from attacks.signals import Heard, Signal, Undo, gradient_error, reshaped

_HOPELESS = 0.5
"""A hidden layer of which less than this share is determined carries nothing below it."""

_FAINT = 1e-3
"""A linear layer's forward pass is asked as well when its gradient leaves this share of error."""

_FITS = 10.0
"""A bias gradient that is further off than so many standard deviations does not fit."""

_ALIKE = 0.01
"""... unless it is as close as this share of itself: errors are followed roughly."""

_ANY = 1e6
"""Weight of the constant that logits are known up to, in units of their own spread."""


def undo_layer(layer: Layer, above: Signal, heard: Heard) -> Signal:
    """Undo one layer that `obstacle` has nothing against.

    Raises:
        AttackFailed: Too little is known of its input.
    """
    undo = UNDO.get(type(layer.module), _undo_normalisation)
    return undo(layer, reshaped(above, layer.output_shape), heard)


def obstacle(layer: Layer) -> str | None:
    """Say why `layer` cannot be undone in evaluation mode; None when it can."""
    module = layer.module
    if isinstance(module, nn.Conv2d):
        return convolution_obstacle(module)
    if isinstance(module, nn.LeakyReLU) and module.negative_slope <= 0:
        return "its negative slope must be positive"
    if isinstance(module, nn.PReLU) and not bool((module.weight > 0).all()):
        return "its negative slopes must be positive"
    if isinstance(module, nn.Linear) and layer.inputs.dim() != 2:
        return f"it runs on inputs of shape {layer.input_shape}, not on a vector"
    if isinstance(module, _BatchNorm) and module.running_mean is None:
        return "without running statistics it depends on the batch"
    for kinds, reason in OPAQUE.items():
        if isinstance(module, kinds):
            return reason
    if type(module) not in UNDO and normalisation(layer) is None:
        return f"known are {', '.join(kind.__name__ for kind in UNDO)} and fixed normalisation"
    return None


def _undo_linear(layer: Layer, above: Signal, heard: Heard) -> Signal:
    """Undo y = W x + b: dW = delta x^T has x in every row, so x = dW^T delta / |delta|^2.

    Where a part was not heard, or noise covers it, the forward pass is asked as well.
    """
    above = _with_bias(layer, above, heard)
    name = layer.parameter("weight")
    gradient, mask = heard.gradient[name], heard.masks.get(name)
    if not bool((above.delta.square().sum(1) > 0).all()):
        raise AttackFailed(f"no error reaches layer '{layer.name}' ({layer.kind})")
    squares = above.delta.square()[:, :, None]
    power = (squares if mask is None else squares * mask).sum(1)  # (V, 1) or (V, features)
    value = (gradient.mT @ above.delta[:, :, None])[..., 0] / power.clamp_min(1e-300)
    doubt = _doubt(layer, above, heard)
    error = doubt[:, None] / power.clamp_min(1e-300).sqrt()
    error = torch.where(power > 0, error, torch.inf).expand_as(value)
    weight = _weight(layer)
    notes = above.notes
    told = error.isfinite()
    spread = (value.square() * told).sum(1) / told.sum(1).clamp_min(1)
    spread = torch.where(told.any(1), spread, heard.centre[layer.name].square().mean())
    faint = (error > _FAINT * spread.sqrt().clamp_min(1e-300)[:, None]).any(1)
    if bool(faint.any()):
        fuller, surer = _ask_forward(layer, above, value, error, spread, layer.name == heard.head)
        value = torch.where(faint[:, None], fuller, value)
        error = torch.where(faint[:, None], surer, error)
        told = (1 - error.square() / spread.clamp_min(1e-300)[:, None]).clamp(0, 1).sum(1)
        counts = [_note(*row, value.shape[1]) for row in _rows(told, power, error)]
        _refuse_hopeless(layer, told, value.shape[1], heard, counts)
        notes = tuple(
            f"{count}; {note}" if note else count
            for note, count in zip(notes or [""] * len(counts), counts, strict=True)
        )
    return Signal(
        value=value,
        error=error,
        delta=above.delta @ weight,
        delta_error=(above.delta_error.square() @ weight.square()).sqrt(),
        notes=notes,
    )


def _with_bias(layer: Layer, above: Signal, heard: Heard) -> Signal:
    """Return `above` with the derivative that the bias gradient tells weighed in.

    Where the two do not fit, what comes from above is wrong: by random numbers there, or because
    a gradient was perturbed. Then the bias gradient is taken alone, and the output is not known.
    """
    name = layer.parameter("bias")
    told = heard.gradient.get(name)
    if told is None or name in heard.masks or layer.name == heard.head:
        return replace(above, notes=None)
    own = gradient_error(told, heard.noise)[:, None].square()
    other = above.delta_error.square()
    beyond = (told - above.delta).square().sum(1, keepdim=True)
    expected = (own + other).sum(1, keepdim=True)
    wrong = (beyond > _FITS**2 * expected) & (
        beyond > (_ALIKE * told).square().sum(1, keepdim=True)
    )
    share = torch.where(wrong, 1.0, other / (own + other).clamp_min(1e-300))
    error = torch.where(wrong, own, own * other / (own + other).clamp_min(1e-300)).sqrt()
    told_so = "what comes from above does not fit its bias gradient, and was left out"
    return replace(
        above,
        error=torch.where(wrong, torch.inf, above.error),
        delta=torch.lerp(above.delta, told, share),
        delta_error=error,
        notes=tuple(told_so if row else "" for row in wrong[:, 0].tolist()),
    )


def _doubt(layer: Layer, above: Signal, heard: Heard) -> Tensor:
    """Return the standard deviation of an equation delta x = dW, (V,): errors of dW and of delta.

    The error of delta counts through a typical input: that of a mid-grey image.
    """
    own = gradient_error(heard.gradient[layer.parameter("weight")], heard.noise)
    places = above.delta_error[0, 0].numel()  # each weight is used at so many
    through = above.delta_error.square().flatten(1).mean(1) * places
    return (own.square() + through * heard.centre[layer.name].square().mean()).sqrt()


def _rows(told: Tensor, power: Tensor, error: Tensor) -> list[tuple[float, float, float]]:
    """Return per victim: unknowns told, unknowns the gradient touches, and the error."""
    touched = (power > 0).sum(1) if power.shape[1] > 1 else (power > 0)[:, 0] * error.shape[1]
    rmse = error.square().mean(1).sqrt()
    return list(zip(told.tolist(), touched.tolist(), rmse.tolist(), strict=True))


def _ask_forward(
    layer: Layer, above: Signal, value: Tensor, error: Tensor, spread: Tensor, is_head: bool
) -> tuple[Tensor, Tensor]:
    """Return x and its error by least squares over x = value +- error and y = W x + b +- error.

    Shapes: value, error (V, features); spread (V,), the mean square of a feature.
    """
    weight, bias = _weight(layer), cast(nn.Linear, layer.module).bias
    prior = spread.clamp_min(1e-30)[:, None]
    variance = torch.where(error.isfinite(), error.square(), prior)
    variance = (variance * prior / (variance + prior)).clamp_min(1e-300)
    value = torch.where(error.isfinite(), value, 0.0)
    seen = above.error.isfinite() & above.value.isfinite()
    misfit = above.value - value @ weight.T - (0.0 if bias is None else bias.detach().double())
    misfit = torch.where(seen, misfit, 0.0)
    spreading = weight * variance[:, None]  # (V, outputs, features)
    system = spreading @ weight.T
    scale = system.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-300)
    noise = torch.where(seen, above.error.square(), 1e12 * scale[:, None])
    if is_head:
        system = system + _ANY * scale[:, None, None]
    system = system + torch.diag_embed(noise + 1e-10 * scale[:, None])
    gain = torch.linalg.solve(system, spreading)
    value = value + (gain.mT @ misfit[:, :, None])[..., 0]
    left = variance - (gain * spreading).sum(1)
    return value, left.clamp_min(0.0).sqrt()


def _undo_convolution(layer: Layer, above: Signal, heard: Heard) -> Signal:
    """Undo a convolution by `invert_convolution`."""
    conv, name = cast(nn.Conv2d, layer.module), layer.parameter("weight")
    gradient = heard.gradient[name]
    found = invert_convolution(
        conv,
        Evidence(
            output=above.value,
            error=above.error,
            delta=above.delta,
            gradient=gradient,
            gradient_error=_doubt(layer, above, heard),
            heard=heard.masks.get(name),
            delta_error=above.delta_error,
            at_most=above.at_most,
        ),
        centre=heard.centre[layer.name],
        rngs=heard.rngs,
    )
    unknowns = found.inputs[0].numel()
    rmse = found.error.square().flatten(1).mean(1).sqrt()
    numbers = (found.determined.tolist(), found.from_gradient.tolist(), rmse.tolist())
    notes = tuple(_note(*row, unknowns) for row in zip(*numbers, strict=True))
    _refuse_hopeless(layer, found.determined, unknowns, heard, notes)
    return Signal(
        value=found.inputs,
        error=found.error,
        delta=found.delta,
        delta_error=found.delta_error,
        notes=notes,
    )


def _note(determined: float, from_gradient: float, error: float, unknowns: int) -> str:
    return (
        f"{determined:.0f} of {unknowns} unknowns determined, "
        f"{from_gradient:.0f} by the weight gradient alone; error {error:.1e}"
    )


def _refuse_hopeless(
    layer: Layer, determined: Tensor, unknowns: int, heard: Heard, notes: Sequence[str]
) -> None:
    """Refuse a hidden layer whose input the architecture leaves open.

    Raises:
        AttackFailed: Too little of it is determined although everything was heard.
    """
    if layer.name == heard.lowest or not heard.is_whole:
        return
    for number, note in zip(determined.tolist(), notes, strict=True):
        if number < _HOPELESS * unknowns:
            raise AttackFailed(f"too little is known of the input of layer '{layer.name}': {note}")


def _undo_normalisation(layer: Layer, above: Signal, _: Heard) -> Signal:
    """Undo (x - mean) / std."""
    mean, std = (
        constant.double().to(above.value)
        for constant in cast("tuple[Tensor, Tensor]", normalisation(layer))
    )
    return _undo_affine(above, scale=1 / std, shift=-mean / std)


def _undo_batch_norm(layer: Layer, above: Signal, _: Heard) -> Signal:
    """Undo batch normalisation by running statistics: one fixed scale and shift per channel."""
    module = cast(_BatchNorm, layer.module)
    mean, variance = cast(Tensor, module.running_mean), cast(Tensor, module.running_var)
    scale = (variance.double() + module.eps).rsqrt()
    shift = -mean.double() * scale
    if module.affine:
        scale = scale * module.weight.detach().double()
        shift = shift * module.weight.detach().double() + module.bias.detach().double()
    shape = (-1, *(1,) * (above.value.dim() - 2))
    return _undo_affine(above, scale=scale.view(shape), shift=shift.view(shape))


def _undo_affine(above: Signal, *, scale: Tensor, shift: Tensor) -> Signal:
    """Undo y = scale x + shift; a channel of scale zero is lost."""
    dead = scale == 0
    safe = torch.where(dead, 1.0, scale)
    value = (above.value - shift) / safe
    error = torch.where(dead, torch.inf, above.error / safe.abs()).expand_as(value)
    bound = above.at_most
    if bound is not None:  # a bound from above stays one where the scale is positive
        bound = bound & (scale > 0)
    return Signal(
        value=value,
        error=error,
        delta=above.delta * scale,
        delta_error=(above.delta_error * scale.abs()).expand_as(value),
        at_most=bound,
    )


def _undo_nothing(_: Layer, above: Signal, __: Heard) -> Signal:
    """Undo a layer that only reshapes."""
    return above


def _undo_average(layer: Layer, above: Signal, _: Heard) -> Signal:
    """Undo average pooling: every pixel of a window gets the average, and an error like the image.

    What lies in a window is not determined; the derivative at its pixels is known exactly.
    """
    zeros = above.value.new_zeros(len(above.value), *layer.input_shape)

    def pooled(images: Tensor) -> Tensor:
        outputs: Tensor = layer.module(images)
        return outputs

    back = torch.func.vjp(pooled, zeros)[1]
    (delta,) = back(above.delta)
    (delta_error,) = back(above.delta_error)
    (spread_out,) = back(above.value)
    (share,) = back(torch.ones_like(above.value))
    value = spread_out / share.clamp_min(1e-300)
    error = above.value.flatten(1).std(1) if above.value[0].numel() > 1 else above.value.abs()
    error = error.view(-1, *(1,) * (value.dim() - 1)).expand_as(value)
    finite = value.isfinite() & (share > 0)
    return Signal(
        value=torch.where(finite, value, 0.0),
        error=torch.where(finite, error, torch.inf),
        delta=delta,
        delta_error=delta_error,
        notes=tuple("only averages of its windows are known" for _ in range(len(value))),
    )


def _weight(layer: Layer) -> Tensor:
    """Return the layer's weight, float64."""
    return cast(nn.Linear | nn.Conv2d, layer.module).weight.detach().double()


POOLS = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)

UNDO: dict[type[nn.Module], Undo] = {
    nn.Linear: _undo_linear,
    nn.Conv2d: _undo_convolution,
    nn.BatchNorm1d: _undo_batch_norm,
    nn.BatchNorm2d: _undo_batch_norm,
    nn.AvgPool2d: _undo_average,
    nn.AdaptiveAvgPool2d: _undo_average,
    **UNDO_ACTIVATION,
    nn.Flatten: _undo_nothing,
    nn.Unflatten: _undo_nothing,
    nn.Identity: _undo_nothing,
    nn.Dropout: _undo_nothing,
    nn.Dropout2d: _undo_nothing,
}
"""How to undo each kind of layer; another kind is one more entry."""

OPAQUE: dict[tuple[type[nn.Module], ...], str] = {
    (nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish): "two different inputs give the same output",
    (nn.MaxPool2d, nn.AdaptiveMaxPool2d): "which pixel of a window was the largest is not known",
    (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d): "it normalises by statistics of its own input",
    (nn.ReLU6, nn.Hardtanh, nn.Hardsigmoid): "it is flat at both ends",
    (nn.RReLU,): "its slopes are drawn at random",
}
"""Layers known not to be undone, and why."""
