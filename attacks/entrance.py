"""Where a network can be entered to be undone from there down: its classifier, or a linear layer.

For one example, y = W x + b leaves dW = delta x^T and db = delta, the derivative of the loss at
its output. So every linear layer whose gradient was heard tells delta and x exactly, whatever
comes above it: random numbers (PRECODE; Scheliga et al., 2022, arxiv.org/abs/2108.04725), layers
that cannot be undone, gradients that were perturbed (Soteria; Sun et al., 2021,
arxiv.org/abs/2012.06043) or not heard. The classifier does without its bias, tells the label, and
its own outputs besides.

What lies below an entrance must be a chain of layers that can be undone, and no way may lead
around the entrance, by which a part of the derivative would come down unnoticed.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attacks.activations import ACTIVATIONS
from attacks.classifier import Head, fill_in, read_head
from attacks.global_generators import global_generators
from attacks.network import Layer, Trace, same_values
from attacks.observation import AttackFailed, Tensors
from attacks.signals import Signal, gradient_error
from attacks.undo import POOLS, obstacle

_NOISY = 100.0
"""A gradient is noisy when its layer leaves rank one by so much more than rounding does."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Entrance:
    """A layer from which the network can be undone, for all of several victims.

    Attributes:
        place: Its number among the layers that were traced.
        is_classifier: Whether its outputs are the logits.
        signal: What is known at its output.
        noise: Standard deviation of the noise in each victim's gradient, (V,).
        is_noisy: Whether it is more than rounding, (V,).
        labels: The classes that it tells, (V,), int64; None unless it is the classifier.
        misfits: Per victim, `Head.misfit`; None unless it is the classifier.
    """

    place: int
    is_classifier: bool
    signal: Signal
    noise: Tensor
    is_noisy: Tensor
    labels: Tensor | None = None
    misfits: tuple[float | None, ...] | None = None

    @property
    def roughness(self) -> Tensor:
        """The noise in units of the derivative at the layer's output, (V,)."""
        length = self.signal.delta.square().sum(1).sqrt()
        return self.noise / length.clamp_min(1e-300)


def check_chain(traced: Trace) -> None:
    """Refuse a model that is no chain of layers that can be undone, ending in a classifier.

    Raises:
        AttackFailed: It is not; the message names the layer.
    """
    reason = traced.break_in_chain()
    if reason is not None:
        raise AttackFailed(f"the model is not a chain of layers: {reason}")
    for place in range(len(traced.layers)):
        _check_layer(traced, place)
    head = traced.layers[-1]
    if not isinstance(head.module, nn.Linear):
        raise AttackFailed(
            f"the last layer, '{head.name}' ({head.kind}), must be linear: "
            "its gradient is the error at the logits"
        )


def places_to_enter(
    model: nn.Module, traced: Trace, trained: Trace | None
) -> Iterator[int | AttackFailed]:
    """Yield the numbers of the layers that the model can be entered by, the highest first.

    In place of the classifier's comes the reason where it cannot be entered.

    Args:
        model: The model that was traced.
        traced: Its run in evaluation mode.
        trained: Its run in training mode, if that is what clients do.
    """
    top = len(traced.layers) - 1
    try:
        check_chain(traced)
        _check_mode(traced, trained, top + 1)
        yield top
    except AttackFailed as failure:
        yield failure
        top += 1
    for place in reversed(range(top)):
        module = traced.layers[place].module
        has_bias = isinstance(module, nn.Linear) and module.bias is not None
        if has_bias and _is_open(model, traced, trained, place):
            yield place


def check_entrance(model: nn.Module, traced: Trace, trained: Trace | None) -> None:
    """Refuse a model that cannot be entered anywhere; see `places_to_enter`.

    Raises:
        AttackFailed: It cannot; the reason is that of the classifier.
    """
    places = places_to_enter(model, traced, trained)
    first = next(places)
    if isinstance(first, AttackFailed) and next(places, None) is None:
        raise first


def entrances(
    model: nn.Module,
    traced: Trace,
    trained: Trace | None,
    gradient: Tensors,
    masks: Tensors,
) -> Iterator[Entrance]:
    """Yield the entrances that several victims' gradients open, the best first.

    That is the classifier when it was heard whole and without noise; then linear layers of which
    the same holds, from the top; then the classifier, and linear layers by their noise.

    Args:
        model: The model that was traced.
        traced: Its run in evaluation mode.
        trained: Its run in training mode, if that is what clients do.
        gradient: Gradients, float64, (V, ...) by parameter name, zero where not heard.
        masks: True where a coordinate was heard, for those not heard completely.

    Raises:
        AttackFailed: There is none; the reason is that of the classifier. Or each victim alone
            would have others.
    """
    reason: AttackFailed | None = None
    second: list[Entrance] = []
    is_mixed, found_any = False, False
    for place in places_to_enter(model, traced, trained):
        if isinstance(place, AttackFailed):
            reason = place
            continue
        layer = traced.layers[place]
        try:
            if place == len(traced.layers) - 1 and reason is None:
                found = _by_classifier(place, layer, gradient, masks)
            else:
                found = _by_bias(place, layer, gradient, masks)
        except AttackFailed as failure:
            weight = layer.parameter("weight")
            is_silent = weight in masks and not bool(masks[weight].any())
            if len(gradient[weight]) > 1 and not is_silent:  # alone, some of them may enter here
                raise
            reason = reason or failure
            continue
        if is_mixed:
            raise AttackFailed("the victims enter the network by different layers")
        found_any = True
        rough = found.is_noisy | _is_partial(layer, masks, len(found.noise)).to(found.noise.device)
        if bool(rough.any()):
            second.append(found)
            is_mixed = not bool(rough.all())
        else:
            yield found
    yield from _by_noise(second)
    if not found_any:
        raise reason or AttackFailed("the model has no layers")


