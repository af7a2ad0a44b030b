"""Layer by layer in closed form (R-GAP; Zhu and Blaschko, 2021, https://arxiv.org/abs/2010.07733).

For one image and a chain of layers. The classifier gives the error at the logits and its own
input exactly. Going down, each layer's output and the loss's derivative there are known, which
makes its weight gradient and its forward pass linear in its input: solve, undo the activation
below, repeat down to the image.

Differs from the paper: a convolution trusts its weight gradient where that determines the input,
because errors of the layers above reach it least, and its forward pass for the rest; the sparse
systems are solved by conjugate gradients; errors are followed from layer to layer.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from attacks.convolution import Evidence, back_through, invert_convolution
from attacks.labels import recover_labels
from attacks.network import (
    Layer,
    Trace,
    all_visible,
    known_architecture,
    normalisation,
    trace,
    with_weights,
)
from attacks.observation import (
    AttackFailed,
    Budget,
    Knowledge,
    Loss,
    Observation,
    Reconstruction,
    Tensors,
    gradient_of,
    only,
    require_one_step,
)
from attacks.threats import WHITE_BOX, Capability

_ROUNDING = 3e-7
"""Relative error of an entry of a float32 gradient, which is a sum of rounded products."""

_HOPELESS = 0.5
"""A hidden layer of which less than this share is determined carries nothing below it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Signal:
    """What is known at one place of the chain, float64, shaped like one example there.

    Attributes:
        value: What flows there.
        error: Standard deviation of the error of `value`.
        delta: Derivative of the loss with respect to `value`.
        note: How well the layer above could be inverted; None for layers that lose nothing.
    """

    value: Tensor
    error: Tensor
    delta: Tensor
    note: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Heard:
    """What every layer's inversion may use.

    Attributes:
        gradient: The gradient, float64, by parameter name.
        noise: Standard deviation of noise in it, beyond rounding.
        lowest: Name of the lowest convolution: its input may be known in part, as nothing is
            built on it.
        centre: What each layer receives when the image is mid-grey, by layer name.
        rng: The attack's generator.
    """

    gradient: Tensors
    noise: float
    lowest: str | None
    centre: Tensors
    rng: torch.Generator


