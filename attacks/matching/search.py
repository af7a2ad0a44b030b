"""Search for the batches behind gradients by squared distance, as DLG and its successors do.

All victims that run the same architecture are searched for in one computation, a row for each
restart of each victim (`attacks.matching.company`). Rows share nothing but the wait for each
other: one that is solved, or gets no further, leaves.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from attacks.matching.company import Company, companies, company_of
from attacks.matching.coordinates import Coordinates
from attacks.matching.differentiable import require_twice_differentiable
from attacks.matching.effort import Effort
from attacks.matching.lbfgs import Minimum
from attacks.matching.problem import Problem, all_at_once, in_turns
from attacks.matching.snapshots import SHOW_S, Snapshots, looks_due, onlooker
from attacks.matching.starts import starting_inputs, warm_start
from attacks.matching.victim import Victim, rebuild
from attacks.observation import (
    AttackFailed,
    Budget,
    Knowledge,
    Observation,
    Reconstruction,
    Snapshot,
)

_STUCK = 1e-2
"""Relative distance above which a restart is stuck; below, another would end no closer."""
_HINT = 3.0
"""Logit of a label that is believed, above all others."""
_LATE_LOOKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""When the further restarts are looked at, as fractions of the steps."""
_CPU_BYTES = 2**30
"""What rows computed together may take on a CPU."""


def search(
    victim: Victim,
    labels: Tensor | None,
    effort: Effort,
    *,
    rng: torch.Generator,
    budget: Budget | None,
) -> Reconstruction:
    """Find inputs, and with `labels` None their labels too, whose gradient is the one heard.

    The whole batch is searched for at once; logits of labels start at N(0, 1). Of several restarts
    the one closest to the gradient heard is returned.

    Args:
        victim: Whose gradient to match.
        labels: Shape (B,), int64; or (H, B), hypotheses of which each restart takes the next.
        effort: When to stop.
        rng: Draws the starts.
        budget: Wall-clock allowance.

    Raises:
        AttackFailed: The model is not twice differentiable, or no start has a finite distance.
    """
    given = None if labels is None else [labels]
    found = search_many([victim], given, effort, rngs=[rng], budget=budget)[0]
    if isinstance(found, AttackFailed):
        raise found
    return found


