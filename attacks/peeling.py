"""A chain of layers undone from an entrance down to the image; several victims together.

Each layer's output and the loss's derivative there are known, which makes its weight gradient and
its forward pass linear in its input: solve, go down. See `closed_form`, the attack.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.activations import INVERTIBLE
from attacks.entrance import Entrance, entrances
from attacks.labels import read_labels
from attacks.network import Layer, Trace, same_values, trace
from attacks.observation import AttackFailed, Tensors
from attacks.signals import Heard, Signal, reshaped
from attacks.undo import undo_layer


@dataclass(frozen=True, kw_only=True, eq=False)
class Peeled:
    """The image at the bottom of the chain.

    Attributes:
        inputs: The image, (1, C, H, W), clamped to the input range.
        labels: Its label, (1,), int64; None where the classifier does not tell.
        is_of_whole: Whether all layers were undone, so that a guess's gradient can be computed.
        notes: Per layer, what its equations determine; and for the image, `expected_rmse`, the
            error that the equations let expect, and `excursion`, how far it left the range.
    """

    inputs: Tensor
    labels: Tensor | None
    is_of_whole: bool
    notes: dict[str, str | float]


def peel(
    model: nn.Module,
    gradient: Tensors,
    *,
    input_shape: tuple[int, ...],
    input_range: tuple[float, float] = (0.0, 1.0),
    rng: torch.Generator,
    visible: Tensors | None = None,
    trains: bool = False,
) -> Peeled:
    """Solve for the one image behind a gradient; also a start for attacks that optimise.

    From a gradient that is noisy or was heard in part comes the best guess, however bad: its
    `expected_rmse` says how bad. From a whole and clean one, an answer or a refusal.

    Args:
        model: With the weights in force, in evaluation mode.
        gradient: Gradient of the cross-entropy of one example, by parameter name; a parameter may
            be missing.
        input_shape: (C, H, W).
        input_range: Lowest and highest value of an input.
        rng: Draws the made-up inputs that tell what to expect.
        visible: Per parameter, True where a coordinate was heard; None when all of them were.
        trains: Whether clients run the model in training mode; what that changes is looked for.

    Raises:
        AttackFailed: The model can be entered nowhere (see `entrance`), too little was heard, or
            a layer's equations leave too much open.
    """
    (peeled,) = peel_many(
        model,
        [gradient],
        input_shape=input_shape,
        input_range=input_range,
        rngs=[rng],
        visible=[visible],
        trains=trains,
    )
    return peeled


def peel_many(
    model: nn.Module,
    gradients: Sequence[Tensors],
    *,
    input_shape: tuple[int, ...],
    input_range: tuple[float, float] = (0.0, 1.0),
    rngs: Sequence[torch.Generator],
    visible: Sequence[Tensors | None] | None = None,
    trains: bool = False,
) -> list[Peeled]:
    """Solve for the one image behind each of several gradients at the same weights; see `peel`.

    Raises:
        AttackFailed: What `peel` raises, for any of them.
    """
    traced = trace(model, input_shape)
    if not bool(traced.outputs.isfinite().all()):
        raise AttackFailed("the model's output is not finite with the weights in force")
    trained = trace(model, input_shape, training=True) if trains else None
    seen = visible or [None] * len(gradients)
    whole, masks = _stacked(traced, gradients, seen)
    reason: AttackFailed | None = None
    for entrance in entrances(model, traced, trained, whole, masks):
        try:
            signal, notes = _undo_all(
                traced, entrance, whole, masks, mid_grey=sum(input_range) / 2, rngs=rngs
            )
        except AttackFailed as failure:
            if len(gradients) > 1:  # alone, some of them may go on from here
                raise
            reason = reason or failure
            continue
        labels: list[Tensor | None] = (
            [
                read_labels(gradient, traced, visible=heard, batch_size=1)
                for gradient, heard in zip(gradients, seen, strict=True)
            ]
            if entrance.labels is None
            else list(entrance.labels[:, None])
        )
        return _images(reshaped(signal, input_shape), labels, notes, entrance, input_range, traced)
    raise reason or AttackFailed("the model can be entered nowhere")


def _undo_all(
    traced: Trace,
    entrance: Entrance,
    gradient: Tensors,
    masks: Tensors,
    *,
    mid_grey: float,
    rngs: Sequence[torch.Generator],
) -> tuple[Signal, list[dict[str, str | float]]]:
    """Undo all layers from `entrance` down; return what is known of the image, and notes.

    Raises:
        AttackFailed: One of them leaves too much open.
    """
    chain = traced.layers[: entrance.place + 1]
    of_chain = {layer.parameter("weight") for layer in chain} & masks.keys()
    heard = Heard(
        gradient=gradient,
        masks=masks,
        noise=entrance.noise,
        is_whole=not of_chain and not bool(entrance.is_noisy.any()),
        lowest=next((layer.name for layer in chain if _has_weights(layer)), None),
        head=chain[-1].name if entrance.is_classifier else None,
        centre=_centres(chain, torch.full_like(traced.inputs, mid_grey)),
        rngs=rngs,
    )
    signal = entrance.signal
    notes: list[dict[str, str | float]] = [{} for _ in rngs]
    for layer in reversed(chain):
        signal = undo_layer(layer, signal, heard)
        for own, note in zip(notes, signal.notes or (), strict=signal.notes is not None):
            if note:
                own[layer.name] = note
    return signal, notes


def _images(
    signal: Signal,
    labels: Sequence[Tensor | None],
    notes: Sequence[dict[str, str | float]],
    entrance: Entrance,
    input_range: tuple[float, float],
    traced: Trace,
) -> list[Peeled]:
    """Return the image and what is to be said of it, per victim."""
    low, high = input_range
    inputs = signal.value.clamp(low, high)
    error = signal.error.clamp_max(high - low).square().flatten(1).mean(1).sqrt().tolist()
    excursion = (signal.value - inputs).abs().flatten(1).amax(1).tolist()
    inputs = inputs.to(traced.inputs.dtype)
    for victim, own in enumerate(notes):
        own.update(expected_rmse=error[victim], excursion=excursion[victim])
        misfit = entrance.misfits[victim] if entrance.misfits is not None else None
        if misfit is not None:
            own["softmax_misfit"] = misfit
        if not entrance.is_classifier:
            own["entrance"] = traced.layers[entrance.place].name
        if labels[victim] is None:
            own["labels"] = "the classifier does not tell"
    return [
        Peeled(
            inputs=inputs[i : i + 1],
            labels=labels[i],
            is_of_whole=entrance.is_classifier,
            notes=own,
        )
        for i, own in enumerate(notes)
    ]


def _has_weights(layer: Layer) -> bool:
    return isinstance(layer.module, nn.Linear | nn.Conv2d)


def _stacked(
    traced: Trace, gradients: Sequence[Tensors], visible: Sequence[Tensors | None]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the gradients of layers with weights, (V, ...) with zeros where nothing was heard.

    Returns:
        The gradients, float64, by parameter name; and which coordinates were heard, for those of
        which some were not.

    Raises:
        AttackFailed: A gradient is not finite where it was heard.
    """
    whole, masks = {}, {}
    for layer in traced.layers:
        if not _has_weights(layer):
            continue
        for own, parameter in layer.module.named_parameters():
            name = layer.parameter(own)
            values, heard = [], []
            for gradient, seen in zip(gradients, visible, strict=True):
                value = gradient.get(name)
                mask = None if seen is None else seen.get(name)
                if value is None:
                    value = torch.zeros_like(parameter)
                    mask = torch.zeros_like(parameter, dtype=torch.bool)
                mask = torch.ones_like(value, dtype=torch.bool) if mask is None else mask.bool()
                values.append(torch.where(mask, value.double(), 0.0))
                heard.append(mask)
            whole[name], mask = torch.stack(values), torch.stack(heard)
            if not bool(whole[name].isfinite().all()):
                raise AttackFailed(f"the gradient of '{name}' is not finite")
            if own == "weight" and _is_after_activation(traced, layer):
                mask = mask & (whole[name].flatten(2) != 0).any(1)[:, None]
            if not bool(mask.all()):
                masks[name] = mask
    return whole, masks


def _is_after_activation(traced: Trace, layer: Layer) -> bool:
    """Whether a linear layer receives what an activation returns that is never zero all over.

    A column of zeros in its weight gradient was then put there (Soteria; Sun et al., 2021,
    https://arxiv.org/abs/2012.06043), and says nothing.
    """
    if not isinstance(layer.module, nn.Linear):
        return False
    return any(
        isinstance(other.module, INVERTIBLE) and same_values(other.outputs, layer.inputs)
        for other in traced.layers
    )


def _centres(chain: Sequence[Layer], grey: Tensor) -> dict[str, Tensor]:
    """Return what each layer receives of a `grey` image, (1, C, H, W), float64, without batch."""
    centres, flowing = {}, grey
    with torch.no_grad():
        for layer in chain:
            flowing = flowing.reshape(1, *layer.input_shape)
            centres[layer.name] = flowing[0].double()
            flowing = layer.module(flowing.clone())
    return centres