Undo = Callable[[Layer, Signal, Heard], Signal]
"""(layer, what is known at its output, what was heard) -> what is known at its input."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Peeled:
    """The image at the bottom of the chain.

    Attributes:
        inputs: The image, (1, C, H, W), clamped to the input range.
        labels: Its label, (1,), int64.
        notes: Per layer, what its equations determine; and for the image, `expected_rmse`, the
            error that the equations let expect, and `excursion`, how far it left the range.
    """

    inputs: Tensor
    labels: Tensor
    notes: dict[str, str | float]


def peel(
    model: nn.Module,
    gradient: Tensors,
    *,
    input_shape: tuple[int, ...],
    input_range: tuple[float, float] = (0.0, 1.0),
    rng: torch.Generator,
) -> Peeled:
    """Solve for the one image behind a gradient; also a start for attacks that optimise.

    Args:
        model: With the weights in force, in evaluation mode.
        gradient: Gradient of the cross-entropy of one example, by parameter name.
        input_shape: (C, H, W).
        input_range: Lowest and highest value of an input.
        rng: Draws the made-up inputs that tell what to expect.

    Raises:
        AttackFailed: The model is not a chain of layers that can be undone, or a layer's equations
            leave too much open.
    """
    traced = trace(model, input_shape)
    if not bool(traced.outputs.isfinite().all()):
        raise AttackFailed("the model's output is not finite with the weights in force")
    check_chain(traced)
    _check_gradient(traced, gradient)
    head = traced.layers[-1]
    logits_delta = gradient[head.parameter("bias")].double()
    labels = recover_labels(
        gradient,
        classifier_weight=head.parameter("weight"),
        classifier_bias=head.parameter("bias"),
        batch_size=1,
        num_classes=len(logits_delta),
    )
    heard = Heard(
        gradient={name: tensor.double() for name, tensor in gradient.items()},
        noise=_noise(gradient[head.parameter("weight")].double(), logits_delta),
        lowest=next((_.name for _ in traced.layers if isinstance(_.module, nn.Conv2d)), None),
        centre=_centres(traced, sum(input_range) / 2),
        rng=rng,
    )
    unknown = torch.full_like(logits_delta, torch.nan)  # the logits, which no equation uses
    signal = Signal(value=unknown, error=unknown, delta=logits_delta)
    notes: dict[str, str | float] = {}
    for layer in reversed(traced.layers):
        undo = UNDO.get(type(layer.module), _undo_normalisation)
        signal = undo(layer, _reshaped(signal, layer.output_shape), heard)
        if signal.note is not None:
            notes[layer.name] = signal.note
    signal = _reshaped(signal, input_shape)
    low, high = input_range
    inputs = signal.value.clamp(low, high)
    notes["expected_rmse"] = float(signal.error.square().mean().sqrt())
    notes["excursion"] = float((signal.value - inputs).abs().max())
    return Peeled(inputs=inputs[None].to(traced.inputs.dtype), labels=labels, notes=notes)


def check_chain(traced: Trace) -> None:
    """Refuse a model that is no chain of layers that can be undone, ending in a classifier.

    Raises:
        AttackFailed: It is not; the message names the layer.
    """
    reason = traced.break_in_chain()
    if reason is not None:
        raise AttackFailed(f"the model is not a chain of layers: {reason}")
    for layer in traced.layers:
        reason = _obstacle(layer)
        if reason is not None:
            raise AttackFailed(f"layer '{layer.name}' ({layer.kind}) cannot be undone: {reason}")
    head = traced.layers[-1]
    if not isinstance(head.module, nn.Linear) or head.module.bias is None:
        raise AttackFailed(
            f"the last layer, '{head.name}' ({head.kind}), must be linear with a bias: "
            "its gradient is the error at the logits"
        )


def _check_gradient(traced: Trace, gradient: Tensors) -> None:
    """Refuse a gradient that leaves out or spoils a layer."""
    for layer in traced.layers:
        for name, _ in layer.module.named_parameters():
            if layer.parameter(name) not in gradient:
                raise AttackFailed(f"the gradient of '{layer.parameter(name)}' was not heard")
            if not bool(gradient[layer.parameter(name)].isfinite().all()):
                raise AttackFailed(f"the gradient of '{layer.parameter(name)}' is not finite")


def _obstacle(layer: Layer) -> str | None:
    """Say why `layer` cannot be undone; None when it can."""
    module = layer.module
    if isinstance(module, nn.Conv2d):
        if module.groups != 1 or module.dilation != (1, 1):
            return "groups and dilation are not supported"
        if module.padding_mode != "zeros" or isinstance(module.padding, str):
            return f"padding must be a number of zeros, not {module.padding!r}"
    if isinstance(module, nn.LeakyReLU) and module.negative_slope <= 0:
        return "its negative slope must be positive"
    if isinstance(module, nn.Linear) and layer.inputs.dim() != 2:
        return f"it runs on inputs of shape {layer.input_shape}, not on a vector"
    if type(module) not in UNDO and normalisation(layer) is None:
        return f"known are {', '.join(kind.__name__ for kind in UNDO)} and fixed normalisation"
    return None


def _noise(weight_gradient: Tensor, delta: Tensor) -> float:
    """Estimate noise from what a linear layer's gradient (K, features) has beyond rank one."""
    features = weight_gradient.T @ delta / delta.square().sum()
    beyond = weight_gradient - torch.outer(delta, features)
    return float((beyond.square().sum() / max((len(delta) - 1) * len(features), 1)).sqrt())


