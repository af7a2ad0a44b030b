"""TabLeak (Vero et al., ICML 2023, https://arxiv.org/abs/2210.01785).

Rows whose gradient points the way the observed one does, by Adam. A category is searched for as
the softmax of its coordinates, a number as the sigmoid of one. An ensemble of searches from random
starts is put in one order and pooled by the median; where its members agree, the guess is likely
right, which the attacker sees without the truth.

Differs from the paper, because that finds more (measured in docs/attacks):

- Gradients are compared in coordinates in which the one heard is white
  (`attacks.tabular.whitening`), not as they are: the rows of a batch share most of what makes up
  its gradient, and the cosine of the whole hardly notices what tells one row from another.
- A category that none of the batch has leaves a column of zeros in the gradient of the first layer.
  Searches start with such categories all but ruled out.
- Labels are read off the gradient, where they are not told or searched for.
- Of the ensemble, the third that matches best is pooled, not all of it.

`PUBLISHED` has the settings of the paper.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attacks.matching.descent import descend
from attacks.matching.differentiable import check_matchable, require_twice_differentiable
from attacks.matching.snapshots import Snapshots
from attacks.matching.victim import Victim, rebuild
from attacks.matching.victim_labels import granted_labels, labels_of
from attacks.network import same_values, trace
from attacks.observation import (
    AttackFailed,
    Budget,
    Knowledge,
    Observation,
    Reconstruction,
    Snapshot,
    only,
)
from attacks.settings import require_choice, require_counts, require_positive, require_weights
from attacks.tabular.columns import Columns, columns_of
from attacks.tabular.matching import Matching
from attacks.tabular.pooling import aligned, confidence
from attacks.tabular.relaxation import decided
from attacks.tabular.whitening import Whitening
from attacks.threats import ORACLE, WHITE_BOX, Capability

PUBLISHED: Mapping[str, Any] = {
    "step_size": 0.06,
    "whitening": 0.0,
    "pooled": 30,
    "absent": 0.0,
}
"""Settings of the paper, as far as rows in [0, 1] allow: it standardises numbers."""

_ABSENT = 1e-6
"""Length of a column of zeros, relative to the longest: rounding."""


@dataclass(frozen=True, kw_only=True)
class TabLeak:
    """Find the rows whose gradient points the way the observed one does.

    Attributes:
        steps: Adam steps of each search.
        step_size: First step, in logits; it falls along a cosine to 0.
        ensemble: Searches, all in one computation.
        pooled: How many of them are pooled, those with the lowest matching loss.
        whitening: Square of the length below which a direction of a layer's gradient counts less,
            relative to the longest; see `attacks.tabular.whitening`. 0 compares gradients as they
            are, as published.
        absent: By how much logits of categories that leave no trace in the gradient start lower.
        labels: "recover" reads them off the gradient; "search" searches for them, too; "oracle" is
            told them.
    """

    steps: int = 1_500
    step_size: float = 0.2
    ensemble: int = 30
    pooled: int = 10
    whitening: float = 1e-4
    absent: float = 6.0
    labels: Literal["recover", "search", "oracle"] = "recover"

    def __post_init__(self) -> None:
        """Refuse numbers without meaning."""
        require_counts(self, "steps", least=0)
        require_counts(self, "ensemble", "pooled")
        require_positive(self, "step_size")
        require_weights(self, "whitening", "absent")
        require_choice(self, "labels", "recover", "search", "oracle")

    @property
    def needs(self) -> frozenset[Capability]:
        """The weights in force, the model, what rows look like, how many; oracle labels."""
        return WHITE_BOX | ORACLE if self.labels == "oracle" else WHITE_BOX

    def check(self, known: Knowledge) -> None:
        """Refuse what is no table, what cannot be replayed, and models without second derivative.

        Raises:
            AttackFailed: No observation could be inverted with this knowledge.
        """
        columns_of(known)
        check_matchable(known)

    def __call__(
        self,
        seen: Observation | Sequence[Observation],
        known: Knowledge,
        *,
        rng: torch.Generator,
        budget: Budget | None = None,
    ) -> Reconstruction:
        """Guess the rows behind one gradient.

        Shapes:
            seen.update: one tensor per parameter, shaped like it
            returns .inputs: (B, D), categories one-hot, numbers in [0, 1]
            returns .labels: (B,) int64
            returns .confidence: (B, F)
            returns .matching_loss: of these rows; that of members, whose categories are not yet
                decided, is lower, see snapshots

        Raises:
            AttackFailed: The data are no table, the victim cannot be rebuilt
                (`attacks.matching.victim.rebuild`), the model is not twice differentiable, the
                labels are neither readable nor granted, or no start has a finite distance.
        """
        began = time.monotonic()
        columns = columns_of(known)
        victim = rebuild(only(seen), known, dtype=torch.float32)
        require_twice_differentiable(victim)
        labels = self._labels(victim, known)
        whitening = Whitening(victim.target, threshold=self.whitening, num_rows=victim.batch_size)
        matching = Matching(victim, columns, labels, whitening)
        snapshots = Snapshots(
            lambda point: decided(matching.inputs_of(point), columns),
            steps=self.steps,
            input_range=(0.0, 1.0),
            rng=rng,
        )
        found = descend(
            matching,
            self._starts(matching, absent_categories(victim, columns), rng),
            steps=self.steps,
            step_size=self.step_size,
            schedule="cosine",
            signed=False,
            box=(-math.inf, math.inf),
            budget=budget,
            on_step=snapshots.look,
        )
        if not bool(found.values.isfinite().any()):
            raise AttackFailed("the objective is not finite at any start")
        guess = self._pooled(matching, found.points, found.values)
        looks = snapshots.end(found.steps, found.points, found.values)
        last = Snapshot(step=found.steps, inputs=guess.rows, matching_loss=guess.matching_loss)
        return Reconstruction(
            inputs=guess.rows,
            labels=guess.labels,
            matching_loss=guess.matching_loss,
            steps=found.steps,
            seconds=time.monotonic() - began,
            finished=found.finished,
            confidence=guess.confidence,
            snapshots=(*looks[:-1], last),
            notes={
                "best_of_ensemble": float(found.values.nan_to_num(torch.inf).min()),
                **({"labels": self.labels} if self.labels != "recover" else {}),
            },
        )

    def _labels(self, victim: Victim, known: Knowledge) -> Tensor | None:
        if self.labels == "search":
            return None
        if self.labels == "oracle":
            return granted_labels(known, victim.batch_size, like=victim.like)
        return labels_of(victim, known).to(victim.like.device)

    def _starts(self, matching: Matching, absent: Tensor, rng: torch.Generator) -> Tensor:
        """Draw points to start from, (ensemble, size)."""
        starts = torch.randn(self.ensemble, matching.size, generator=rng).to(matching.victim.like)
        lower = self.absent * absent.to(starts).repeat(matching.victim.batch_size)
        starts[:, : matching.num_inputs] -= lower
        return starts

    def _pooled(self, matching: Matching, points: Tensor, values: Tensor) -> "_Guess":
        """Pool the best of the ensemble."""
        best = values.nan_to_num(torch.inf).argsort()[: self.pooled]
        best = best[values[best].isfinite()]
        rows, chances = matching.inputs_of(points[best]), matching.chances_of(points[best])
        if matching.labels is None:
            groups = torch.zeros(chances.shape[:2], dtype=torch.int64, device=chances.device)
        else:
            groups = matching.labels.expand(chances.shape[:2])
        width = matching.columns.width
        ordered = aligned(torch.cat((rows, chances), dim=-1), list(groups))
        rows = ordered[..., :width]
        pooled = ordered.median(dim=0).values
        guess = decided(pooled[:, :width], matching.columns)
        labels = pooled[:, width:].argmax(dim=1)
        told = torch.zeros_like(pooled[:, width:]).scatter_(1, labels[:, None], 1)
        return _Guess(
            rows=guess,
            labels=labels,
            confidence=confidence(rows, matching.columns),
            matching_loss=matching.value_of(guess, told),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Guess:
    """What an ensemble says together."""

    rows: Tensor
    labels: Tensor
    confidence: Tensor
    matching_loss: float


def absent_categories(victim: Victim, columns: Columns) -> Tensor:
    """Return which coordinates stand for a category that no row of the batch has, (D,) bool.

    The first layer's weight has a column for each coordinate of a row, and that column's gradient
    is a sum over the rows in which the coordinate is not 0. Where a column was not heard, the first
    layer is not linear, or every category would be ruled out, nothing is.
    """
    found = torch.zeros(columns.width, dtype=torch.bool)
    traced = trace(victim.model, victim.input_shape)
    first = next((one for one in traced.layers if isinstance(one.module, nn.Linear)), None)
    if first is None or not same_values(first.inputs, traced.inputs):
        return found
    name = first.parameter("weight")
    if name not in victim.target:
        return found
    lengths = victim.target[name].norm(dim=0).cpu()
    silent = lengths <= _ABSENT * lengths.max()
    if name in victim.visible:
        silent &= victim.visible[name].bool().all(dim=0).cpu()
    for column, place in columns.places():
        if column.categories and not bool(silent[place].all()):
            found[place] = silent[place]
    return found
