"""Several attacks at the same update, judged alike. No paper.

They are tried in turn until a guess is proved or explains what was heard; else the guess that
explains it best counts. Where a part of a batch is proved, that part's gradient is taken off, and
the rest is attacked as a batch of its own. A search that leaves time is run again from other starts
when its guess is the best so far: that is worth more than attacks that are weaker here.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from attacks.bayesian import Bayesian
from attacks.choosing import Choice, attack_class, built
from attacks.judging import Judge, Verdict, rest_of
from attacks.matching.victim import Victim, rebuild
from attacks.observation import (
    AttackFailed,
    Budget,
    Knowledge,
    Observation,
    Reconstruction,
)
from attacks.reading import Reading

ChoicesOf = Callable[[Sequence[Reading]], Iterable[Choice]]
"""What to try on what was heard, strongest first."""

_COSTS = {"inverting-gradients": 1.5, "gradinversion": 6.0, "fedleak": 3.0}
"""Searches whose steps get shorter, and what a step costs: in double backward passes of a batch."""
_USED = 0.9
"""Share of its time that a search is planned for."""
_FEWEST = 50
"""Steps that are tried however little time there is."""
_BETTER = 0.95
"""A later guess replaces an earlier one if its distance is below this share of that one's."""
_MOST_OF_IT = 0.9
"""Share of a batch that, proved, ends the search."""
_TOLD = 0.1
"""Error that a solution may expect of itself, as a fraction of the input range, to be believed
rather than compared where the weights in force are a guess."""
_OUTSIDE = 0.3
"""How far such a solution may be outside the input range, as a fraction of it."""
_HALF = 0.5
"""Error of an estimated update above which no solution is believed: it may be half another's."""
_AGAIN = 2
"""How often a search is run again from other starts."""


