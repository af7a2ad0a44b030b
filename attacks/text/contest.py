"""Several attacks on one text, judged alike: what `auto` and `adaptive` do with language models.

No paper. `dager` reads the text where the gradient's space is not full; else embeddings are
searched for, by `tiger` where there is noise, and by those that match gradients. A guess that is
proved ends it; else the one counts whose tokens give the gradient nearest to the one heard.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from attacks.inner import inner_attack
from attacks.observation import Attack, AttackFailed, Budget, Knowledge, Reconstruction
from attacks.reading import Reading
from attacks.text.language import text_known

_SHARE = 0.5
"""Of the time that is left, what each search but the last is allowed."""


@dataclass(frozen=True, kw_only=True)
class _Tried:
    """What came of one attack: its name, a line for the notes, its guess."""

    name: str
    said: str
    guess: Reconstruction | None = None

    def rank(self) -> tuple[int, float]:
        """What is smaller is better."""
        if self.guess is None or self.guess.inputs is None:
            return (2, math.inf)
        proved = self.guess.certified is not None and bool(self.guess.certified.all())
        return (0 if proved else 1, distance_of(self.guess))


def distance_of(guess: Reconstruction) -> float:
    """Return how far the gradient of the guessed tokens is from the one heard, relative to that.

    Infinite where the attack does not tell: what it minimised is on a scale of its own.
    """
    told = guess.notes.get("tokens_distance", guess.notes.get("relative_distance"))
    return float(told) if isinstance(told, int | float) else math.inf


def worth_trying(known: Knowledge, *, damaged: bool) -> Iterator[str]:
    """Yield the names of attacks, strongest first.

    Args:
        known: What was granted.
        damaged: Whether defenses left something noisy, hidden or without a length.
    """
    yield "dager"
    if damaged:
        yield "tiger"
    yield "lamp" if known.public_sample is not None else "tag"
    if known.length_known:
        yield "dlg-text"


def check_text(known: Knowledge) -> None:
    """Refuse what no attack on text could invert.

    Raises:
        AttackFailed: The model takes no embeddings, or was not granted.
    """
    text_known(known)


def text_contest(
    readings: Sequence[Reading], *, rng: torch.Generator, budget: Budget
) -> Reconstruction:
    """Try attacks on text in turn and return the best guess, with notes of what came of each.

    Args:
        readings: The rounds heard, oldest first; the last is attacked.
        rng: Seeds each attack.
        budget: For all of them.

    Raises:
        AttackFailed: None came to a guess; the message names each.
    """
    began, reading = time.monotonic(), readings[-1]
    text_known(reading.known)
    names = list(worth_trying(reading.known, damaged=reading.damaged))
    tried: list[_Tried] = []
    for number, name in enumerate(names):
        if tried and budget.spent:
            tried.append(_Tried(name=name, said=f"{name}: no time left"))
            continue
        share = 1.0 if number + 1 == len(names) else _SHARE
        own = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=rng)))
        tried.append(_try(name, reading, own, _part_of(budget, share)))
        if min(one.rank() for one in tried)[0] == 0:
            break
    best = min(tried, key=_Tried.rank)
    report = "; ".join(one.said for one in tried)
    if best.guess is None:
        raise AttackFailed(f"no attack came to a guess; {report}")
    return replace(
        best.guess,
        steps=sum(one.guess.steps for one in tried if one.guess is not None),
        seconds=time.monotonic() - began,
        finished=best.rank()[0] == 0 or not budget.spent,
        notes={
            **{f"{best.name}.{key}": value for key, value in best.guess.notes.items()},
            "chosen": best.name,
            "tried": report,
            "relative_distance": distance_of(best.guess),
            **reading.notes,
        },
    )


def _part_of(budget: Budget, share: float) -> Budget:
    if budget.seconds is None:
        return Budget(None)
    return Budget(max(0.0, budget.seconds - budget.elapsed) * share)


def _try(name: str, reading: Reading, rng: torch.Generator, budget: Budget) -> _Tried:
    attack: Attack = inner_attack(name, {})
    try:
        guess = attack(reading.seen, reading.known, rng=rng, budget=budget)
    except AttackFailed as failed:
        return _Tried(name=name, said=f"{name}: {failed}")
    except (ArithmeticError, LookupError, RuntimeError, ValueError) as error:
        # what odd weights or a user's model make of one attack must not end the others
        return _Tried(name=name, said=f"{name}: crashed, {type(error).__name__}: {error}")
    number = 0 if guess.inputs is None else len(guess.inputs)
    parts = [f"{number} of {reading.known.batch_size} texts"]
    if guess.certified is not None:
        parts.append(f"{int(guess.certified.sum())} proved")
    parts += [f"relative distance {distance_of(guess):.1e}", f"{guess.seconds:.1f} s"]
    return _Tried(name=name, said=f"{name}: {', '.join(parts)}", guess=guess)
