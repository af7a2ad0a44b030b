"""Which attacks are worth trying on what was heard, strongest first. No paper."""

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import nn

from attacks import ATTACKS
from attacks.network import Trace, known_architecture, trace
from attacks.observation import Attack, AttackFailed, Kind, Knowledge, Observation

_KINKED = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.Hardtanh, nn.MaxPool2d)
"""Layers whose second derivative is zero or undefined: squared distances are hard to search."""
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d, nn.GroupNorm, nn.LayerNorm)
_SMALL = 2_000_000
"""Parameters up to which L-BFGS is tried first."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An attack worth trying.

    Attributes:
        name: As `ATTACKS` has it.
        why: Why it is tried here.
        exact: Whether it solves instead of searching.
        share: Of the time that is left when its turn comes.
        options: Its settings.
    """

    name: str
    why: str
    exact: bool = False
    share: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)


def choices(
    known: Knowledge, rounds: Sequence[Observation] = (), *, damaged: bool = False
) -> Iterator[Choice]:
    """Yield the attacks worth trying, strongest first, by what the architecture and the view say.

    Args:
        known: What was granted.
        rounds: What was heard; none before a run.
        damaged: Whether defenses left something noisy, hidden or without a length.
    """
    model, input_shape = known_architecture(known)
    traced = trace(model, input_shape)
    single = known.batch_size == 1
    several_steps = known.recipe is not None and known.recipe.num_steps > 1
    first = _first_linear(traced)
    if known.recipe is None and any(one.kind in (Kind.DELTA, Kind.WEIGHTS) for one in rounds):
        yield Choice(
            name="estimated-recipe", why="how clients train was not granted: estimated", share=0.6
        )
        yield Choice(name="surrogate", why="how clients train was not granted, nor needed")
        return
    if not several_steps and not known.signs_only:
        columns = () if known.columns is None else known.columns.columns
        if first and not single and any(column.categories for column in columns):
            yield Choice(
                name="span-rows", why="rows of a table, whose categories are known", exact=True
            )
        yield from _exact(traced, single=single, first=first)
    if rounds and rounds[-1].weights is None:  # nothing can be recomputed
        if first and not single:
            yield Choice(name="cocktail-party", why="a first linear layer, and no weights heard")
        yield Choice(name="label", why="no weights were heard, but what labels do shows without")
        return
    if damaged:
        yield Choice(name="bayesian", why="what was heard is noisy or in part", share=0.6)
    if len(rounds) > 1:
        yield Choice(name="temporal", why=f"{len(rounds)} rounds of the same client", share=0.7)
    yield from _searching(traced, known, rounds, several_steps=several_steps)


def _exact(traced: Trace, *, single: bool, first: bool) -> Iterator[Choice]:
    if single:
        if first:
            yield Choice(
                name="linear", why="one example, and a linear layer that sees it", exact=True
            )
        if any("attention" in layer.kind.lower() for layer in traced.layers) or any(
            "attention" in layer.name or ".attn" in layer.name for layer in traced.layers
        ):
            yield Choice(name="april", why="one image, and attention over its patches", exact=True)
        yield Choice(name="closed-form", why="one example: layer by layer", exact=True)
    elif first:
        yield Choice(
            name="cascade", why="a first linear layer, which can prove examples", exact=True
        )
        yield Choice(
            name="spear", why="a first linear layer with ReLU: sparsity", exact=True, share=0.3
        )


def _searching(
    traced: Trace, known: Knowledge, rounds: Sequence[Observation], *, several_steps: bool
) -> Iterator[Choice]:
    kinked = any(isinstance(layer.module, _KINKED) for layer in traced.layers)
    normed = any(isinstance(layer.module, _NORMS) for layer in traced.layers)
    parameters = sum(
        parameter.numel() for layer in traced.layers for parameter in layer.module.parameters()
    )
    smooth = not kinked and not normed and parameters <= _SMALL
    if known.columns is not None:
        yield Choice(name="tableak", why="rows of a table, whose columns are known", share=0.8)
    if several_steps:
        yield from _replaying(known, smooth=smooth)
        return
    if any(one.buffers_after for one in rounds):
        yield Choice(name="gradinversion", why="the client sent its batch's statistics", share=0.4)
    if smooth and known.length_known:
        single = known.batch_size == 1
        name = "idlg" if single else "dlg"
        yield Choice(name=name, why="a small smooth network: L-BFGS", share=0.6)
        if single:
            yield Choice(name="dlg", why="its label may have been misread", share=0.5)
    yield Choice(name="inverting-gradients", why="angles and smooth images", share=0.8)
    if not smooth:
        yield Choice(name="fedleak", why="flat minima of a part of the gradient")


def _replaying(known: Knowledge, *, smooth: bool) -> Iterator[Choice]:
    size = None if known.recipe is None else known.recipe.batch_size
    if size is not None and known.batch_size is not None and size < known.batch_size:
        yield Choice(
            name="fedavg-epochs", why="several batches, dealt out in a way nobody heard", share=0.7
        )
    elif smooth and known.length_known:
        yield Choice(name="dlg", why="a small smooth network, and steps to replay", share=0.6)
    yield Choice(name="inverting-gradients", why="the client's steps are replayed", share=0.7)
    yield Choice(name="surrogate", why="several steps, seen as one from a point between")


def refusal(choice: Choice, known: Knowledge) -> str | None:
    """Say why an attack can never apply here; None if it may."""
    try:
        built(choice).check(known)
    except AttackFailed as failed:
        return str(failed)
    return None


def require_some(listed: Iterable[Choice], known: Knowledge) -> None:
    """Refuse where no attack of a list could ever apply.

    Raises:
        AttackFailed: None can; the message says why of each.
    """
    reasons = []
    for choice in listed:
        reason = refusal(choice, known)
        if reason is None:
            return
        reasons.append(f"{choice.name}: {reason}")
    raise AttackFailed("no attack applies; " + "; ".join(reasons))


def built(choice: Choice) -> Attack:
    """Return the attack that was chosen."""
    attack: Attack = attack_class(choice.name)(**choice.options)
    return attack


@cache
def attack_class(name: str) -> Any:
    """Return the class of an attack by name."""
    module, _, attribute = ATTACKS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def _first_linear(traced: Trace) -> bool:
    """Whether the first layer with weights is linear: it sees the whole input."""
    weighty = (layer for layer in traced.layers if any(True for _ in layer.module.parameters()))
    first = next(weighty, None)
    return first is not None and isinstance(first.module, nn.Linear) and first.inputs.dim() == 2
