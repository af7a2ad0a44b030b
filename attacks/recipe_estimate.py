"""How a client trained, estimated from what it sent, and an attack that works with the estimate.

No paper: what attacks on federated averaging are usually told, an honest one has to find out. An
update of T steps of SGD with rate r is, to first order, minus r T times one gradient:

- r T (with momentum m, about r T / (1 - m)): every step takes the mean of (predicted - true)
  probabilities off the classifier's bias, times r. A class that is absent takes r T p_k, whatever
  the private data look like, and counts of the others are whole numbers of B-ths. Predictions of
  made-up inputs stand in for p_k; r T is what makes the counts come out best.
- B: the first linear layer that sees the input changes by a sum of one outer product per example
  and step, of which one side is the input: its rank is the number of different examples, as long
  as that is less than both sides of the weight.
- T itself, and the examples per step, show in the second order alone: by how much the weights had
  moved when later gradients were taken. A grid of hypotheses with the same r T is tried, each by a
  short attack that replays it; the one whose replay comes closest is chosen. Their distances are
  values of one objective, in which total variation weighs the same whatever the hypothesis.

What cannot be told apart: momentum and a larger rate; anything about T when r T is so small that
the weights hardly move, where it does not matter to the attack either. The spread of the
hypotheses' distances is the note `margin`: near 1, the choice between them is a guess.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from attacks.inverting_gradients import InvertingGradients
from attacks.linear import layer_that_sees_the_input
from attacks.matching.differentiable import check_twice_differentiable
from attacks.matching.step_labels import classifier_signal, give_out, stand_in
from attacks.matching.victim import Victim
from attacks.matching.victim_labels import stand_ins, weights_after
from attacks.network import known_architecture, trace
from attacks.observation import (
    AttackFailed,
    Budget,
    Kind,
    Knowledge,
    LocalRecipe,
    Observation,
    Reconstruction,
    Tensors,
    delta_of,
    only,
)
from attacks.threats import WHITE_BOX, Capability

_SCALES = 60
_SMALLEST, _LARGEST = 0.5, 8.0
"""Candidates of rate times steps, in units of what no absent class contradicts."""
_RANK = 1e-4
"""Singular values below this fraction of the largest are rounding: float32 over many steps."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What an update says about how it came about.

    Attributes:
        recipe: The hypothesis whose replay came closest to the update.
        rate_times_steps: Learning rate times steps (with momentum, times about 1 / (1 - m)).
        margin: Distance of the second best hypothesis over that of the best; near 1 means that
            the update does not tell them apart. inf if there was one hypothesis.
        hypotheses: Each with its distance, best first.
    """

    recipe: LocalRecipe
    rate_times_steps: float
    margin: float
    hypotheses: tuple[tuple[LocalRecipe, float], ...]


def _half_spent(budget: Budget | None) -> bool:
    return budget is not None and budget.seconds is not None and budget.elapsed > budget.seconds / 2


def labels_and_scale(victim: Victim, move: Tensors, known: Knowledge) -> tuple[Tensor, float]:
    """Count labels in an update of unknown recipe, and estimate rate times steps.

    Args:
        victim: At the weights before training.
        move: What training added to the weights, by parameter name.
        known: The architecture, and a public sample if there is one.

    Returns:
        The labels in ascending order, (B,) int64, and rate times steps.

    Raises:
        AttackFailed: No linear layer gives the logits, or its change was not heard completely.
    """
    classifier = trace(*known_architecture(known)).classifier()
    standing, signal = None, None
    if classifier is not None:
        end = weights_after(victim, move, dict(victim.model.named_parameters()))
        standing = stand_in(victim.model, end, classifier, stand_ins(victim, known), place=0.5)
        signal = classifier_signal(move, classifier, standing, visible=victim.visible)
    if standing is None or signal is None:
        raise AttackFailed(
            "the labels cannot be counted: no linear layer gives the logits, or its change was "
            "not heard completely"
        )
    counts, scale = _counts(signal, standing.probabilities, victim.batch_size)
    return counts, scale


def _counts(move: Tensor, probabilities: Tensor, num_examples: int) -> tuple[Tensor, float]:
    """Explain the change of a bias as scale x (counts / B - probabilities); see the module."""
    if not bool(move.any()):
        raise AttackFailed("the classifier did not change: it says nothing about labels")
    least = float((-move / probabilities).max())  # else a count would be negative
    best = (math.inf, torch.zeros(0, dtype=torch.int64), least)
    for step in range(_SCALES):
        scale = least * _SMALLEST * (_LARGEST / _SMALLEST) ** (step / (_SCALES - 1))
        labels = give_out(num_examples * (probabilities + move / scale), num_examples)
        counts = torch.bincount(labels, minlength=len(move)).double()
        direction = counts / num_examples - probabilities
        fitted = float(direction @ move / (direction @ direction))
        miss = float((move - fitted * direction).norm())
        if fitted > 0 and miss < best[0]:
            best = (miss, labels, fitted)
    return best[1], best[2]


def examples_by_rank(seen: Observation, known: Knowledge) -> int | None:
    """Return the number of different examples behind an update; see the module.

    None when no linear layer sees the input or was heard completely, or its rank is full, which
    only says that there are at least as many.
    """
    try:
        layer, _ = layer_that_sees_the_input(trace(*known_architecture(known)))
    except AttackFailed:
        return None
    name = layer.parameter("weight")
    change = seen.update if seen.kind is Kind.GRADIENT else delta_of(seen)
    if name not in change or not bool((seen.visible or {}).get(name, torch.ones(1)).all()):
        return None
    values = torch.linalg.svdvals(change[name].double())
    rank = int((values > _RANK * values[0]).sum())
    return rank if 0 < rank < len(values) else None


@dataclass(frozen=True, kw_only=True)
class EstimatedRecipe:
    """Estimate how the client trained, then replay it as Inverting Gradients.

    Attributes:
        epochs: Numbers of epochs to consider.
        batches: Numbers of batches per epoch to consider.
        probe_steps: Steps of the short attack that judges a hypothesis.
        options: Settings of `InvertingGradients`, for the attack itself.
    """

    epochs: Sequence[int] = (1, 2, 5)
    batches: Sequence[int] = (1, 2, 4)
    probe_steps: int = 100
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.epochs or not self.batches or min(*self.epochs, *self.batches, 1) < 1:
            raise ValueError(
                "epochs and batches must name whole numbers from 1, got "
                f"{list(self.epochs)} and {list(self.batches)}"
            )
        if self.probe_steps < 1:
            raise ValueError(f"probe_steps must be at least 1, got {self.probe_steps}")
        InvertingGradients(**self.options)

    @property
    def needs(self) -> frozenset[Capability]:
        """The weights in force, the model, what inputs look like, how many."""
        return WHITE_BOX | InvertingGradients(**self.options).needs

    def check(self, known: Knowledge) -> None:
        """Refuse models whose gradient cannot be differentiated again."""
        check_twice_differentiable(known)

    def __call__(
        self,
        seen: Observation | Sequence[Observation],
        known: Knowledge,
        *,
        rng: torch.Generator,
        budget: Budget | None = None,
    ) -> Reconstruction:
        """Guess the data behind one update whose recipe was not granted.

        A recipe that was granted is not looked at. Half of the budget is for hypotheses.

        Shapes:
            returns .inputs: (B, C, H, W), inside known.input_range
            returns .labels: (B,) int64

        The notes tell the recipe that was settled on, and `margin`; see `Estimate`.

        Raises:
            AttackFailed: As `InvertingGradients`, or the message is a gradient.
        """
        began = time.monotonic()
        seen = only(seen)
        estimate = self.estimate(seen, known, rng=rng, budget=budget)
        found = InvertingGradients(**self.options)(
            seen, replace(known, recipe=estimate.recipe), rng=rng, budget=budget
        )
        recipe = estimate.recipe
        return replace(
            found,
            seconds=time.monotonic() - began,
            notes=dict(found.notes)
            | {
                "rate_times_steps": estimate.rate_times_steps,
                "estimated_steps": float(recipe.num_steps),
                "estimated_batch_size": float(recipe.batch_size or 0),
                "estimated_rate": recipe.learning_rate or 0.0,
                "margin": estimate.margin,
            },
        )

    def estimate(
        self,
        seen: Observation,
        known: Knowledge,
        *,
        rng: torch.Generator,
        budget: Budget | None = None,
    ) -> Estimate:
        """Estimate the recipe behind one update.

        Raises:
            AttackFailed: The message is a gradient, the victim cannot be rebuilt, the classifier
                was not heard completely, or no hypothesis can be replayed.
        """
        from attacks.surrogate import line_through  # which estimates a scale by this module

        if known.batch_size is None and (rank := examples_by_rank(seen, known)) is not None:
            known = replace(known, batch_size=rank)
        line = line_through(seen, replace(known, recipe=None), dtype=torch.float32)
        _, scale = labels_and_scale(line.at_start, line.move, known)
        attack = InvertingGradients(
            **{**self.options, "steps": self.probe_steps, "schedule": "cosine", "restarts": 1}
        )
        seed = int(torch.randint(2**31, (1,), generator=rng))
        judged: list[tuple[LocalRecipe, float]] = []
        for recipe in self._hypotheses(line.batch_size, scale):
            if judged and _half_spent(budget):
                break
            start = torch.Generator().manual_seed(seed)  # the same for all
            try:
                found = attack(seen, replace(known, recipe=recipe), rng=start, budget=budget)
            except AttackFailed:
                continue  # a hypothesis that cannot be replayed is none
            judged.append((recipe, found.matching_loss or 0.0))
        if not judged:
            raise AttackFailed("no hypothesis about the local training can be replayed")
        judged.sort(key=lambda pair: pair[1])
        margin = judged[1][1] / max(judged[0][1], 1e-12) if len(judged) > 1 else math.inf
        return Estimate(
            recipe=judged[0][0],
            rate_times_steps=scale,
            margin=margin,
            hypotheses=tuple(judged),
        )

    def _hypotheses(self, num_examples: int, scale: float) -> list[LocalRecipe]:
        """Return recipes with the same rate times steps, few steps first."""
        found: dict[tuple[int, int], LocalRecipe] = {}
        for num_batches in self.batches:
            size = -(-num_examples // min(num_batches, num_examples))
            for num_epochs in self.epochs:
                num_steps = num_epochs * -(-num_examples // size)
                found[num_epochs, size] = LocalRecipe(
                    num_steps=num_steps,
                    learning_rate=scale / num_steps,
                    num_epochs=num_epochs,
                    batch_size=size,
                )
        return sorted(found.values(), key=lambda recipe: recipe.num_steps)