def _is_partial(layer: Layer, masks: Tensors, victims: int) -> Tensor:
    """Return whose gradient of `layer` was not heard completely, (V,)."""
    partial = torch.zeros(victims, dtype=torch.bool)
    for name in (layer.parameter("weight"), layer.parameter("bias")):
        if name in masks:
            partial = partial.to(masks[name].device) | ~masks[name].flatten(1).all(1)
    return partial


def _by_noise(entrances: Sequence[Entrance]) -> list[Entrance]:
    """Return the classifier first, then the others, those with least noise first.

    Raises:
        AttackFailed: The victims differ in that.
    """
    first = [one for one in entrances if one.is_classifier]
    others = [one for one in entrances if not one.is_classifier]
    if not others:
        return first
    order = torch.stack([one.roughness for one in others]).argsort(dim=0, stable=True)
    if not bool((order == order[:, :1]).all()):
        raise AttackFailed("the victims enter the network by different layers")
    return first + [others[place] for place in order[:, 0].tolist()]


def _is_open(model: nn.Module, traced: Trace, trained: Trace | None, place: int) -> bool:
    """Whether all below linear layer `place` can be undone, and no way leads around it."""
    if traced.break_in_chain(place + 1) is not None:
        return False
    try:
        for below in range(place + 1):
            _check_layer(traced, below)
        _check_mode(traced, trained, place)
    except AttackFailed:
        return False
    return not _leads_around(model, traced, traced.layers[place].name, trained is not None)


def _check_layer(traced: Trace, place: int) -> None:
    """Refuse a layer that cannot be undone where it stands.

    Raises:
        AttackFailed: It is one.
    """
    layer = traced.layers[place]
    reason = obstacle(layer) or _mixed(layer, traced.layers[:place])
    if reason is not None:
        raise AttackFailed(f"layer '{layer.name}' ({layer.kind}) cannot be undone: {reason}")


def _mixed(layer: Layer, below: Sequence[Layer]) -> str | None:
    """Say why a pooling layer cannot be undone where it stands; None when it can."""
    if not isinstance(layer.module, POOLS) or layer.input_shape == layer.output_shape:
        return None
    for other in reversed(below):
        if isinstance(other.module, ACTIVATIONS):
            return (
                f"it tells averages of what '{other.name}' ({other.kind}) returns, "
                "and the slope there needs every entry"
            )
        if isinstance(other.module, nn.Linear | nn.Conv2d):
            return None
    return None


def _check_mode(traced: Trace, trained: Trace | None, length: int) -> None:
    """Refuse what, up to the input of layer number `length`, evaluation does not show of training.

    Raises:
        AttackFailed: There is such a layer.
    """
    if trained is None:
        return
    for place, layer in enumerate(traced.layers[: length + 1]):
        other = trained.layers[place] if place < len(trained.layers) else None
        if other is None or other.name != layer.name or not same_values(layer.inputs, other.inputs):
            raise AttackFailed(
                f"layer '{layer.name}' ({layer.kind}) receives random numbers, or something else "
                "in training than in evaluation mode"
            )
        module = layer.module
        if place == length:
            return
        if isinstance(module, nn.Dropout | nn.Dropout2d) and module.p > 0:
            raise AttackFailed(f"layer '{layer.name}' drops entries at random in training mode")
        if isinstance(module, _BatchNorm):
            raise AttackFailed(
                f"layer '{layer.name}' normalises by the statistics of the image itself in "
                "training mode, which hides its scale; only clients in evaluation mode can be "
                "inverted"
            )
    if not same_values(traced.outputs, trained.outputs):
        raise AttackFailed("the model returns something else in training than in evaluation mode")


def _leads_around(model: nn.Module, traced: Trace, name: str, training: bool) -> bool:
    """Whether the model's output depends on its input by a way around the layer of that name."""
    model = copy.deepcopy(model).train(training)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()  # one example may not be enough for it
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    layer = model.get_submodule(name)
    layer.register_forward_hook(lambda _, __, outputs: outputs.detach())
    with torch.enable_grad(), global_generators():
        outputs: Tensor = model(traced.inputs.clone().requires_grad_().clone())
    return outputs.requires_grad


