"""What a strong adversary would do: solve where it can, else search as well as it can.

No paper of its own: what AutoAttack (Croce and Hein, 2020, https://arxiv.org/abs/2003.01690) is to
robustness, this is to leakage. A claim that updates are safe should survive it, at least.

It reads the defenses that it was told of, and noise that shows by itself (`attacks.reading`), looks
at the architecture and at what was heard, tries what can apply, strongest first
(`attacks.choosing`), and judges every guess alike (`attacks.judging`): by the distance between the
gradient that the guess gives, recomputed, and the one heard, or, where there is noise, by how
likely the guess is. It stops at the first guess that is proved or explains what was heard; else it
goes on while there is time and returns the guess that explains it best. It never sees the truth,
and its notes say what was read, what was tried and why.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from attacks.choosing import Choice, choices, require_some
from attacks.contest import Outcome, contest
from attacks.observation import (
    AttackFailed,
    Budget,
    Knowledge,
    Observation,
    Reconstruction,
    rounds_of,
)
from attacks.reading import Reading, read
from attacks.text.contest import text_contest
from attacks.text.language import text_known
from attacks.threats import Capability


@dataclass(frozen=True, kw_only=True)
class Auto:
    """Try what applies, strongest first, and return the guess that explains the update best.

    Attributes:
        seconds: Wall-clock allowance where the caller sets none.
        enough: Distance to the gradient heard, relative to its norm, at which to stop.
    """

    seconds: float = 60.0
    enough: float = 1e-3

    joins = True

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise ValueError(f"seconds must be greater than 0, got {self.seconds}")
        if not 0 <= self.enough < 1:
            raise ValueError(f"enough must be at least 0 and below 1, got {self.enough}")

    @property
    def needs(self) -> frozenset[Capability]:
        """The architecture, what inputs look like, and how many; it uses what more is granted."""
        return frozenset({Capability.ARCHITECTURE, Capability.INPUT_DOMAIN, Capability.BATCH_SIZE})

    def check(self, known: Knowledge) -> None:
        """Refuse where no attack of the list could ever apply, and say why of each."""
        if known.tokens is not None:
            text_known(known)
            return
        require_some(choices(known), known)

    def __call__(
        self,
        seen: Observation | Sequence[Observation],
        known: Knowledge,
        *,
        rng: torch.Generator,
        budget: Budget | None = None,
    ) -> Reconstruction:
        """Guess the batch behind one update, or behind several of the same data.

        Shapes:
            returns .inputs: (B, C, H, W), fewer where an attack proves part of a batch; of text,
                tokens (B, T)
            returns .labels: one per input, int64

        The notes tell `chosen`, the attack whose guess is returned; `why` it was tried; `tried`,
        what came of each; `relative_distance`, where the weights were heard; and what reading the
        defenses came to: `read`, `survive`, `ignored`, `noise_read`, `length`.

        Raises:
            AttackFailed: Nothing applies, or nothing came of what does; the message names each.
        """
        began = time.monotonic()
        rounds = rounds_of(seen)
        if not rounds:
            raise AttackFailed("nothing was heard")
        readings = [read(one, known) for one in rounds]
        if known.tokens is not None:
            return text_contest(readings, rng=rng, budget=budget or Budget(self.seconds))
        outcome = contest(
            readings,
            strongest,
            enough=self.enough,
            rng=rng,
            budget=budget or Budget(self.seconds),
        )
        return concluded(outcome, readings[-1], self.enough, time.monotonic() - began)


def strongest(readings: Sequence[Reading]) -> list[Choice]:
    """Return everything worth trying."""
    damaged = any(reading.damaged for reading in readings)
    return list(choices(readings[-1].known, [one.seen for one in readings], damaged=damaged))


def concluded(outcome: Outcome, reading: Reading, enough: float, seconds: float) -> Reconstruction:
    """Return the best guess of a contest, and in its notes how it came about.

    Raises:
        AttackFailed: There is none; the message names each attack.
    """
    best = outcome.best
    if best is None or best.guess is None:
        raise AttackFailed("no attack came to a guess; " + "; ".join(outcome.report))
    notes: dict[str, str | float] = {
        "chosen": best.choice.name,
        "why": best.choice.why,
        "tried": "; ".join(outcome.report),
        **reading.notes,
    }
    if best.verdict is not None:
        notes["relative_distance"] = best.verdict.distance
        if best.verdict.explains is not None:
            notes["explained"] = "yes" if best.verdict.explains else "no"
    if outcome.crashed:
        notes["crashed"] = ", ".join(outcome.crashed)
    if outcome.blind is not None:
        notes["not_compared"] = outcome.blind
    settled = best.settles(enough)
    return replace(
        best.guess,
        steps=outcome.steps,
        seconds=seconds,
        finished=settled or not (outcome.out_of_time or "steps" in best.choice.options),
        notes={**best.guess.notes, **notes},
    )
