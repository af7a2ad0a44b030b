"""What an adversary makes of a defense that it knows.

A defense changes what a client sends. Who knows it reads a message with that in mind: compares
only what survived, weighs the rest by how exact it is, forgets a length that means nothing. This
module has the words for it; each defense says, in `read`, what is left of a message that went
through it. The same object defends at the client.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from attacks.observation import Kind, Knowledge, Observation, Tensors, delta_of


class Family(StrEnum):
    """What a random error looks like."""

    GAUSSIAN = "gaussian"
    LAPLACIAN = "laplacian"
    UNIFORM = "uniform"
    """Rounding: anything up to the square root of 3 standard deviations."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How far what was heard may be from what a client computed.

    Attributes:
        deviation: Standard deviation per coordinate, by parameter name, in units of the update
            heard (of a gradient, or of a change of weights); a missing name is exact.
        family: Its distribution; of several sources, that of the largest.
    """

    deviation: Mapping[str, float] = field(default_factory=dict)
    family: Family = Family.GAUSSIAN


@runtime_checkable
class KnownDefense(Protocol):
    """One link of a client's chain, as an adversary who knows it reads it."""

    def read(self, seen: Observation, known: Knowledge) -> tuple[Observation, Knowledge]:
        """Return what is left of a message that went through this link last, and what to know.

        Args:
            seen: What was heard.
            known: What was granted; `known.defenses` still names the whole chain.
        """


@runtime_checkable
class Estimable(KnownDefense, Protocol):
    """A defense whose settings can be read off what it did."""

    def estimated(self, seen: Observation, known: Knowledge) -> KnownDefense:
        """Return the same defense with the settings that what was heard speaks for."""


@dataclass(frozen=True, kw_only=True)
class Untold:
    """A defense that the adversary knows by name alone: its settings are estimated.

    Attributes:
        defense: With any settings.
    """

    defense: KnownDefense

    def read(self, seen: Observation, known: Knowledge) -> tuple[Observation, Knowledge]:
        """Estimate the settings where that can be done, then read as one who knows them."""
        defense = self.defense
        if isinstance(defense, Estimable):
            defense = defense.estimated(seen, known)
        return defense.read(seen, known)


def read_defenses(seen: Observation, known: Knowledge) -> tuple[Observation, Knowledge]:
    """Return what is left of a message after all defenses that the adversary knows of.

    They are read from the last to the first, the way back. The knowledge returned names none.
    """
    for defense in reversed(known.defenses):
        seen, known = defense.read(seen, known)
    return seen, replace(known, defenses=())


def hide(seen: Observation, masks: Tensors) -> Observation:
    """Return `seen` with fewer coordinates visible: those that both allow.

    Args:
        seen: What was heard.
        masks: Per parameter, True where a coordinate says something, shaped like it, bool; a name
            that is missing stays as it is.
    """
    visible = dict(seen.visible or {})
    for name, mask in masks.items():
        if name in seen.update:
            visible[name] = visible[name] & mask if name in visible else mask
    return replace(seen, visible=visible)


def strike(seen: Observation, names: Iterable[str]) -> Observation:
    """Return `seen` without these parameters, as if nobody had heard them."""
    gone = set(names)
    visible = None
    if seen.visible is not None:
        visible = {name: mask for name, mask in seen.visible.items() if name not in gone}
    update = {name: tensor for name, tensor in seen.update.items() if name not in gone}
    kind = Kind.CHUNK if seen.kind is Kind.GRADIENT else seen.kind
    return replace(seen, kind=kind, update=update, visible=visible)


def add_noise(
    known: Knowledge, deviation: Mapping[str, float], family: Family = Family.GAUSSIAN
) -> Knowledge:
    """Return `known` with one more source of error; independent ones add their variances.

    Args:
        known: What was granted.
        deviation: Standard deviation per coordinate, by parameter name.
        family: Of the new source.
    """
    before = known.noise or Noise()
    names = before.deviation.keys() | deviation.keys()
    total = {
        name: math.hypot(before.deviation.get(name, 0.0), deviation.get(name, 0.0))
        for name in sorted(names)
    }
    largest = max(before.deviation.values(), default=0.0) > max(deviation.values(), default=0.0)
    return replace(known, noise=Noise(deviation=total, family=before.family if largest else family))


def change_of(seen: Observation) -> Tensors:
    """Return what a client's defenses changed: the gradient, or how far its weights moved.

    Nothing where new weights were heard without those in force.
    """
    if seen.kind is not Kind.WEIGHTS:
        return seen.update
    return delta_of(seen) if seen.weights is not None else {}


def clients_behind(seen: Observation, known: Knowledge) -> int:
    """Return how many clients seem to be behind what was heard, by its number of examples."""
    if seen.kind is not Kind.AGGREGATE:
        return 1
    size = known.recipe.batch_size if known.recipe is not None else None
    examples = seen.num_examples or known.batch_size
    return 1 if size is None or examples is None else max(1, round(examples / size))


def unit_of_mean(seen: Observation, known: Knowledge) -> float:
    """Return what 1 in units of a client's update is in units of what was heard.

    The mean of a round is heard as a gradient, even where clients send changes of weights.
    """
    if seen.kind is not Kind.AGGREGATE or known.recipe is None or not known.recipe.learning_rate:
        return 1.0
    return 1 / known.recipe.learning_rate


def error_in_mean(seen: Observation, known: Knowledge) -> float:
    """Return what is left in what was heard of an error of 1 in every client's update.

    Errors of different clients are independent, and average out.
    """
    return unit_of_mean(seen, known) / math.sqrt(clients_behind(seen, known))


def length_of(update: Tensors) -> float:
    """Return the Euclidean norm of all tensors together."""
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in update.values()))


def noise_deviation(seen: Observation, classifier_weight: str) -> float | None:
    """Estimate the standard deviation of noise that is alike in all coordinates.

    Softmax probabilities and labels both sum to one, so each column of the weight gradient of a
    classifier trained by cross-entropy sums to zero; what it sums to is noise, K times its variance
    for K classes.

    Args:
        seen: What was heard.
        classifier_weight: Name of the classifier's weight, (K, H).

    Returns:
        None if that weight was not heard whole.
    """
    weight = change_of(seen).get(classifier_weight)
    mask = (seen.visible or {}).get(classifier_weight)
    if weight is None or weight.dim() != 2 or (mask is not None and not bool(mask.all())):
        return None
    sums: Tensor = weight.double().sum(dim=0)
    return float(sums.square().mean().sqrt()) / math.sqrt(len(weight))


def surviving(update: Tensors) -> dict[str, Tensor]:
    """Return, per parameter, True where a coordinate is not zero."""
    return {name: torch.ne(tensor, 0) for name, tensor in update.items()}
