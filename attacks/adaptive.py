"""An attack by somebody who knows the defense: what it left is read, and attacked as what it is.

No paper of its own; the rule that a defense counts only against an attacker who knows it is that of
Athalye et al. (2018, https://arxiv.org/abs/1802.00420), and Balunovic et al. (2022,
https://arxiv.org/abs/2111.04706) broke defenses of gradients by it. Every defense says how it is
read (`attacks.defense`): coordinates that were pruned, masked or quantised away are left out, the
struck layer is forgotten, the stochastic part is skipped, noise is reckoned with at its scale, and
a clipped length is restored or not looked at (`attacks.reading`). Settings that the adversary was
not told are estimated.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from attacks.auto import concluded
from attacks.choosing import Choice, choices, require_some
from attacks.contest import contest, run
from attacks.inner import inner_attack
from attacks.matching.squared_distance import SquaredDistanceSearch
from attacks.observation import (
    Attack,
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
from attacks.threats import WHITE_BOX, Capability

_ENOUGH = 1e-3
"""Relative distance at which an exact solution is taken for one."""


@dataclass(frozen=True, kw_only=True)
class Adaptive:
    """Read the defenses, then run an attack on what they left.

    Attributes:
        inner: The attack, by name; empty for those that fit the architecture and what was left: a
            solution where there is one, `bayesian` where something is noisy, hidden or without a
            length, and where that does not explain what was heard, or nothing is damaged, `idlg`,
            `dlg` or `inverting-gradients`.
        options: Its settings.
    """

    inner: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    joins = True

    def __post_init__(self) -> None:
        """Refuse an inner attack that does not exist, and settings that it does not have."""
        if self.inner == "adaptive":
            raise ValueError("inner must be another attack than 'adaptive'")
        if not self.inner and self.options:
            raise ValueError("options are those of an inner attack; name it: inner = '...'")
        self._inner()

    def _inner(self) -> Attack | None:
        return inner_attack(self.inner, self.options) if self.inner else None

    @property
    def needs(self) -> frozenset[Capability]:
        """The defenses, and what the inner attack needs."""
        inner = self._inner()
        return (WHITE_BOX if inner is None else inner.needs) | {Capability.DEFENSE}

    def check(self, known: Knowledge) -> None:
        """Refuse what the inner attack refuses."""
        inner = self._inner()
        if inner is not None:
            inner.check(known)
            return
        if known.tokens is not None:
            text_known(known)
            return
        require_some(choices(known, damaged=True), known)

    def __call__(
        self,
        seen: Observation | Sequence[Observation],
        known: Knowledge,
        *,
        rng: torch.Generator,
        budget: Budget | None = None,
    ) -> Reconstruction:
        """Guess the batch behind one update, or behind several of the same data.

        Several rounds are joined by inner attacks that can; exact guesses at one image are
        averaged.

        Shapes: as the inner attack.

        The notes tell what reading came to: `read`, `survive`, `ignored`, `noise_read`, `length`;
        and `inner`, the attack that was run, where it is not the one asked for.

        Raises:
            AttackFailed: A defense leaves nothing, or the inner attack fails.
        """
        began = time.monotonic()
        rounds = rounds_of(seen)
        if not rounds:
            raise AttackFailed("nothing was heard")
        readings = [read(one, known) for one in rounds]
        if not self.inner and known.tokens is not None:
            return text_contest(readings, rng=rng, budget=budget or Budget(None))
        if not self.inner:
            outcome = contest(
                readings, fitting, enough=_ENOUGH, rng=rng, budget=budget or Budget(None)
            )
            return concluded(outcome, readings[-1], _ENOUGH, time.monotonic() - began)
        choice, notes = self._choice(readings[-1]), dict(readings[-1].notes)
        if choice.name != self.inner:
            notes["inner"] = f"{choice.name}: {choice.why}"
        found = run(choice, readings, rng=rng, budget=budget)
        seconds = time.monotonic() - began
        return replace(found, seconds=seconds, notes={**found.notes, **notes})

    def _choice(self, reading: Reading) -> Choice:
        """Return the inner attack, or another where lengths mean nothing and it needs them."""
        lengths = reading.known.length_known
        if not lengths and isinstance(self._inner(), SquaredDistanceSearch):
            return Choice(name="inverting-gradients", why=f"{self.inner} compares lengths")
        exact = self.inner in ("linear", "closed-form", "april", "r-gap")
        return Choice(name=self.inner, why="as asked for", exact=exact, options=self.options)


def fitting(readings: Sequence[Reading]) -> list[Choice]:
    """Return the solutions that apply, and one search; none takes time from the others.

    Where something is damaged, the search is for the likeliest images, and the search of who does
    not reckon with damage comes after it: it is run if the former does not explain what was heard,
    and its guess counts if it is likelier.
    """
    damaged = any(reading.damaged for reading in readings)
    several = len(readings) > 1
    found: list[Choice] = []
    for choice in choices(readings[-1].known, [one.seen for one in readings], damaged=damaged):
        if choice.name == "temporal" and not several:
            continue
        reckons = choice.name == "bayesian"
        found.append(choice if reckons else replace(choice, share=1.0))
        if not choice.exact and not reckons:
            break
    return found
