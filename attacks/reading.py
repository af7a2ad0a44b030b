"""What an adversary who knows the defenses starts from: what they left, with its length restored.

No paper of its own. Clipping and the like change the length of an update and keep its direction.
Behind one example and a classifier with a bias, the length follows from the direction: the ratio
of the classifier's weight and bias gradients gives its input h, whatever both were multiplied
with; the weights in force turn h into predictions; and predictions minus the label are the bias
gradient, at its true length.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional

from attacks.defense import (
    Noise,
    Untold,
    add_noise,
    length_of,
    noise_deviation,
    read_defenses,
)
from attacks.isolation.prior import size_of
from attacks.network import Layer, known_architecture, trace
from attacks.observation import (
    AttackFailed,
    Kind,
    Knowledge,
    LocalRecipe,
    Observation,
    delta_of,
    gradient_of,
)

_ALONG = 0.9
"""Cosine between the predicted bias gradient and the one heard below which neither is trusted."""
_FITS = 0.01
"""Share of the bias gradient that may be left over where inputs of the classifier are unknown."""
_SOUND = 1e-5
"""Errors below this share of the root mean square of what was heard are rounding."""
_WORST = 0.99
"""Largest error of an estimate that is reckoned with, relative to what it is an estimate of."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What is left of a message after all defenses that are known.

    Attributes:
        seen: The message; hidden coordinates and struck parameters are gone.
        known: What is known then; it names no defenses.
        notes: What reading came to, for people, by short name.
    """

    seen: Observation
    known: Knowledge
    notes: Mapping[str, str | float] = field(default_factory=dict)

    @property
    def damaged(self) -> bool:
        """Whether something is missing, noisy, or without a length."""
        noise = self.known.noise
        return (
            not self.known.length_known
            or self.known.signs_only
            or (noise is not None and any(noise.deviation.values()))
            or bool(self.seen.visible)
        )

    @property
    def weights_estimated(self) -> bool:
        """Whether the weights in force are a guess, so that nothing can be recomputed exactly."""
        if self.seen.weights is None or self.seen.isolated is None:
            return False
        error = self.seen.expected_weights_error
        return error is None or error > _SOUND


def read(seen: Observation, known: Knowledge) -> Reading:
    """Read the defenses in `known` off a message, restore its length, and say what was found.

    Where no defense is known, noise that is alike everywhere is still looked for.

    Raises:
        AttackFailed: A defense leaves nothing to attack.
    """
    notes: dict[str, str | float] = {}
    before = seen
    if known.defenses:
        notes["read"] = ", ".join(_title(defense) for defense in known.defenses)
        seen, known = read_defenses(seen, known)
        notes |= _what_is_left(before, seen)
    elif known.noise is None:
        known = replace(known, noise=found_noise(seen, known))
    if seen.isolated == "estimated" or known.noise is None:  # rounding shows by itself
        known = with_isolation_error(seen, known)
    if known.noise is not None and (largest := max(known.noise.deviation.values(), default=0.0)):
        notes["noise_read"] = largest
    if known.signs_only:
        notes["length"] = "nothing but signs"
    elif not known.length_known:
        seen, known, notes["length"] = restored(seen, known)
    reading = Reading(seen=seen, known=known, notes=notes)
    if reading.weights_estimated:
        off = seen.expected_weights_error
        notes["weights"] = "estimated" if off is None else f"estimated, {off:.1e} off"
    return reading


def with_isolation_error(seen: Observation, known: Knowledge) -> Knowledge:
    """Return `known` with the error to expect of an update that was isolated among peers.

    An estimate is off by what others computed, which has the size of their parameters; the rest is
    rounding, alike everywhere.
    """
    error = min(seen.expected_error or 0.0, _WORST)
    if not error > _SOUND:
        return known
    sizes = {}
    for name, tensor in seen.update.items():
        mask = (seen.visible or {}).get(name)
        sizes[name] = size_of(tensor if mask is None else tensor[mask.bool()])
    if seen.isolated != "estimated":
        whole = torch.cat([tensor.flatten() for tensor in seen.update.values()])
        return add_noise(known, dict.fromkeys(sizes, error * size_of(whole)))
    # the error is relative to the update, of which a posterior mean is but a part
    error /= math.sqrt(1 - error**2)
    return add_noise(known, {name: error * size for name, size in sizes.items()})


def found_noise(seen: Observation, known: Knowledge) -> Noise | None:
    """Return noise that is alike in all coordinates, as the classifier's gradient tells.

    None where there is none but rounding, or where training is not by cross-entropy.
    """
    try:
        classifier = trace(*known_architecture(known)).classifier()
    except AttackFailed:
        return None
    # new weights are a sum with those in force, and so are not noise alone
    if classifier is None or seen.kind is Kind.WEIGHTS or not known.length_known:
        return None
    if known.loss is not functional.cross_entropy:
        return None
    weight = classifier.parameter("weight")
    deviation = noise_deviation(seen, weight)
    if deviation is None:
        return None
    heard = seen.update[weight]
    usual = length_of({weight: heard}) / heard.numel() ** 0.5
    if not deviation > _SOUND * usual:
        return None
    return Noise(deviation=dict.fromkeys(seen.update, deviation))


def restored(seen: Observation, known: Knowledge) -> tuple[Observation, Knowledge, str]:
    """Give an update whose direction alone is known its length back, where that can be told.

    Returns:
        The message and the knowledge, changed if it could; and what came of it, in words.
    """
    try:
        factor = _factor(seen, known)
    except AttackFailed as failed:
        return seen, known, f"unknown: {failed}"
    if seen.kind is Kind.WEIGHTS:
        seen = replace(seen, kind=Kind.DELTA, update=delta_of(seen))
    noise = known.noise
    if noise is not None:
        deviation = {name: factor * its for name, its in noise.deviation.items()}
        noise = replace(noise, deviation=deviation)
    update = {name: factor * tensor for name, tensor in seen.update.items()}
    known = replace(known, noise=noise, length_known=True)
    return replace(seen, update=update), known, f"restored, times {factor:.4g}"


def _factor(seen: Observation, known: Knowledge) -> float:
    """Return what an update must be multiplied with to have its true length.

    Raises:
        AttackFailed: That cannot be told; the message says why.
    """
    if known.batch_size != 1:
        raise AttackFailed("it can be restored for one example only")
    if seen.kind is Kind.AGGREGATE:
        raise AttackFailed("a mean of several clients has several lengths")
    if known.loss is not functional.cross_entropy:
        raise AttackFailed("it can be restored behind cross-entropy only")
    gradient = gradient_of(seen, known.recipe)
    classifier = trace(*known_architecture(known)).classifier()
    if classifier is None or seen.weights is None:
        raise AttackFailed("no linear layer gives the logits, or no weights were heard")
    if not {classifier.parameter("weight"), classifier.parameter("bias")} <= gradient.keys():
        raise AttackFailed("the classifier has no bias, or its gradient was not heard")
    rows, signal = (_heard(gradient, seen, classifier, name) for name in ("weight", "bias"))
    weight, bias = (
        seen.weights[classifier.parameter(name)].double() for name in ("weight", "bias")
    )
    (values, told), (errors, bias_told) = rows, signal
    counted = (told & bias_told[:, None]).double()
    own = _deviation(seen, known, classifier.parameter("bias"))
    power = errors.square() @ counted - own**2 * counted.sum(dim=0)
    reached = torch.where(power > 0, (errors @ (values * counted)) / power, 0.0)
    expected = (weight @ reached + bias).softmax(dim=0)
    expected[int(errors.argmin())] -= 1.0
    expected = torch.where(bias_told, expected, 0.0)
    along = float(expected @ errors)
    if not along > _ALONG * float(expected.norm()) * max(float(errors.norm()), 1e-300):
        raise AttackFailed("the classifier's gradients do not fit one example's predictions")
    if unknown := int((counted.sum(dim=0) == 0).sum()):
        # they count as zero, which small ones nearly are, but those of a random mask are not
        rest = errors - expected * (along / float(expected.square().sum()))
        beyond = float(rest.square().sum()) - own**2 * int(bias_told.sum())
        if beyond > _FITS**2 * float(errors.square().sum()):
            raise AttackFailed(
                f"{unknown} of {counted.shape[1]} inputs of the classifier show in no gradient "
                "that was heard, and without them its predictions do not fit"
            )
    return float(expected.square().sum()) / along


def _heard(
    gradient: Mapping[str, Tensor], seen: Observation, layer: Layer, name: str
) -> tuple[Tensor, Tensor]:
    """Return a gradient, float64 and zero where it was not heard, and where it was."""
    full = layer.parameter(name)
    mask = (seen.visible or {}).get(full)
    told = torch.ones_like(gradient[full], dtype=torch.bool) if mask is None else mask.bool()
    return torch.where(told, gradient[full].double(), 0.0), told


def _deviation(seen: Observation, known: Knowledge, name: str) -> float:
    """Return the deviation of noise on a parameter, in units of the gradient."""
    deviation = 0.0 if known.noise is None else known.noise.deviation.get(name, 0.0)
    recipe = known.recipe or LocalRecipe()
    if seen.kind in (Kind.DELTA, Kind.WEIGHTS):
        deviation /= recipe.learning_rate or 1.0
    return deviation


def _title(defense: object) -> str:
    if isinstance(defense, Untold):
        return f"{type(defense.defense).__name__} (estimated)"
    return type(defense).__name__


def _what_is_left(before: Observation, after: Observation) -> dict[str, str | float]:
    """Return, in words, what reading hid and struck."""
    notes: dict[str, str | float] = {}
    gone = before.update.keys() - after.update.keys()
    if gone:
        notes["ignored"] = ", ".join(sorted(gone))
    if after.visible and after.visible is not before.visible:
        total = sum(tensor.numel() for tensor in before.update.values())
        hidden = sum(int((~mask.bool()).sum()) for mask in after.visible.values())
        left = sum(tensor.numel() for tensor in after.update.values()) - hidden
        notes["survive"] = f"{left / total:.1%} of the coordinates"
    return notes