def _centres(traced: Trace, mid_grey: float) -> dict[str, Tensor]:
    """Return what each layer receives when every pixel is `mid_grey`, float64, without batch."""
    centres = {}
    flowing = torch.full_like(traced.inputs, mid_grey)
    with torch.no_grad():
        for layer in traced.layers:
            flowing = flowing.reshape(1, *layer.input_shape)
            centres[layer.name] = flowing[0].double()
            flowing = layer.module(flowing)
    return centres


def _reshaped(signal: Signal, shape: tuple[int, ...]) -> Signal:
    """Return the signal in another shape."""
    return Signal(
        value=signal.value.reshape(shape),
        error=signal.error.reshape(shape),
        delta=signal.delta.reshape(shape),
    )


def _undo_linear(layer: Layer, above: Signal, heard: Heard) -> Signal:
    """Undo y = W x + b: dW = delta x^T has x in every row, so x = dW^T delta / |delta|^2."""
    power = above.delta.square().sum()
    if not power > 0:
        raise AttackFailed(f"no error reaches layer '{layer.name}' ({layer.kind})")
    gradient = heard.gradient[layer.parameter("weight")]
    value = gradient.T @ above.delta / power
    error = _gradient_error(gradient, heard) / power.sqrt()
    weight = _weight(layer)
    return Signal(value=value, error=error.expand_as(value), delta=weight.T @ above.delta)


def _undo_convolution(layer: Layer, above: Signal, heard: Heard) -> Signal:
    """Undo a convolution by `invert_convolution`.

    Raises:
        AttackFailed: Its equations leave more open than can be ignored.
    """
    conv = cast(nn.Conv2d, layer.module)
    gradient = heard.gradient[layer.parameter("weight")]
    found = invert_convolution(
        conv,
        Evidence(
            output=above.value,
            error=above.error,
            delta=above.delta,
            gradient=gradient,
            gradient_error=float(_gradient_error(gradient, heard)),
        ),
        centre=heard.centre[layer.name],
        rng=heard.rng,
    )
    unknowns, is_hidden = found.inputs.numel(), layer.name != heard.lowest
    note = (
        f"{found.determined:.0f} of {unknowns} unknowns determined, "
        f"{found.from_gradient} by the weight gradient alone; error {found.error:.1e}"
    )
    if is_hidden and found.determined < _HOPELESS * unknowns:
        raise AttackFailed(f"too little is known of the input of layer '{layer.name}': {note}")
    delta = back_through(conv, above.delta, layer.input_shape[1:])
    return Signal(
        value=found.inputs, error=torch.full_like(found.inputs, found.error), delta=delta, note=note
    )


def _undo_normalisation(layer: Layer, above: Signal, _: Heard) -> Signal:
    """Undo (x - mean) / std."""
    mean, std = (
        constant.double() for constant in cast("tuple[Tensor, Tensor]", normalisation(layer))
    )
    return Signal(value=above.value * std + mean, error=above.error * std, delta=above.delta / std)


def _undo_nothing(_: Layer, above: Signal, __: Heard) -> Signal:
    """Undo a layer that only reshapes."""
    return above


def _gradient_error(gradient: Tensor, heard: Heard) -> Tensor:
    """Return the standard deviation of the error of a weight gradient: noise, or rounding."""
    return (_ROUNDING * gradient.square().mean().sqrt()).clamp_min(heard.noise)


def _weight(layer: Layer) -> Tensor:
    """Return the layer's weight, float64."""
    return cast(nn.Linear | nn.Conv2d, layer.module).weight.detach().double()


_EDGE = 1e-7
"""How close to its limits an activation is believed: the resolution of float32 near 1."""


def _sigmoid(_: nn.Module, y: Tensor) -> tuple[Tensor, Tensor]:
    y = y.clamp(_EDGE, 1 - _EDGE)
    return y.logit(), y * (1 - y)


def _tanh(_: nn.Module, y: Tensor) -> tuple[Tensor, Tensor]:
    y = y.clamp(_EDGE - 1, 1 - _EDGE)
    return y.atanh(), 1 - y.square()