def search_many(
    victims: Sequence[Victim],
    labels: Sequence[Tensor] | None,
    effort: Effort,
    *,
    rngs: Sequence[torch.Generator],
    budget: Budget | None,
) -> list[Reconstruction | AttackFailed]:
    """Do what `search` does for several victims in one computation, each as if it were alone.

    If memory does not suffice, they are searched for in parts.

    Args:
        victims: Whose gradients to match.
        labels: For each victim, as in `search`; None to search for all labels.
        effort: When to stop.
        rngs: One generator per victim.
        budget: Wall-clock allowance for all of them.
    """
    found: dict[int, Reconstruction | AttackFailed] = {}
    waiting = [(group, len(group)) for group in companies(victims)]
    while waiting:
        group, size = waiting.pop(0)
        size = min(size, _fitting(victims[group[0]], effort))
        part, rest = group[:size], group[size:]
        states = [rngs[place].get_state() for place in part]
        try:
            some = _search_company(
                company_of([victims[place] for place in part]),
                None if labels is None else [labels[place] for place in part],
                effort,
                [rngs[place] for place in part],
                budget,
            )
        except torch.OutOfMemoryError:
            if len(part) == 1:
                raise
            for place, state in zip(part, states, strict=True):
                rngs[place].set_state(state)
            waiting.insert(0, (group, size // 2))
            continue
        found.update(zip(part, some, strict=True))
        if rest:
            waiting.insert(0, (rest, size))
    return [found[place] for place in range(len(victims))]


LabelsOf = Callable[[Victim, Knowledge], Tensor]
"""(victim, what was granted) -> its labels, (B,) or several hypotheses (H, B), int64."""


def attack_many(
    seen: Sequence[Observation],
    known: Sequence[Knowledge],
    labels_of: LabelsOf | None,
    effort: Effort,
    *,
    dtype: torch.dtype,
    rngs: Sequence[torch.Generator],
    budget: Budget | None,
) -> list[Reconstruction | AttackFailed]:
    """Rebuild the victims behind several observations and search for all of them together.

    Args:
        seen: One observation per victim.
        known: What was granted about each.
        labels_of: Reads labels off a gradient; None to search for them.
        effort: How to search.
        dtype: Precision of the search.
        rngs: One generator per victim.
        budget: Wall-clock allowance for all of them.

    Returns:
        One guess per victim, in order; the failure for one that cannot be inverted.
    """
    found: dict[int, Reconstruction | AttackFailed] = {}
    victims: dict[int, Victim] = {}
    labels: dict[int, Tensor] = {}
    for place, (one, granted) in enumerate(zip(seen, known, strict=True)):
        try:
            victims[place] = rebuild(one, granted, dtype=dtype)
            if labels_of is not None:
                labels[place] = labels_of(victims[place], granted)
        except AttackFailed as failure:
            found[place] = failure
    places = [place for place in victims if place not in found]
    some = search_many(
        [victims[place] for place in places],
        None if labels_of is None else [labels[place] for place in places],
        effort,
        rngs=[rngs[place] for place in places],
        budget=budget,
    )
    found.update(zip(places, some, strict=True))
    return [found[place] for place in range(len(seen))]


def the_one(found: Sequence[Reconstruction | AttackFailed]) -> Reconstruction:
    """Return the only guess.

    Raises:
        AttackFailed: It is a failure.
    """
    (guess,) = found
    if isinstance(guess, AttackFailed):
        raise guess
    return guess


def _fitting(victim: Victim, effort: Effort) -> int:
    """Return how many victims fit into memory together, at least one."""
    heard = sum(target.numel() for target in victim.target.values())
    size = victim.batch_size * (math.prod(victim.input_shape) + victim.num_classes)
    numbers = (2 * effort.history + 30) * size + 2 * effort.history**2 + 6 * heard
    room = _CPU_BYTES
    if victim.like.is_cuda:
        room = torch.cuda.mem_get_info(victim.like.device)[0] // 2
    rows = max(1, effort.restarts - 1)
    return max(1, room // (numbers * victim.like.element_size() * rows))


def _search_company(
    company: Company,
    labels: Sequence[Tensor] | None,
    effort: Effort,
    rngs: Sequence[torch.Generator],
    budget: Budget | None,
) -> list[Reconstruction | AttackFailed]:
    """Search for the batches of one company: first restarts together, then those of the stuck."""
    began = time.monotonic()
    failures = _refused(company)
    if len(failures) == len(company.victims):
        return [failures[place] for place in range(len(company.victims))]
    first, num = company.first, len(company.victims)
    drawn = [
        _draw(victim, labels is None, effort, rng)
        for victim, rng in zip(company.victims, rngs, strict=True)
    ]
    starts = torch.stack(drawn)
    norms = company.square_norms
    hypotheses = None if labels is None else [one.reshape(-1, first.batch_size) for one in labels]

    def run(owners: list[int], starts: Tensor, told: Tensor | None, due: set[int]) -> _Run:
        rows = torch.tensor(owners, device=starts.device)
        problem = Problem(company, rows, told, effort)
        looks: list[tuple[int, Tensor, Tensor]] = []

        told_at = time.monotonic()

        def on_step(step: int, points: Tensor, values: Tensor) -> None:
            nonlocal told_at
            if step in due:
                looks.append((step, points, values))
            elif not (onlooker() and time.monotonic() - told_at >= SHOW_S):
                return
            _show(problem, owners, rngs, (step, points, values))
            told_at = time.monotonic()

        alone = effort.turns == 0 or first.batch_size == 1
        minimum = (all_at_once if alone else in_turns)(
            problem,
            starts,
            limits=effort.tolerance**2 * norms[rows],
            budget=budget,
            on_step=on_step,
        )
        return _Run(problem=problem, owners=owners, minimum=minimum, looks=looks)

    def told_to(owners: list[int], tries: list[int]) -> Tensor | None:
        if hypotheses is None:
            return None
        pairs = zip(owners, tries, strict=True)
        told = [hypotheses[owner][again % len(hypotheses[owner])] for owner, again in pairs]
        return torch.stack(told).to(starts.device)

    def stuck(runs: list[_Run]) -> list[int]:
        if not all(one.minimum.finished for one in runs):
            return []
        worst = (_STUCK**2 * norms).tolist()
        return [place for place in able if runs[-1].closest(place) > worst[place]]

    able = [place for place in range(num) if place not in failures]
    zeros = [0] * len(able)
    due = looks_due(effort.steps * min(effort.restarts, 2))
    runs = [run(able, starts[able, zeros], told_to(able, zeros), due)]
    late = {round(effort.steps * share) for share in _LATE_LOOKS}
    if effort.restarts > 1 and (owners := stuck(runs)):
        if effort.rescue:
            for owner in owners:
                _rescue(company.victims[owner], starts[owner, 1], effort, rngs[owner])
        again = list(range(1, effort.restarts))
        owners, tries = [one for one in owners for _ in again], again * len(owners)
        runs.append(run(owners, starts[owners, tries], told_to(owners, tries), late))
    if effort.refine and hypotheses is not None:
        able = sorted(set(runs[-1].owners))  # those that were stuck before
        if owners := stuck(runs):
            told = torch.stack([hypotheses[owner][0] for owner in owners]).to(starts.device)
            logits = _HINT * functional.one_hot(told, first.num_classes).to(starts)
            points = torch.cat((starts[owners, 0], logits.flatten(1)), dim=1)
            runs.append(run(owners, points, None, late))
    seconds = (time.monotonic() - began) / num
    square_norms = norms.tolist()
    return [
        failures[place]
        if place in failures
        else _reconstruction(place, runs, square_norms[place], seconds)
        for place in range(num)
    ]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Run:
    """One computation of several rows.

    Attributes:
        problem: What the points stand for.
        owners: For each row, the place of its victim.
        minimum: Where the rows ended.
        looks: (steps, points, values) on the way.
    """

    problem: Problem
    owners: list[int]
    minimum: Minimum
    looks: list[tuple[int, Tensor, Tensor]]

    def closest(self, owner: int) -> float:
        """Return the lowest value among the rows of a victim."""
        rows = [row for row, one in enumerate(self.owners) if one == owner]
        return float(self.minimum.values[rows].min())


def _refused(company: Company) -> dict[int, AttackFailed]:
    """Return why victims cannot be searched for; those of equal weights are checked once."""
    failures: dict[int, AttackFailed] = {}
    for place, victim in enumerate(company.victims if company.weights else [company.first]):
        try:
            require_twice_differentiable(victim)
        except AttackFailed as failure:
            failures[place] = failure
    if failures and not company.weights:
        return dict.fromkeys(range(len(company.victims)), failures[0])
    return failures


def _draw(victim: Victim, joint: bool, effort: Effort, rng: torch.Generator) -> Tensor:
    """Draw the points of all restarts of a victim, (restarts, D)."""
    coordinates = Coordinates(
        victim.input_shape, victim.input_range, like=victim.like, natural=effort.natural
    )
    warm = warm_start(victim, rng=rng) if effort.start == "closed-form" else None
    points = []
    for restart in range(effort.restarts):
        num_logits = victim.batch_size * victim.num_classes if joint else 0
        logits = torch.randn(num_logits, generator=rng).to(victim.like)
        drawn = starting_inputs(
            effort.start, victim.batch_size, victim.input_shape, victim.input_range, rng=rng
        )
        inputs = drawn if restart > 0 or warm is None else warm
        points.append(torch.cat((coordinates.points(inputs.to(victim.like)), logits)))
    return torch.stack(points)


def _rescue(victim: Victim, point: Tensor, effort: Effort, rng: torch.Generator) -> None:
    """Put the closed form's image into a start, if there is one."""
    warm = warm_start(victim, rng=rng)
    if warm is not None:
        coordinates = Coordinates(
            victim.input_shape, victim.input_range, like=victim.like, natural=effort.natural
        )
        point[: coordinates.size] = coordinates.points(warm)


def _show(
    problem: Problem,
    owners: list[int],
    rngs: Sequence[torch.Generator],
    look: tuple[int, Tensor, Tensor],
) -> None:
    """Tell an onlooker, if there is one, of the best row of each victim."""
    if (told := onlooker()) is None:
        return
    step, points, values = look
    with torch.no_grad():
        for place in sorted(set(owners)):
            rows = [row for row, owner in enumerate(owners) if owner == place]
            best = rows[int(values[rows].nan_to_num(torch.inf).argmin())]
            inputs = problem.inputs_of(points[best : best + 1])[0]
            inputs = inputs.clamp(*problem.company.first.input_range).float()
            told(Snapshot(step=step, inputs=inputs, matching_loss=float(values[best])), rngs[place])


def _reconstruction(
    place: int, runs: list[_Run], square_norm: float, seconds: float
) -> Reconstruction | AttackFailed:
    """Return the best guess at one victim, and how it came about."""
    problem = runs[0].problem  # all of them agree on what a point's inputs are
    low, high = problem.company.first.input_range
    snapshots = Snapshots(
        lambda point: problem.inputs_of(point[None])[0],
        steps=0,
        input_range=(low, high),
        shown=False,
    )
    best: tuple[float, _Run, int] | None = None
    last: tuple[Tensor, Tensor] | None = None
    steps = 0
    for run in runs:
        rows = [row for row, owner in enumerate(run.owners) if owner == place]
        if not rows:
            continue
        taken = int(run.minimum.row_steps[rows].max())
        for step, points, values in run.looks:
            if step <= taken:
                snapshots.keep(steps + step, points[rows], values[rows])
        steps += taken
        values = run.minimum.values[rows]
        row = int(values.argmin())
        last = (run.minimum.points[rows], values)
        if best is None or float(values[row]) < best[0]:
            best = (float(values[row]), run, rows[row])
    if best is None or last is None or not math.isfinite(best[0]):
        return AttackFailed("the distance to the gradient heard is not finite at any start")
    value, run, row = best
    point, told = run.minimum.points[row][None], run.problem.labels
    labels = problem.logits_of(point)[0].argmax(dim=1) if told is None else told[row]
    return Reconstruction(
        inputs=problem.inputs_of(point)[0].clamp(low, high).float(),
        labels=labels,
        matching_loss=value,
        steps=steps,
        seconds=seconds,
        finished=all(one.minimum.finished for one in runs if place in one.owners),
        snapshots=snapshots.end(steps, *last),
        notes={"relative_distance": (value / square_norm) ** 0.5},
    )
