"""From what was heard to the updates of single peers, and the weights that they were taken at."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from attacks.isolation.linear import Problem, Reading
from attacks.isolation.prior import Prior, learned, size_of
from attacks.isolation.unknowns import Unknowns

Load = Callable[[], Tensor]
"""Returns a vector, (D,) or the coordinates of one chunk; called once or twice."""

Item = TypeVar("Item")

HELD = 2**26
"""Numbers that are held at once while vectors are summed."""
LEARNED_IF = 0.1
"""An exact update is looked at if rounding makes up less than this part of it."""
LEARNED_FROM = 64
"""So many exact updates are looked at to learn a prior."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Heard:
    """One vector that crossed a link, and what it is.

    Attributes:
        row: Its coefficients, (U,) float64, as `fedsim.protocols.coefficients` gives them.
        load: Returns it.
        size: Its root mean square over coordinates; None to have it computed.
        chunk: Which chunk of the coordinates, counted from 0; None for all of them.
        num_chunks: Into how many the coordinates are cut, as `torch.tensor_split` does.
    """

    row: np.ndarray
    load: Load
    size: float | None = None
    chunk: int | None = None
    num_chunks: int = 1

    def range(self, num_coordinates: int) -> tuple[int, int]:
        """Return its first coordinate, and the one after its last."""
        if self.chunk is None:
            return 0, num_coordinates
        least, more = divmod(num_coordinates, self.num_chunks)
        first = self.chunk * least + min(self.chunk, more)
        return first, first + least + (self.chunk < more)


@dataclass(frozen=True, kw_only=True, eq=False)
class Wanted:
    """The update of a peer in a round.

    Attributes:
        peer: Whose, from 0.
        round: From 1.
        weights: Row (U,) of the weights at which it is taken; None if nobody asks for them.
        or_estimate: Whether an estimate will do; if not, it is exact or left out, which is quicker.
    """

    peer: int
    round: int
    weights: np.ndarray | None = None
    or_estimate: bool = True