def _leaky_relu(module: nn.Module, y: Tensor) -> tuple[Tensor, Tensor]:
    slope = torch.where(y > 0, 1.0, cast(nn.LeakyReLU, module).negative_slope).to(y)
    return y / slope, slope


def _softplus(module: nn.Module, y: Tensor) -> tuple[Tensor, Tensor]:
    beta = cast(nn.Softplus, module).beta
    y = y.clamp_min(_EDGE / beta)
    slope = -torch.expm1(-beta * y)
    return y + slope.log() / beta, slope


def _undo_activation(formula: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]) -> Undo:
    """Undo an activation given by `formula`, which maps its output to its input and slope there."""

    def undo(layer: Layer, above: Signal, _: Heard) -> Signal:
        value, slope = formula(layer.module, above.value)
        return Signal(value=value, error=above.error / slope, delta=above.delta * slope)

    return undo


UNDO: dict[type[nn.Module], Undo] = {
    nn.Linear: _undo_linear,
    nn.Conv2d: _undo_convolution,
    nn.Sigmoid: _undo_activation(_sigmoid),
    nn.Tanh: _undo_activation(_tanh),
    nn.LeakyReLU: _undo_activation(_leaky_relu),
    nn.Softplus: _undo_activation(_softplus),
    nn.Flatten: _undo_nothing,
    nn.Unflatten: _undo_nothing,
    nn.Identity: _undo_nothing,
}
"""How to undo each kind of layer; another kind is one more entry."""


@dataclass(frozen=True, kw_only=True)
class ClosedForm:
    """Solve for the one image behind a gradient, layer by layer; see the module."""

    @property
    def needs(self) -> frozenset[Capability]:
        """The weights in force and the architecture, one image's shape, and that it is one."""
        return WHITE_BOX

    def check(self, known: Knowledge) -> None:
        """Refuse several steps, several images, and models that are no chain to be undone."""
        require_one_step(known.recipe)
        _require_one_image(known)
        model, input_shape = known_architecture(known)
        check_chain(trace(copy.deepcopy(model).eval(), input_shape))

    def __call__(
        self,
        seen: Observation | Sequence[Observation],
        known: Knowledge,
        *,
        rng: torch.Generator,
        budget: Budget | None = None,  # noqa: ARG002 - takes milliseconds
    ) -> Reconstruction:
        """Guess the image behind one update.

        Shapes:
            returns .inputs: (1, C, H, W)
            returns .labels: (1,) int64

        Raises:
            AttackFailed: More than one image, a part of the update or the weights not heard, or
                what `peel` cannot do.
        """
        start = time.monotonic()
        seen = only(seen)
        model, input_shape = known_architecture(known)
        _require_one_image(known)
        if seen.weights is None:
            raise AttackFailed("the closed form needs the weights in force; none heard")
        if not all_visible(seen.visible, *seen.update):
            raise AttackFailed("the closed form needs the whole update; a part was not heard")
        gradient = gradient_of(seen, known.recipe)
        model = with_weights(model, seen.weights, seen.buffers)
        peeled = peel(
            model, gradient, input_shape=input_shape, input_range=known.input_range, rng=rng
        )
        return Reconstruction(
            inputs=peeled.inputs,
            labels=peeled.labels,
            matching_loss=_mismatch(model, known.loss, peeled, gradient),
            seconds=time.monotonic() - start,
            notes=peeled.notes,
        )


def _require_one_image(known: Knowledge) -> None:
    if known.batch_size != 1:
        raise AttackFailed(f"the closed form is for one image, not {known.batch_size}")


def _mismatch(model: nn.Module, loss: Loss, peeled: Peeled, gradient: Tensors) -> float:
    """Return the squared distance between the gradient heard and that of the guess."""
    parameters = dict(model.named_parameters())
    value = loss(model(peeled.inputs), peeled.labels)
    guess = torch.autograd.grad(value, list(parameters.values()))
    distances = [
        (mine - gradient[name]).square().sum()
        for name, mine in zip(parameters, guess, strict=True)
        if name in gradient
    ]
    return float(torch.stack(distances).sum())
