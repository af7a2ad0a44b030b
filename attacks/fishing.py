"""Fishing for user data (Wen et al., 2022, https://arxiv.org/abs/2202.00580).

The server changes the classifier alone. All its rows are zero but that of one class t, which is
m r for a direction r of the features h, with bias -m theta. With m large, class t is predicted
with certainty where r.h > theta, and never where it is below. Examples of t above and of other
classes below then have no gradient in the features; what is left is

    sum over other classes, above, of  m r dh/dw  -  sum over class t, below, of  m r dh/dw.

With theta at infinity only examples of class t speak (the class attack): if the batch holds one,
its gradient is alone. Between two thresholds the difference is, with the same sign for every
class, the gradient of the examples between them; thresholds are moved from round to round until
one example is between two (the feature attack). Its gradient is then made complete, as if it had
been sent by a client with one example, and any attack on one image does the rest.

Differs from the paper. The feature is a random direction instead of one coordinate: after a ReLU
many coordinates are zero for several examples, which no threshold separates. Gradients of two
rounds are subtracted, which the paper, fishing inside one class, does not need: so one search
isolates examples of all classes, and all of a batch when there are enough rounds. Brackets are
split at the mean of r.h inside, which the classifier's gradient tells, so that no examples are
needed to plan. The search assumes a client that uses the same batch each round; the server goes on
sending it the same layers below the classifier. Clients that draw new batches are noticed.
"""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from attacks.active import KeepsArchitecture
from attacks.inner import inner_attack
from attacks.network import (
    Layer,
    all_visible,
    known_architecture,
    require_sound_weights,
    trace,
)
from attacks.observation import (
    AttackFailed,
    Budget,
    Kind,
    Knowledge,
    Observation,
    Reconstruction,
    Tensors,
    gradient_of,
    require_one_step,
    rounds_of,
)
from attacks.proof import recomputable
from attacks.threats import WHITE_BOX, Capability

_STEEPNESS = 1e6
"""m, relative to the rows of the classifier in force."""
_FAR = 1e6
"""A threshold that no example reaches, relative to the size of r."""
_COUNTED = 0.05
"""How far from a whole number a count of examples may be."""

