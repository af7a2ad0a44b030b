"""What the attacks by squared distance share: they differ in settings, and in labels."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch

from attacks.matching.differentiable import MatchingAttack
from attacks.matching.effort import Effort
from attacks.matching.search import attack_many, the_one
from attacks.matching.victim_labels import labels_of
from attacks.observation import (
    AttackFailed,
    Budget,
    Knowledge,
    Observation,
    Reconstruction,
    only,
)
from attacks.text.dlg_text import DLGText


class SquaredDistanceSearch(MatchingAttack, ABC):
    """Inputs whose gradient is the one heard, by L-BFGS; settings are those of the subclass.

    Attributes:
        double: Compute in double precision.
        reads_labels: Whether labels are read off the gradient, or searched for, too.
    """

    double: bool
    reads_labels: ClassVar[bool] = True

    @property
    @abstractmethod
    def effort(self) -> Effort:
        """How long and how to search, from the settings."""

    def __post_init__(self) -> None:
        """Refuse settings without meaning, by building the effort they describe."""
        _ = self.effort

    def check(self, known: Knowledge) -> None:
        """Refuse what cannot be replayed, and models whose gradient has no derivative."""
        if known.tokens is not None:
            DLGText().check(known)
        else:
            super().check(known)

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
        return the_one(self.many([only(seen)], [known], rngs=[rng], budget=budget))

    def many(
        self,
        seen: Sequence[Observation],
        known: Sequence[Knowledge],
        *,
        rngs: Sequence[torch.Generator],
        budget: Budget | None = None,
    ) -> list[Reconstruction | AttackFailed]:
        """Guess the batches behind several gradients in one computation; see `ManyAtOnce`.

        Text is guessed by `attacks.text.dlg_text`, with its own settings, one victim after another.
        """
        if any(one.tokens is not None for one in known):
            return list(_texts(seen, known, rngs, budget or Budget()))
        dtype = torch.float64 if self.double else torch.float32
        labels = labels_of if self.reads_labels else None
        return attack_many(seen, known, labels, self.effort, dtype=dtype, rngs=rngs, budget=budget)


def _texts(
    seen: Sequence[Observation],
    known: Sequence[Knowledge],
    rngs: Sequence[torch.Generator],
    budget: Budget,
) -> Iterator[Reconstruction | AttackFailed]:
    """Yield what becomes of each victim; all have the same share of the time."""
    left = len(seen)
    for one, told, rng in zip(seen, known, rngs, strict=True):
        seconds = budget.seconds
        own = None if seconds is None else max(0.0, seconds - budget.elapsed) / left
        left -= 1
        try:
            yield DLGText()(one, told, rng=rng, budget=Budget(own))
        except AttackFailed as failed:
            yield failed