def _by_classifier(place: int, head: Layer, gradient: Tensors, masks: Tensors) -> Entrance:
    """Enter by the classifier.

    Raises:
        AttackFailed: The classifier's gradient is zero, or too little of it was heard.
    """
    heads = _heads(head, gradient, masks)
    delta = torch.stack([found.delta for found in heads])
    labels = torch.tensor([found.label for found in heads], device=delta.device)
    noise, is_noisy = _noise(head, gradient, delta, masks)
    error = torch.stack([found.error for found in heads]).maximum(noise[:, None])
    return Entrance(
        place=place,
        is_classifier=True,
        signal=_at_logits(delta, labels, error),
        noise=noise,
        is_noisy=is_noisy,
        labels=labels,
        misfits=tuple(found.misfit for found in heads),
    )


def _by_bias(place: int, layer: Layer, gradient: Tensors, masks: Tensors) -> Entrance:
    """Enter by a linear layer with a bias; what its outputs are is not known.

    Raises:
        AttackFailed: Too little of its gradient was heard, or it is zero.
    """
    names = layer.parameter("weight"), layer.parameter("bias")
    weight, bias = (gradient[name] for name in names)
    if any(name in masks for name in names):
        heard = [masks.get(name, torch.ones_like(gradient[name]).bool()) for name in names]
        rows = [fill_in(*victim) for victim in zip(weight, bias, *heard, strict=True)]
        if any(row is None for row in rows):
            raise AttackFailed(f"too little was heard of the gradient of layer '{layer.name}'")
        delta = torch.stack(cast("list[Tensor]", rows))
    else:
        delta = bias
    if not bool(delta.any(1).all()):
        raise AttackFailed(f"no error reaches layer '{layer.name}' ({layer.kind})")
    noise, is_noisy = _noise(layer, gradient, delta, masks)
    return Entrance(
        place=place,
        is_classifier=False,
        signal=Signal(
            value=torch.zeros_like(delta),
            error=torch.full_like(delta, torch.inf),
            delta=delta,
            delta_error=gradient_error(delta, noise)[:, None].expand_as(delta),
        ),
        noise=noise,
        is_noisy=is_noisy,
    )


def _heads(head: Layer, gradient: Tensors, masks: Tensors) -> list[Head]:
    """Return what each victim leaves at the classifier.

    Raises:
        AttackFailed: The classifier's gradient is zero, or too little of it was heard.
    """
    weight, bias = head.parameter("weight"), head.parameter("bias")
    module = cast(nn.Linear, head.module)
    if weight in masks and not bool(masks[weight].flatten(1).any(1).all()):
        raise AttackFailed(f"nothing was heard of the gradient of '{weight}'")
    heads = []
    for victim, own in enumerate(gradient[weight]):
        weight_heard, bias_heard = (
            masks[name][victim] if name in masks else None for name in (weight, bias)
        )
        if bias_heard is not None and bool(bias_heard.all()):
            bias_heard = None
        heads.append(
            read_head(
                own,
                gradient[bias][victim] if bias in gradient else None,
                weight_heard=weight_heard,
                bias_heard=bias_heard,
                weight=module.weight.detach().double(),
                bias=None if module.bias is None else module.bias.detach().double(),
            )
        )
    return heads


def _at_logits(delta: Tensor, labels: Tensor, error: Tensor) -> Signal:
    """Return what is known at the logits: log p, which is the logits up to a constant.

    Shapes: delta and the standard deviation of its error (V, K); labels (V,).
    """
    rows = torch.arange(len(delta), device=delta.device)
    predicted = delta.clone()
    predicted[rows, labels] += 1.0
    doubt = error.clamp_min(1e-7)
    value = predicted.clamp_min(1e-30).log()
    relative = torch.where(predicted > 2 * doubt, doubt / predicted.clamp_min(1e-30), torch.inf)
    return Signal(
        value=value,
        error=relative,
        delta=delta,
        delta_error=error.maximum(1e-7 * delta.abs()),
    )


def _noise(layer: Layer, gradient: Tensors, delta: Tensor, masks: Tensors) -> tuple[Tensor, Tensor]:
    """Estimate noise from what a linear layer's gradient has beyond rank one; delta is (V, K).

    Returns:
        Its standard deviation, (V,), and whether it is more than rounding, (V,).
    """
    name = layer.parameter("weight")
    weight_gradient, mask = gradient[name], masks.get(name)  # (V, K, features)
    if mask is None:
        power = delta.square().sum(1, keepdim=True).expand(-1, weight_gradient.shape[2])
    else:
        power = (delta.square()[:, None] @ mask.to(delta))[:, 0]
    along = (delta[:, None] @ weight_gradient)[:, 0].square() / power.clamp_min(1e-300)
    whole = weight_gradient.flatten(1).square().sum(1)
    beyond = (whole - along.sum(1)).clamp_min(0.0)  # relative to `whole`, good to 1e-15
    number = weight_gradient[0].numel() if mask is None else mask.flatten(1).sum(1)
    freedom = (number - (power > 0).sum(1)).clamp_min(1)
    noise = (beyond / freedom).sqrt()
    rounding = 1e-7 * (whole / weight_gradient[0].numel()).sqrt()
    return noise, noise > _NOISY * rounding