_SAME = 1e-3
"""Relative difference up to which two rounds are about the same batch."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Cast:
    """One round: what was sent, and what came back, in float64.

    Attributes:
        fished: t.
        row: m r, (features,).
        threshold: m theta: minus the bias sent.
        gradient: The gradient heard, by name.
        weight: That of the classifier's weight, (K, features).
        bias: That of its bias, (K,).
    """

    fished: int
    row: Tensor
    threshold: float
    gradient: Mapping[str, Tensor]
    weight: Tensor
    bias: Tensor

    @property
    def began(self) -> bool:
        """Whether the threshold was out of reach, as in the first round of a search."""
        return self.threshold >= _far(self.row) / 2


@dataclass(frozen=True, kw_only=True, eq=False)
class _Bracket:
    """The examples between two thresholds.

    Attributes:
        count: How many.
        gradient: The sum of their m r dh/dw, by name.
        features: The sum of their h, (features,).
    """

    count: int
    gradient: Mapping[str, Tensor]
    features: Tensor


@dataclass(frozen=True, kw_only=True)
class Fishing(KeepsArchitecture):
    """Isolate single examples of a batch by class and by feature, then invert each.

    Attributes:
        then: The attack on an isolated example, a name from `fedsim list attacks`.
        options: Its settings.
        rounds: Attacked rounds that belong to one search; 1 is the class attack alone. The attack
            has to be given as many rounds joined.
        target_class: t; None draws one, and later prefers a class with one example.
    """

    then: str = "inverting-gradients"
    options: Mapping[str, object] = field(default_factory=dict)
    rounds: int = 1
    target_class: int | None = None

    def __post_init__(self) -> None:
        if not self.rounds >= 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")
        if self.target_class is not None and not self.target_class >= 0:
            raise ValueError(f"target_class must be at least 0, got {self.target_class}")
        inner_attack(self.then, self.options)

    @property
    def joins(self) -> int:
        """The rounds of a search, which must be heard together."""
        return self.rounds

    @property
    def needs(self) -> frozenset[Capability]:
        """What the attack on one example needs, and to send other weights; labels are known."""
        inner = inner_attack(self.then, self.options).needs - {Capability.LABELS}
        return inner | WHITE_BOX | {Capability.CHANGE_WEIGHTS}

    def check(self, known: Knowledge) -> None:
        """Refuse several steps, models without a linear classifier, and mixed examples."""
        require_one_step(known.recipe)
        _classifier(known)
        inner_attack(self.then, self.options).check(replace(known, batch_size=1))

    def tamper(
        self,
        weights: Tensors,
        known: Knowledge,
        *,
        receiver: str,  # noqa: ARG002 - a client is sent what its own earlier rounds call for
        target: str,  # noqa: ARG002
        earlier: Sequence[Observation],
        rng: torch.Generator,
    ) -> dict[str, Tensor]:
        """Return `weights` with a classifier that lets few examples speak."""
        layer = _classifier(known)
        names = layer.parameter("weight"), layer.parameter("bias")
        current = list(earlier[len(earlier) // self.rounds * self.rounds :])
        casts = [_understand(one, known, layer) for one in current]
        first = current[0].weights if current else None
        threshold = _next(casts, _batch_size(known)) if casts and casts[0].began else None
        if first is not None and threshold is not None:
            return _sent(first, names, casts[0].fished, casts[0].row, threshold)
        before = [_understand(one, known, layer) for one in earlier[-1:]]
        matrix = weights[names[0]]
        row = torch.randn(matrix.shape[1], generator=rng).to(matrix)
        row *= _STEEPNESS * float(matrix.norm(dim=1).mean()) / float(row.norm())
        chosen = self._class(before, len(matrix), _batch_size(known), rng)
        return _sent(weights, names, chosen, row, _far(row))

    def _class(
        self, before: list[_Cast], num_classes: int, batch_size: int, rng: torch.Generator
    ) -> int:
        if self.target_class is not None:
            if self.target_class >= num_classes:
                raise AttackFailed(f"class {self.target_class} is none of {num_classes}")
            return self.target_class
        choice = torch.arange(num_classes)
        if before and before[0].began:
            present = _counts(before[0], batch_size).round().cpu()
            fresh = choice != before[0].fished
            single = choice[(present == 1) & fresh]
            choice = single if len(single) else choice[fresh]
        return int(choice[int(torch.randint(len(choice), (), generator=rng))])

    def __call__(
        self,
        seen: Observation | Sequence[Observation],
        known: Knowledge,
        *,
        rng: torch.Generator,
        budget: Budget | None = None,
    ) -> Reconstruction:
        """Invert every example that one round, or two together, isolate.

        Shapes:
            returns .inputs: (M, C, H, W), M up to B
            returns .labels: (M,) int64, or None where not all of them are known

        The notes tell `isolated`, how many; `fished`, the class; `of_class`, how many of it there
        are.

        Raises:
            AttackFailed: No example was isolated, or the batches differ from round to round.
        """
        start = time.monotonic()
        layer, batch_size = _classifier(known), _batch_size(known)
        names = layer.parameter("weight"), layer.parameter("bias")
        given = rounds_of(seen)
        casts = [_understand(one, known, layer) for one in given]
        began = [index for index, cast in enumerate(casts) if cast.began]
        if not began:
            raise AttackFailed(
                "the round in which the search began was not heard; set join_rounds to "
                f"{self.rounds} in the experiment"
            )
        given, casts = given[began[-1] :], casts[began[-1] :]
        _require_same_buffers(given)
        counts = _counts(casts[0], batch_size)
        of_class = round(float(counts[casts[0].fished]))
        alone, labels = _alone(casts, counts, batch_size)
        if not alone:
            raise AttackFailed(
                f"no example was isolated: the batch holds {of_class} of class {casts[0].fished}"
            )
        attack = inner_attack(self.then, self.options)
        images, finished, notes = [], True, dict[str, str | float]()
        for example in alone:
            single, about = _as_sent_alone(example, casts[0], given[0], known, names)
            found = attack(single, about, rng=rng, budget=budget)
            if found.inputs is None:
                raise AttackFailed(f"attack '{self.then}' returns no images")
            images.append(found.inputs)
            finished, notes = finished and found.finished, dict(found.notes)
            if budget is not None and budget.spent:
                break
        return Reconstruction(
            inputs=torch.cat(images),
            labels=None if labels is None else labels[: len(images)],
            seconds=time.monotonic() - start,
            finished=finished and len(images) == len(alone),
            notes={
                **(notes if len(alone) == 1 else {}),
                "isolated": float(len(alone)),
                "fished": float(casts[0].fished),
                "of_class": float(of_class),
            },
        )


def _batch_size(known: Knowledge) -> int:
    if known.batch_size is None:
        raise AttackFailed("counting examples needs the batch size; grant 'batch-size'")
    return known.batch_size


def _classifier(known: Knowledge) -> Layer:
    model, input_shape = known_architecture(known)
    if not recomputable(model, known.recipe):
        raise AttackFailed(
            "batch normalisation or dropout in training mode: the gradient of one example depends "
            "on the others, or on chance"
        )
    layer = trace(model, input_shape).classifier()
    if layer is None or layer.module.bias is None:
        raise AttackFailed("no linear layer with a bias gives the logits")
    return layer


def _far(row: Tensor) -> float:
    return _FAR * float(row.norm())


def _sent(
    weights: Tensors, names: tuple[str, str], fished: int, row: Tensor, threshold: float
) -> dict[str, Tensor]:
    """Return `weights` with the classifier described in the module."""
    weight, bias = torch.zeros_like(weights[names[0]]), torch.zeros_like(weights[names[1]])
    weight[fished] = row.to(weight)
    bias[fished] = -threshold
    return {**weights, names[0]: weight, names[1]: bias}


def _understand(seen: Observation, known: Knowledge, layer: Layer) -> _Cast:
    """Read off a round's weights what was fished for.

    Raises:
        AttackFailed: The weights are no such classifier, or something was not heard.
    """
    names = layer.parameter("weight"), layer.parameter("bias")
    if seen.kind is Kind.AGGREGATE:
        raise AttackFailed("fishing needs a client's own update, not a mean; see 'eluding'")
    if seen.weights is None or not all_visible(seen.visible, *seen.update):
        raise AttackFailed("fishing needs the weights sent and the whole update")
    parameters = dict(known_architecture(known)[0].named_parameters())
    if not parameters.keys() <= seen.weights.keys():
        raise AttackFailed("fishing needs all weights in force; some were not heard")
    require_sound_weights(known_architecture(known)[0], seen.weights)
    rows = seen.weights[names[0]].double()
    fished = rows.ne(0).any(1).nonzero().squeeze(1).tolist()
    if len(fished) != 1:
        raise AttackFailed("the classifier in force is not one to fish with")
    gradient = {name: t.double() for name, t in gradient_of(seen, known.recipe).items()}
    if any(name not in gradient for name in names):
        raise AttackFailed("the gradient of the classifier was not heard")
    if not all(bool(tensor.isfinite().all()) for tensor in gradient.values()):
        raise AttackFailed("the update heard is not finite")
    return _Cast(
        fished=fished[0],
        row=rows[fished[0]],
        threshold=-float(seen.weights[names[1]][fished[0]]),
        gradient=gradient,
        weight=gradient[names[0]],
        bias=gradient[names[1]],
    )


def _counts(first: _Cast, batch_size: int) -> Tensor:
    """Return how many examples of each class there are, (K,), from the first round of a search.

    There, every example gives t no probability, and the other classes the same.
    """
    counts = batch_size / (len(first.bias) - 1) - batch_size * first.bias
    counts[first.fished] = -batch_size * first.bias[first.fished]
    return counts


def _brackets(casts: Sequence[_Cast], batch_size: int) -> list[_Bracket] | None:
    """Return what lies between neighbouring thresholds, the lowest first.

    Returns:
        None when the rounds contradict each other: their batches differ.
    """
    fished, found = casts[0].fished, []
    ordered = sorted(casts, key=lambda cast: cast.threshold)
    for low, high in itertools.pairwise(ordered):
        count = batch_size * float(low.bias[fished] - high.bias[fished])
        if round(count) < 0 or abs(count - round(count)) > _COUNTED:
            return None
        features = batch_size * (low.weight[fished] - high.weight[fished])
        height = float(features @ casts[0].row) / max(1, round(count))
        if round(count) and not low.threshold <= height <= high.threshold:
            return None
        if not _same_batch(low, high, features / batch_size):
            return None
        difference = {
            name: batch_size * (low.gradient[name] - tensor)
            for name, tensor in high.gradient.items()
        }
        found.append(_Bracket(count=round(count), gradient=difference, features=features))
    return found


def _same_batch(low: _Cast, high: _Cast, moved: Tensor) -> bool:
    """Whether what class t gained in probability, times h, is what the other classes lost."""
    change = low.weight - high.weight
    others = torch.arange(len(change), device=change.device) != low.fished
    left = change[others] + moved / (len(change) - 1)
    return bool(left.abs().max() <= _SAME * high.weight.abs().max())


def _next(casts: Sequence[_Cast], batch_size: int) -> float | None:
    """Return the next threshold of a search, or None to begin a new one."""
    if len(casts) == 1:
        return -_far(casts[0].row)
    brackets = _brackets(casts, batch_size)
    if brackets is None:
        return None
    crowded = [bracket for bracket in brackets if bracket.count > 1]
    if not crowded:
        return casts[-1].threshold  # all are isolated: wait for the end of the search
    least = min(crowded, key=lambda bracket: bracket.count)
    return float(least.features @ casts[0].row) / least.count


def _alone(
    casts: Sequence[_Cast], counts: Tensor, batch_size: int
) -> tuple[list[_Bracket], Tensor | None]:
    """Return the isolated examples, and their labels where all of them are known.

    Raises:
        AttackFailed: The rounds contradict each other.
    """
    first = casts[0]
    brackets = _brackets(casts, batch_size)
    if brackets is None:
        raise AttackFailed(
            "the rounds contradict each other: the client draws new batches, which no search over "
            "rounds can follow; set rounds = 1"
        )
    alone = [bracket for bracket in brackets if bracket.count == 1]
    if len(alone) == batch_size:
        return alone, _labels(first, torch.stack([one.features for one in alone]), batch_size)
    present = (counts.round() > 0).nonzero().squeeze(1)
    if not alone and round(float(counts[first.fished])) == 1:
        gradient = {name: -batch_size * tensor for name, tensor in first.gradient.items()}
        features = -batch_size * first.weight[first.fished]
        alone = [_Bracket(count=1, gradient=gradient, features=features)]
        return alone, torch.tensor([first.fished], device=features.device)
    if len(present) == 1:
        return alone, present.expand(len(alone)).clone()
    return alone, None


def _labels(first: _Cast, features: Tensor, batch_size: int) -> Tensor:
    """Return the labels of all examples, whose features (B, features) are known.

    The first round's row of class j is the mean of h / (K - 1) less the sum of h over the class;
    that of t lacks the first part.
    """
    sums = -batch_size * first.weight
    others = torch.arange(len(sums), device=sums.device) != first.fished
    sums = sums + others[:, None] * features.sum(0) / (len(sums) - 1)
    share: Tensor = torch.linalg.pinv(features.T) @ sums.T  # (B, K): 1 for the label
    return share.argmax(1)


def _as_sent_alone(
    example: _Bracket, first: _Cast, seen: Observation, known: Knowledge, names: tuple[str, str]
) -> tuple[Observation, Knowledge]:
    """Complete an isolated gradient as if a client had sent this one example, labelled t.

    The classifier is that of the first round with its row at ordinary length.
    """
    weights, classes = seen.weights or {}, len(first.bias)
    row = first.row / _STEEPNESS
    sent = _sent(weights, names, first.fished, row, _far(row))
    error = torch.full_like(first.bias, 1 / (classes - 1))
    error[first.fished] = -1.0
    update = {name: -tensor / _STEEPNESS for name, tensor in example.gradient.items()}
    update[names[0]] = torch.outer(error, example.features)
    update[names[1]] = error
    update = {name: tensor.to(weights[name].dtype) for name, tensor in update.items()}
    single = replace(
        seen, kind=Kind.GRADIENT, update=update, weights=sent, visible=None, num_examples=1
    )
    label = torch.tensor([first.fished], device=first.bias.device)
    return single, replace(known, batch_size=1, labels=label)


def _require_same_buffers(given: Sequence[Observation]) -> None:
    for one in given[1:]:
        old, new = given[0].buffers or {}, one.buffers or {}
        if any(not torch.equal(tensor, old[name]) for name, tensor in new.items() if name in old):
            raise AttackFailed("running statistics changed between the rounds of a search")
