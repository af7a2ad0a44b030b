"""Layer by layer in closed form (after R-GAP; Zhu and Blaschko, 2021, arxiv.org/abs/2010.07733).

For one image and a chain of layers. The classifier gives the error at the logits and its own
input. Going down, each layer's output and the loss's derivative there are known, which makes its
weight gradient and its forward pass linear in its input: solve, undo the activation below, repeat
down to the image.

Differs from the paper, which `r_gap` follows: any linear layer with a bias will do to begin with,
whatever comes above it (`entrance`); a layer trusts its weight gradient where that
determines the input, because errors of the layers above reach it least, and weighs all other
equations by their precision; ReLU tells its positive outputs and bounds the others; coordinates
that were not heard are left out; errors are followed from layer to layer; victims of the same
weights are solved together.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from attacks.entrance import check_entrance
from attacks.network import known_architecture, trace, with_weights
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
from attacks.peeling import Peeled, peel_many
from attacks.threats import WHITE_BOX, Capability

_TOGETHER = 16
"""Victims solved in one computation; 8 take a tenth longer each, 4 a third."""


@dataclass(frozen=True, kw_only=True)
class ClosedForm:
    """Solve for the one image behind a gradient, layer by layer; see the module."""

    @property
    def needs(self) -> frozenset[Capability]:
        """The weights in force and the architecture, one image's shape, and that it is one."""
        return WHITE_BOX

    def check(self, known: Knowledge) -> None:
        """Refuse several steps, several images, and models that cannot be undone from anywhere."""
        require_one_step(known.recipe)
        _require_one_image(known)
        model, input_shape = known_architecture(known)
        trained = trace(model, input_shape, training=True) if _trains(known) else None
        check_entrance(model, trace(model, input_shape), trained)

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
            returns .labels: (1,) int64; None where the classifier does not tell

        Raises:
            AttackFailed: More than one image, the weights not heard, or what `peel` cannot do.
        """
        seen = only(seen)
        (found,) = _solve([_prepared(seen, known)], [rng])
        return found

    def many(
        self,
        seen: Sequence[Observation],
        known: Sequence[Knowledge],
        *,
        rngs: Sequence[torch.Generator],
        budget: Budget | None = None,
    ) -> list[Reconstruction | AttackFailed]:
        """Guess the image behind each observation; victims of the same weights go together.

        Company changes a guess by rounding alone. Victims left when the budget is spent are
        reported as failed.
        """
        budget = budget or Budget()
        results: dict[int, Reconstruction | AttackFailed] = {}
        ready: dict[int, _Prepared] = {}
        for index, (message, words) in enumerate(zip(seen, known, strict=True)):
            try:
                ready[index] = _prepared(only(message), words)
            except AttackFailed as failure:
                results[index] = failure
        for chunk in _chunks(ready):
            if budget.spent:
                late = AttackFailed("the time allowed was over before this victim's turn")
                results.update(dict.fromkeys(chunk, late))
                continue
            results.update(_each([ready[i] for i in chunk], [rngs[i] for i in chunk], chunk))
        return [results[index] for index in range(len(seen))]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Prepared:
    """One victim, ready to be solved."""

    known: Knowledge
    seen: Observation
    gradient: Tensors

    def goes_with(self, other: "_Prepared") -> bool:
        """Whether the two can be solved in one computation."""
        mine, theirs = self.known, other.known
        return (
            mine.model is theirs.model
            and mine.loss is theirs.loss
            and _trains(mine) == _trains(theirs)
            and mine.input_shape == theirs.input_shape
            and mine.input_range == theirs.input_range
            and (self.seen.visible is None) == (other.seen.visible is None)
            and self.gradient.keys() == other.gradient.keys()
            and _same(self.seen.weights, other.seen.weights)
            and _same(self.seen.buffers, other.seen.buffers)
        )


def _same(one: Tensors | None, other: Tensors | None) -> bool:
    """Whether two states hold the same numbers."""
    if one is None or other is None:
        return one is other
    return one.keys() == other.keys() and all(
        one[name] is other[name]
        or (one[name].device == other[name].device and torch.equal(one[name], other[name]))
        for name in one
    )


def _chunks(ready: dict[int, _Prepared]) -> Iterator[list[int]]:
    """Yield groups of victims that can be solved together, in order of their first."""
    groups: list[list[int]] = []
    for index, victim in ready.items():
        home = next((group for group in groups if ready[group[0]].goes_with(victim)), None)
        if home is None:
            groups.append([index])
        else:
            home.append(index)
    for group in groups:
        for start in range(0, len(group), _TOGETHER):
            yield group[start : start + _TOGETHER]


def _each(
    victims: Sequence[_Prepared], rngs: Sequence[torch.Generator], names: Sequence[int]
) -> dict[int, Reconstruction | AttackFailed]:
    """Solve victims together or, when one of them fails, each alone, from the same draws."""
    states = [rng.get_state() for rng in rngs]
    try:
        return dict(zip(names, _solve(victims, rngs), strict=True))
    except AttackFailed as failure:
        if len(victims) == 1:
            return {names[0]: failure}
    results: dict[int, Reconstruction | AttackFailed] = {}
    for victim, rng, state, name in zip(victims, rngs, states, names, strict=True):
        rng.set_state(state)
        results |= _each([victim], [rng], [name])
    return results


def _prepared(seen: Observation, known: Knowledge) -> _Prepared:
    """Check what can be checked of one victim before anything is computed.

    Raises:
        AttackFailed: More than one image, or something that is needed was not heard.
    """
    model, _ = known_architecture(known)
    _require_one_image(known)
    if seen.weights is None:
        raise AttackFailed("the closed form needs the weights in force; none heard")
    # a client in training mode does not use them, and such a layer is not entered from above
    uses_buffers = not _trains(known) and any(isinstance(_, _BatchNorm) for _ in model.modules())
    if seen.buffers is None and uses_buffers:
        raise AttackFailed("the closed form needs the running statistics; none heard")
    return _Prepared(known=known, seen=seen, gradient=gradient_of(seen, known.recipe))


def _solve(victims: Sequence[_Prepared], rngs: Sequence[torch.Generator]) -> list[Reconstruction]:
    """Solve victims of the same weights together."""
    start = time.monotonic()
    first = victims[0]
    architecture, input_shape = known_architecture(first.known)
    model = with_weights(architecture, first.seen.weights or {}, first.seen.buffers)
    peeled = peel_many(
        model,
        [victim.gradient for victim in victims],
        input_shape=input_shape,
        input_range=first.known.input_range,
        rngs=rngs,
        visible=[victim.seen.visible for victim in victims],
        trains=_trains(first.known),
    )
    distances = _mismatches(model, first.known.loss, peeled, victims)
    each = (time.monotonic() - start) / len(victims)
    return [
        Reconstruction(
            inputs=found.inputs,
            labels=found.labels,
            matching_loss=distance,
            seconds=each,
            notes=found.notes,
        )
        for found, distance in zip(peeled, distances, strict=True)
    ]


def _trains(known: Knowledge) -> bool:
    """Whether clients may run the model in training mode."""
    return known.recipe is None or known.recipe.train_mode


def _require_one_image(known: Knowledge) -> None:
    if known.batch_size != 1:
        raise AttackFailed(f"the closed form is for one image, not {known.batch_size}")


def _mismatches(
    model: nn.Module, loss: Loss, peeled: Sequence[Peeled], victims: Sequence[_Prepared]
) -> list[float | None]:
    """Return the squared distance between each gradient heard and that of the guess.

    None where the model was entered below what may be random.
    """
    if not peeled[0].is_of_whole:
        return [None] * len(peeled)
    parameters = {name: tensor.detach() for name, tensor in model.named_parameters()}

    def loss_of(parameters: dict[str, Tensor], inputs: Tensor, label: Tensor) -> Tensor:
        return loss(functional_call(model, parameters, (inputs[None],)), label[None])

    inputs = torch.cat([found.inputs for found in peeled])
    labels = torch.cat([found.labels for found in peeled if found.labels is not None])
    guesses = vmap(grad(loss_of), in_dims=(None, 0, 0))(parameters, inputs, labels)
    distances = []
    for index, victim in enumerate(victims):
        total = inputs.new_zeros(())
        for name, heard in victim.gradient.items():
            if name in guesses:
                beyond = guesses[name][index] - heard
                mask = (victim.seen.visible or {}).get(name)
                total = total + (beyond if mask is None else beyond * mask).square().sum()
        distances.append(total)
    numbers: list[float | None] = torch.stack(distances).tolist()
    return numbers