@dataclass(frozen=True, kw_only=True)
class _Tried:
    """What came of one attack.

    Attributes:
        choice: What was tried.
        said: One line for the notes.
        guess: Its guess, if it made one.
        verdict: What can be said of it; None if it cannot be compared.
        crashed: Whether it ended by an error.
        complete: Whether the guess has an image for every example.
        sure: Whether it is to be believed though nothing can be recomputed exactly: the weights in
            force are a guess, and this is a solution that expects to be right.
        batch_size: B.
    """

    choice: Choice
    said: str
    guess: Reconstruction | None = None
    verdict: Verdict | None = None
    crashed: bool = False
    complete: bool = False
    sure: bool = False
    batch_size: int = 1

    def beats(self, other: "_Tried") -> bool:
        """Whether this guess explains what was heard clearly better than the other."""
        if self.guess is None:
            return False
        if other.guess is None or other.guess.inputs is None:
            return True
        mine, theirs = self._proved(), other._proved()
        if mine != theirs:
            return mine > theirs
        if self.complete != other.complete:
            return self.complete
        if self.sure != other.sure:
            return self.sure
        if self.verdict is None or other.verdict is None:
            return self.verdict is not None
        if self.verdict.nats is not None and other.verdict.nats is not None:
            return self.verdict.nats < other.verdict.nats
        return self.verdict.distance < _BETTER * other.verdict.distance

    def settles(self, enough: float) -> bool:
        """Whether nothing better needs to be looked for."""
        if self.guess is None or self.guess.inputs is None:
            return False
        if self._proved() >= _MOST_OF_IT * self.batch_size:
            return True
        if self.sure:
            return True
        if self.verdict is None:
            return self.choice.exact and self.complete
        if not self.complete:
            return False
        if self.verdict.explains and self.choice.name == "bayesian":
            return True  # what others fit to noise explains it, too, and is less likely an image
        return self.verdict.distance <= enough

    def _proved(self) -> int:
        if self.guess is None or self.guess.certified is None:
            return 0
        return int(self.guess.certified.sum())


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a contest came to.

    Attributes:
        best: The best guess and where it is from; None if no attack made one.
        report: What came of each attack, a line each.
        steps: Optimizer steps of all of them.
        blind: Why guesses could not be compared; None if they could.
        crashed: Attacks that ended by an error, which shows nothing about what was heard.
        out_of_time: Whether the budget is spent.
    """

    best: _Tried | None
    report: list[str] = field(default_factory=list)
    steps: int = 0
    blind: str | None = None
    crashed: list[str] = field(default_factory=list)
    out_of_time: bool = False


def contest(
    readings: Sequence[Reading],
    choices_of: ChoicesOf,
    *,
    enough: float,
    rng: torch.Generator,
    budget: Budget,
) -> Outcome:
    """Try attacks in turn and return the best guess.

    Args:
        readings: The rounds heard, oldest first; the last is the one that guesses are compared
            with.
        choices_of: What to try.
        enough: Relative distance at which to stop, where what was heard is exact.
        rng: Seeds each attack.
        budget: For all of them.
    """
    judge, blind = _judge_of(readings[-1])
    best: _Tried | None = None
    report: list[str] = []
    crashed: list[str] = []
    steps = 0
    waiting = [(choice, 0) for choice in choices_of(readings)]
    while waiting:
        choice, again = waiting.pop(0)
        if budget.spent:
            report.append(f"{choice.name}: no time left")
            continue
        own = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=rng)))
        allowed = _part_of(budget, choice.share)
        fitted = _within(choice, readings[-1].seen, readings[-1].known, allowed)
        tried = _try(fitted, readings, judge, own, allowed)
        report.append(tried.said)
        crashed += [choice.name] * tried.crashed
        if tried.guess is None:
            continue
        steps += tried.guess.steps
        if best is None or tried.beats(best):
            best = tried
        if best.settles(enough):
            break
        rest = None
        if judge is not None:
            rest = rest_of(readings[-1].seen, readings[-1].known, judge.victim, tried.guess)
        if judge is not None and rest is not None:
            left = Reading(seen=rest[0], known=rest[1])
            others = contest([left], choices_of, enough=enough, rng=rng, budget=budget)
            number = left.known.batch_size
            report += [f"of the other {number}, {said}" for said in others.report]
            crashed += others.crashed
            steps += others.steps
            both = None if others.best is None else _joined(tried, others.best, judge)
            if both is not None:
                best = both if both.beats(best) else best
                break
        searched = fitted is choice and not choice.exact and tried.guess.finished
        if (
            best is tried
            and searched
            and tried.complete
            and again < _AGAIN
            and _worth(tried, budget)
        ):
            waiting.insert(0, (choice, again + 1))
    return Outcome(
        best=best,
        report=report,
        steps=steps,
        blind=blind,
        crashed=list(dict.fromkeys(crashed)),
        out_of_time=budget.spent,
    )


def _worth(tried: _Tried, budget: Budget) -> bool:
    """Whether to search again: while there is a limit, or known noise does not explain the rest."""
    unexplained = tried.verdict is not None and tried.verdict.explains is False
    return budget.seconds is not None or unexplained


def _judge_of(reading: Reading) -> tuple[Judge | None, str | None]:
    """Return what judges guesses, or why they cannot be compared."""
    try:
        return Judge(reading.seen, reading.known), None
    except AttackFailed as failed:
        return None, str(failed)


def _try(
    choice: Choice,
    readings: Sequence[Reading],
    judge: Judge | None,
    rng: torch.Generator,
    budget: Budget,
) -> _Tried:
    known = readings[-1].known
    try:
        guess = run(choice, readings, rng=rng, budget=budget)
    except AttackFailed as failed:
        return _Tried(choice=choice, said=f"{choice.name}: {failed}")
    except (ArithmeticError, LookupError, RuntimeError, ValueError) as error:
        # what odd weights or a user's model make of one attack must not end the others
        return _Tried(
            choice=choice,
            said=f"{choice.name}: crashed, {type(error).__name__}: {error}",
            crashed=True,
        )
    number = 0 if guess.inputs is None else len(guess.inputs)
    complete = number > 0 and (known.batch_size is None or number == known.batch_size)
    sure = complete and choice.exact and _believable(guess, readings[-1])
    guess = replace(guess, notes={f"{choice.name}.{key}": v for key, v in guess.notes.items()})
    verdict = judge(guess) if judge is not None and complete else None
    steps = choice.options.get("steps")
    parts = [] if steps is None else [f"shortened to {steps} steps"]
    parts += [f"{number} of {known.batch_size} images"]
    if guess.certified is not None:
        parts.append(f"{int(guess.certified.sum())} proved")
    if verdict is not None:
        parts.append(f"relative distance {verdict.distance:.1e}")
    if verdict is not None and verdict.nats is not None:
        explained = "explained down to the noise" if verdict.explains else "not explained"
        parts.append(f"{verdict.nats:.0f} nats, {explained}")
    if sure:
        parts.append("believed: weights are a guess")
    parts.append(f"{guess.seconds:.1f} s")
    return _Tried(
        choice=choice,
        said=f"{choice.name}: {', '.join(parts)}",
        guess=guess,
        verdict=verdict,
        complete=complete,
        sure=sure,
        batch_size=known.batch_size or number,
    )


def _believable(guess: Reconstruction, reading: Reading) -> bool:
    """Whether to believe a solution rather than compare it, the weights in force being a guess.

    Recomputed at wrong weights, the truth fits worse than what a search fits to them. A solution
    rests on the equations of the layers at the input, which need no weights or suffer little from
    wrong ones, and says itself how well they agree.
    """
    error, outside = (guess.notes.get(name) for name in ("expected_rmse", "excursion"))
    low, high = reading.known.input_range
    told = reading.seen.expected_error
    if told is None:
        told = 1.0 if reading.seen.isolated == "estimated" else 0.0
    return (
        reading.weights_estimated
        and told <= _HALF
        and guess.notes.get("unseen", 0.0) == 0.0
        and isinstance(error, float)
        and error <= _TOLD * (high - low)
        and isinstance(outside, float)
        and outside <= _OUTSIDE * (high - low)
    )


def run(
    choice: Choice, readings: Sequence[Reading], *, rng: torch.Generator, budget: Budget | None
) -> Reconstruction:
    """Run an attack on one round, or on all where it can use them.

    Exact guesses at noisy rounds of the same single image are averaged.
    """
    attack, last = built(choice), readings[-1]
    if len(readings) == 1:
        return attack(last.seen, last.known, rng=rng, budget=budget)
    if isinstance(attack, Bayesian):
        rounds, known = [one.seen for one in readings], [one.known for one in readings]
        return attack.solve(rounds, known, rng=rng, budget=budget)
    if getattr(attack, "joins", False) is True:
        return attack([one.seen for one in readings], last.known, rng=rng, budget=budget)
    if choice.exact and last.known.batch_size == 1 and last.known.noise is not None:
        guesses = [attack(one.seen, one.known, rng=rng, budget=budget) for one in readings]
        return averaged(guesses)
    return attack(last.seen, last.known, rng=rng, budget=budget)


def averaged(guesses: Sequence[Reconstruction]) -> Reconstruction:
    """Return the mean of guesses at one image, each weighted by how exact it expects to be.

    Weights are 1 / `expected_rmse` squared. Guesses that do not say, or that have other labels than
    the last, are left out.
    """
    last = guesses[-1]
    total: Tensor | None = None
    weights, number = 0.0, 0
    for guess in guesses:
        error = guess.notes.get("expected_rmse")
        alike = guess.labels is None or last.labels is None or guess.labels.equal(last.labels)
        if guess.inputs is None or not isinstance(error, float) or not error > 0 or not alike:
            continue
        weight = error**-2
        total = weight * guess.inputs if total is None else total + weight * guess.inputs
        weights, number = weights + weight, number + 1
    if total is None:
        return last
    notes = {**last.notes, "expected_rmse": weights**-0.5, "averaged": float(number)}
    seconds = sum(guess.seconds for guess in guesses)
    return replace(last, inputs=total / weights, seconds=seconds, notes=notes)


def _joined(proved: _Tried, other: _Tried, judge: Judge) -> _Tried | None:
    """Put the proved part of one guess before another of the rest; None if that has no labels."""
    first, second = proved.guess, other.guess
    if first is None or first.inputs is None or first.labels is None or first.certified is None:
        return None
    if second is None or second.inputs is None or second.labels is None:
        return None
    sure, their = first.certified, second.certified
    if their is None:
        their = torch.zeros(len(second.inputs), dtype=torch.bool)
    guess = replace(
        second,
        inputs=torch.cat([first.inputs[sure], second.inputs.to(first.inputs)]),
        labels=torch.cat([first.labels[sure], second.labels.to(first.labels)]),
        certified=torch.cat([sure[sure], their.to(sure)]),
        seconds=first.seconds + second.seconds,
        snapshots=(),
        notes={**first.notes, **second.notes},
    )
    complete = guess.inputs is not None and len(guess.inputs) == judge.victim.batch_size
    return _Tried(
        choice=replace(
            proved.choice,
            name=f"{proved.choice.name} + {other.choice.name}",
            why=f"{proved.choice.why}; then {other.choice.why}",
        ),
        said=other.said,
        guess=guess,
        verdict=judge(guess) if complete else None,
        complete=complete,
        batch_size=judge.victim.batch_size,
    )


def _within(choice: Choice, seen: Observation, known: Knowledge, budget: Budget) -> Choice:
    """Give a search no more steps than it has time for: its steps get shorter towards the end."""
    cost = _COSTS.get(choice.name)
    if cost is None or budget.seconds is None:
        return choice
    try:
        victim = rebuild(seen, known, dtype=torch.float32)
        seconds = cost * min(_seconds_per_step(victim) for _ in range(2))
    except (AttackFailed, RuntimeError):  # the attack will say so itself
        return choice
    usual: int = attack_class(choice.name).steps
    affordable = max(int(_USED * budget.seconds / seconds), _FEWEST)
    if affordable >= usual:
        return choice
    return replace(choice, options={**choice.options, "steps": affordable})


def _seconds_per_step(victim: Victim) -> float:
    began = time.monotonic()
    shape = (victim.batch_size, *victim.input_shape)
    inputs = torch.full(shape, sum(victim.input_range) / 2).to(victim.like).requires_grad_()
    labels = torch.zeros(victim.batch_size, dtype=torch.int64, device=inputs.device)
    gradient = victim.gradient(inputs, labels)
    torch.autograd.grad(torch.stack([g.square().sum() for g in gradient.values()]).sum(), inputs)
    return time.monotonic() - began


def _part_of(budget: Budget, share: float) -> Budget:
    """Return an allowance of a share of what is left."""
    if budget.seconds is None:
        return Budget(None)
    return Budget(max(0.0, budget.seconds - budget.elapsed) * share)