How = Literal["exact", "estimated"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Isolated:
    """The update of one peer, as far as it can be told from what was heard.

    Attributes:
        peer: Whose, from 0.
        round: From 1.
        update: (D,), as the unknowns are: a raw gradient, or a change of weights; 0 where it is not
            visible.
        visible: (D,) bool, True where `update` holds; None where all of it does.
        how: exact: whatever else the other peers computed; estimated: the posterior mean.
        expected_error: Of the visible part, root mean square error over root mean square, as the
            prior and the precision of what was heard have it; None where no rule tells it.
        noise_gain: What one relative error of the messages grows to, relative to the update; None
            where no rule tells it.
        weights: (D,), those that it was taken at; None where they were not asked for.
        weights_how: As `how`, for the weights.
        weights_error: Expected root mean square error of a weight, in weights; None without them,
            and where no rule tells it.
        num_heard: Vectors that it was computed from.
    """

    peer: int
    round: int
    update: Tensor
    visible: Tensor | None = None
    how: How = "exact"
    expected_error: float | None = 0.0
    noise_gain: float | None = 0.0
    weights: Tensor | None = None
    weights_how: How | None = None
    weights_error: float | None = None
    num_heard: int = 0


def isolate(
    heard: Sequence[Heard],
    wanted: Sequence[Wanted],
    *,
    unknowns: Unknowns,
    known: Mapping[int, Load],
    num_coordinates: int,
    prior: Prior | None = None,
    precision: float = 2.0**-24,
    worst_error: float = 0.95,
    dtype: torch.dtype = torch.float32,
) -> list[Isolated]:
    """Return the updates that can be told from what was heard, in the order of `wanted`.

    Where only chunks were heard, a coordinate is visible where it is exact. Otherwise all of them
    are exact, or all are estimated. Those with an expected error above `worst_error` are left out.

    Args:
        heard: What was heard so far; messages that were never sent or got lost are not among it.
        wanted: Whose updates.
        unknowns: What rows are about.
        known: Vectors (D,) that the adversary knows, by column: the common start, and the updates
            and starts of its own peers.
        num_coordinates: D.
        prior: What is taken for granted of updates; None to learn it from those that are exact and
            from the adversary's own.
        precision: Relative error of a number that was heard; half a unit in the last place of
            float32 covers rounding on the way as well.
        worst_error: Largest expected relative error of an update that is returned.
        dtype: Of the vectors returned; sums are of double precision.
    """
    heard = [one if one.size is not None else _measured(one) for one in heard]
    if prior is None:
        prior = _learned(heard, wanted, unknowns, known, num_coordinates, precision)
    found: list[Isolated] = []
    for some in _in_parts(wanted, num_coordinates):
        plans = _plans(heard, some, unknowns, known, num_coordinates, prior, precision, worst_error)
        found += _carried_out(plans, heard, known, num_coordinates, dtype)
    return found


def _learned(
    heard: Sequence[Heard],
    wanted: Sequence[Wanted],
    unknowns: Unknowns,
    known: Mapping[int, Load],
    num_coordinates: int,
    precision: float,
) -> Prior:
    """Learn a prior from updates that are exact and from those that are known."""
    starts = [size_of(load()) for column, load in known.items() if column < unknowns.num_starts]
    start_std = max(starts, default=0.0) or max((one.size or 0.0 for one in heard), default=1.0)
    own = {
        unknowns.peer_and_round(column): load()
        for column, load in sorted(known.items())
        if column >= unknowns.num_starts
    }
    first = Prior(update_std=learned(own, start_std or 1.0).update_std, start_std=start_std or 1.0)
    some = [replace(one, weights=None) for one in wanted]
    plans = _plans(heard, some, unknowns, known, num_coordinates, first, precision, np.inf, True)
    for part in _in_parts(plans[:LEARNED_FROM], num_coordinates):
        for one in _carried_out(part, heard, known, num_coordinates, torch.float64):
            noise = (one.expected_error or 0.0) * first.update_std
            seen = one.update if one.visible is None else one.update[one.visible]
            if noise < LEARNED_IF * size_of(seen):
                own[one.peer, one.round] = seen
    return learned(own, start_std or 1.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """Coordinates that the same vectors tell of.

    Attributes:
        first: Of its coordinates.
        end: The one after its last.
        heard: Indices of the vectors, in order.
    """

    first: int
    end: int
    heard: Sequence[int]


def segments(heard: Sequence[Heard], num_coordinates: int) -> list[Segment]:
    """Return the segments that the chunks cut the coordinates into, in order; none is empty."""
    ranges = [one.range(num_coordinates) for one in heard]
    cuts = sorted({0, num_coordinates, *(cut for pair in ranges for cut in pair)})
    return [
        Segment(
            first=first,
            end=end,
            heard=[
                place for place, (low, high) in enumerate(ranges) if low <= first and end <= high
            ],
        )
        for first, end in itertools.pairwise(cuts)
    ]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Plan:
    """How one wanted update and its weights are computed, segment by segment."""

    wanted: Wanted
    updates: Sequence[tuple[Segment, Reading]]
    weights: Sequence[tuple[Segment, Reading]]


def _plans(
    heard: Sequence[Heard],
    wanted: Sequence[Wanted],
    unknowns: Unknowns,
    known: Mapping[int, Load],
    num_coordinates: int,
    prior: Prior,
    precision: float,
    worst_error: float,
    only_exact: bool = False,
) -> list[_Plan]:
    targets = np.stack(
        [unknowns.unit(unknowns.update(one.peer, one.round)) for one in wanted]
        + [one.weights for one in wanted if one.weights is not None]
    )
    with_weights = [place for place, one in enumerate(wanted) if one.weights is not None]
    updates: list[list[tuple[Segment, Reading]]] = [[] for _ in wanted]
    weights: list[list[tuple[Segment, Reading]]] = [[] for _ in wanted]
    cut = segments(heard, num_coordinates)
    for segment in cut:
        problem = Problem(
            unknowns=unknowns,
            rows=np.stack([heard[place].row for place in segment.heard])
            if segment.heard
            else np.zeros((0, len(unknowns))),
            known=tuple(known),
            sizes=np.asarray([heard[place].size for place in segment.heard], dtype=float),
            precision=precision,
            prior=prior,
        )
        readings = problem.exact(targets)
        if not only_exact:
            kept = {
                place
                for place, one in enumerate(wanted)
                if readings[place] is not None or (one.or_estimate and len(cut) == 1)
            }
            also = [
                len(wanted) + number for number, place in enumerate(with_weights) if place in kept
            ]
            readings = problem.estimated(targets, readings, [*sorted(kept), *also])
        for place, reading in enumerate(readings[: len(wanted)]):
            if reading is None or (
                reading.how != "exact" and not (wanted[place].or_estimate and len(cut) == 1)
            ):
                continue
            if reading.expected_error <= worst_error:
                updates[place].append((segment, reading))
        for place, one in zip(with_weights, readings[len(wanted) :], strict=True):
            if one is not None:
                weights[place].append((segment, one))
    return [
        _Plan(wanted=one, updates=updates[place], weights=weights[place])
        for place, one in enumerate(wanted)
        if updates[place]
    ]


def _carried_out(
    plans: Sequence[_Plan],
    heard: Sequence[Heard],
    known: Mapping[int, Load],
    num_coordinates: int,
    dtype: torch.dtype,
) -> Iterator[Isolated]:
    tasks = [part for plan in plans for part in (plan.updates, plan.weights)]
    sums = torch.zeros(len(tasks), num_coordinates, dtype=torch.float64)
    by_heard: dict[int, list[tuple[int, Segment, float]]] = {}
    by_known: dict[int, list[tuple[int, Segment, float]]] = {}
    for task, parts in enumerate(tasks):
        for segment, one in parts:
            for place, weight in zip(one.heard.tolist(), one.weights.tolist(), strict=True):
                by_heard.setdefault(segment.heard[place], []).append((task, segment, weight))
            for column, weight in zip(one.known.tolist(), one.known_weights.tolist(), strict=True):
                by_known.setdefault(column, []).append((task, segment, weight))
    for index, uses in sorted(by_heard.items()):
        start, _ = heard[index].range(num_coordinates)
        _add(sums, heard[index].load(), start, uses)
    for column, uses in sorted(by_known.items()):
        _add(sums, known[column](), 0, uses)
    for place, plan in enumerate(plans):
        yield _isolated(plan, sums[2 * place], sums[2 * place + 1], num_coordinates, dtype)


def _add(
    sums: Tensor, vector: Tensor, start: int, uses: Sequence[tuple[int, Segment, float]]
) -> None:
    """Add multiples of one vector, whose first coordinate is `start`."""
    vector = vector.to(sums).flatten()
    for task, segment, weight in uses:
        part = vector[segment.first - start : segment.end - start]
        sums[task, segment.first : segment.end].add_(part, alpha=weight)


def _isolated(
    plan: _Plan, update: Tensor, weights: Tensor, num_coordinates: int, dtype: torch.dtype
) -> Isolated:
    visible = torch.zeros(num_coordinates, dtype=torch.bool)
    for segment, _ in plan.updates:
        visible[segment.first : segment.end] = True
    readings = [reading for _, reading in plan.updates]
    worst = max(readings, key=lambda one: one.expected_error)
    used = {segment.heard[place] for segment, one in plan.updates for place in one.heard.tolist()}
    found = Isolated(
        peer=plan.wanted.peer,
        round=plan.wanted.round,
        update=update.to(dtype),
        visible=None if bool(visible.all()) else visible,
        how=worst.how,
        expected_error=worst.expected_error,
        noise_gain=max(one.noise_gain for one in readings),
        num_heard=len(used),
    )
    if not plan.weights:
        return found
    sure = all(reading.how == "exact" for _, reading in plan.weights)
    return replace(
        found,
        weights=weights.to(dtype),
        weights_how="exact" if sure else "estimated",
        weights_error=max(one.expected_error * one.prior_std for _, one in plan.weights),
    )


def _measured(heard: Heard) -> Heard:
    return replace(heard, size=size_of(heard.load()))


def _in_parts(items: Sequence[Item], num_coordinates: int) -> Iterator[Sequence[Item]]:
    """Cut a list so that two sums for each item fit into what may be held."""
    count = max(1, HELD // (2 * max(1, num_coordinates)))
    for first in range(0, len(items), count):
        yield items[first : first + count]
