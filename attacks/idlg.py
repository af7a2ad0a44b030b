"""Improved Deep Leakage from Gradients (Zhao et al., 2020, https://arxiv.org/abs/2001.02610).

The labels are read off the classifier's gradient first (`attacks.labels`), then the inputs alone
are searched for as in `attacks.dlg`, with the same differences from the paper. The rule for the
labels of several examples is not the paper's, which has one for a single example only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from attacks.matching.search import Effort, search
from attacks.matching.victim import check_matchable, labels_of, rebuild
from attacks.observation import (
    Budget,
    Knowledge,
    Observation,
    Reconstruction,
    only,
)
from attacks.threats import WHITE_BOX, Capability


@dataclass(frozen=True, kw_only=True)
class IDLG:
    """Read the labels, then find inputs whose gradient is the observed one.

    Attributes:
        steps: Most L-BFGS steps of one restart.
        restarts: Most restarts; those after the first run together, and only if it gets stuck.
        tolerance: Distance to the gradient heard, relative to its norm, at which to stop.
        double: Compute in double precision.
    """

    steps: int = 400
    restarts: int = 4
    tolerance: float = 1e-4
    double: bool = True

    @property
    def needs(self) -> frozenset[Capability]:
        """The weights in force, the model, what inputs look like, and how many there are."""
        return WHITE_BOX

    def check(self, known: Knowledge) -> None:
        """Refuse several steps, and models whose gradient cannot be differentiated again."""
        check_matchable(known)

    def __call__(
        self,
        seen: Observation | Sequence[Observation],
        known: Knowledge,
        *,
        rng: torch.Generator,
        budget: Budget | None = None,
    ) -> Reconstruction:
        """Guess the batch behind one gradient.

        Shapes:
            seen.update: one tensor per parameter, shaped like it
            returns .inputs: (B, C, H, W), inside known.input_range
            returns .labels: (B,) int64

        Raises:
            AttackFailed: The labels cannot be read, the victim cannot be rebuilt
                (`attacks.matching.victim.rebuild`), or its gradient cannot be matched
                (`attacks.matching.search.search`).
        """
        victim = rebuild(only(seen), known, dtype=torch.float64 if self.double else torch.float32)
        effort = Effort(steps=self.steps, restarts=self.restarts, tolerance=self.tolerance)
        return search(victim, labels_of(victim, known), effort, rng=rng, budget=budget)
