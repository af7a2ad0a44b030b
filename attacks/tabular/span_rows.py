"""Rows of a table read from the span of the first layer's gradient. No paper of its own.

For a first layer z = W x + b, the gradient of (W, b) is a sum over the rows of a batch of s (x, 1)'
with s = dL/dz, so every row (x, 1) is a combination of the gradient's rows, and of what a row could
be, little else is: one-hot categories are few, and with as many coordinates as a table has, a
combination that is one-hot in all of them is a row. It is the span check of DAGER (Petrov et al.,
2024, https://arxiv.org/abs/2405.15586) with features in place of tokens.

1. A vector v costs v' (I + K / n^2)^-1 v, where K = G'G of the gradient G = [dL/dW, dL/db] and n is
   the length of its noise or rounding: 0 in the span, its squared length outside. Categories are
   added feature by feature, the one with most of them first, and what costs too much is dropped.
2. Numbers follow from the categories, as the cheapest ones; those of known steps are rounded.
3. What each candidate would have sent, for every label, is computed by the rest of the model. Non-
   negative least squares finds how often each is in the batch. If that explains the gradient of the
   layer, the rows are proved.

The columns must span more than the batch: of C_f categories that occur in feature f, the batch may
have about 1 + sum (C_f - 1) rows, less a few. Tables of numbers alone have nothing to begin with.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.first_layer import FirstLayer, first_layer, layer_gradient
from attacks.observation import (
    AttackFailed,
    Budget,
    Knowledge,
    Observation,
    Reconstruction,
    gradient_of,
    only,
    require_one_step,
)
from attacks.settings import require_counts, require_positive
from attacks.tabular.columns import Column, Columns, columns_of
from attacks.threats import WHITE_BOX, Capability

_ROUNDING = 3e-8
"""Length of the noise of a gradient in single precision, relative to its longest direction."""
_LONGEST = 1e-6
"""Length of a column that is zero but for rounding, relative to the longest."""
_CHUNK = 1 << 22
"""Most numbers in one block of intermediate results."""
_EXPLAINED = 1e-3
"""Relative length of what is left of the gradient where rows are proved."""
_FOLLOWS = 30.0
"""How much louder than noise what does not follow may be, of a number that does."""
_STEP = 1e-5
"""Distance to the span that is nothing: half a step of the finest numbers that are rounded."""
_OUTSIDE = 0.02
"""By how much a number may seem to be outside of its range."""


@dataclass(frozen=True, kw_only=True)
class SpanRows:
    """Read the rows that lie in the span of the first layer's gradient, and are one-hot.

    Attributes:
        cost: What a row may cost: its squared distance to the span, where a wrong category costs up
            to 2.
        candidates: Rows begun that are kept at a time; more are refused.
        considered: Whole rows that are compared with the gradient, the cheapest ones.
    """

    cost: float = 1.0
    candidates: int = 2_000_000
    considered: int = 600

    def __post_init__(self) -> None:
        """Refuse numbers without meaning."""
        require_positive(self, "cost")
        require_counts(self, "candidates", "considered")

    @property
    def needs(self) -> frozenset[Capability]:
        """The weights in force, the model, what rows look like, and how many there are."""
        return WHITE_BOX

    def check(self, known: Knowledge) -> None:
        """Refuse what is no table, tables without categories, and several steps.

        Raises:
            AttackFailed: No observation could be read with this knowledge.
        """
        _require_categories(columns_of(known))
        require_one_step(known.recipe)
        first_layer(known)

    def __call__(
        self,
        seen: Observation | Sequence[Observation],
        known: Knowledge,
        *,
        rng: torch.Generator,  # noqa: ARG002  # nothing is drawn
        budget: Budget | None = None,
    ) -> Reconstruction:
        """Read the rows behind one gradient.

        Shapes:
            seen.update: one tensor per parameter, shaped like it
            returns .inputs: (b, D), b <= B where some are not found; categories one-hot
            returns .labels: (b,) int64
            returns .certified: (b,), all or none: whether these rows explain what was heard
            returns .confidence: (b, F), how near the share of each row is to 1 / B

        Raises:
            AttackFailed: The data are no table with categories, the first layer is not linear, its
                gradient was not heard, the batch spans all that rows can be, or no row is in it.
        """
        began = time.monotonic()
        columns = columns_of(known)
        _require_categories(columns)
        require_one_step(known.recipe)
        seen = only(seen)
        heard = next(iter(seen.update.values()))
        if known.batch_size is None:
            raise AttackFailed("every row's share is 1 / B; grant 'batch-size'")
        if seen.weights is None:
            raise AttackFailed("what is found is checked with the weights in force; none heard")
        layer = first_layer(known, seen.weights, seen.buffers)
        weight, bias, _ = layer_gradient(gradient_of(seen, known.recipe), layer.name, seen.visible)
        gradient = torch.cat([weight, bias[:, None]], dim=1)
        span = _Span(gradient, columns, known.batch_size)
        found, tried = self._candidates(span, budget)
        rows = span.whole(found, cost=self.cost, candidates=self.candidates)
        if not len(rows):
            raise AttackFailed(f"none of {tried} rows lies in the span of the gradient")
        best = span.costs(rows).argsort()[: self.considered]
        rows = rows[best]
        chosen = _explain(rows, layer, gradient, known.batch_size)
        if not len(chosen.places):
            raise AttackFailed(f"none of {len(rows)} rows in the span explains the gradient")
        sure = 1 - (chosen.shares - 1).abs().clamp(max=1)
        return Reconstruction(
            inputs=rows[chosen.places].to(heard),
            labels=chosen.labels.to(heard.device),
            matching_loss=chosen.left,
            steps=tried,
            seconds=time.monotonic() - began,
            certified=torch.full_like(sure, chosen.left <= _EXPLAINED, dtype=torch.bool),
            confidence=sure[:, None].expand(-1, len(columns.columns)).float(),
            notes={"candidates": float(len(rows)), "left": chosen.left},
        )

    def _candidates(self, span: "_Span", budget: Budget | None) -> tuple[Tensor, int]:
        """Return categories that are together in the span, (N, F'), and how many were tried."""
        found = torch.empty(1, 0, dtype=torch.int64)
        tried = 0
        used = [span.last]
        for number, places in enumerate(span.present):
            if budget is not None and budget.spent:
                raise AttackFailed("the time allowed ended before all categories were read")
            if len(found) * len(places) > self.candidates:
                raise AttackFailed(
                    f"more than {self.candidates} rows are left after {number} of "
                    f"{len(span.present)} features: the batch spans too much of what rows can be"
                )
            left, right = found.repeat_interleave(len(places), 0), places.repeat(len(found))
            found = torch.cat([left, right[:, None]], dim=1)
            tried += len(found)
            used += places.tolist()
            form = span.form(used)
            order = {place: at for at, place in enumerate(used)}
            at = torch.tensor([order.get(place, 0) for place in range(span.last + 1)])
            step = max(1, _CHUNK // len(used))
            costs = torch.cat([form.one_hot(at[some]) for some in torch.split(found, step)])
            found = found[costs <= self.cost]
        return found, tried


class _Span:
    """What rows may cost.

    Args:
        gradient: Of the first layer's weight, and of its bias as the last column, (M, D + 1).
        columns: What the D coordinates stand for.
        batch_size: B.

    Attributes:
        last: The place of the bias among the coordinates, D.
        present: The coordinates of the categories that occur, by feature, most first.
        numbers: Columns of numbers, by coordinate.
    """

    def __init__(self, gradient: Tensor, columns: Columns, batch_size: int) -> None:
        gradient = gradient.cpu()
        self.last = gradient.shape[1] - 1
        lengths = gradient.norm(dim=0)
        there = lengths > _LONGEST * lengths.max()
        self.present: list[Tensor] = []
        self.numbers: dict[int, Column] = {}
        for column, place in columns.places():
            if not column.categories:
                self.numbers[place.start] = column
                continue
            hot = torch.arange(place.start, place.stop)[there[place]]
            if not len(hot):
                raise AttackFailed(f"no category of '{column.name}' left a trace in the gradient")
            self.present.append(hot)
        self.present.sort(key=len, reverse=True)
        strengths = torch.linalg.svdvals(gradient)
        noise = _ROUNDING * float(strengths[0])
        if len(strengths) > batch_size:
            noise = max(noise, 2 * float(strengths[batch_size]))
        spanned = 1 + sum(len(hot) - 1 for hot in self.present)
        rank = int((strengths > noise).sum())
        if spanned <= rank and spanned > 1:
            raise AttackFailed(
                f"the batch spans {rank} directions, and rows with its categories no more than "
                f"{spanned}: any of them lies in the span"
            )
        self.gradient, self.noise = gradient, noise

    def form(self, places: Sequence[int]) -> "_Form":
        """Return what vectors at these coordinates cost."""
        _, strengths, vectors = torch.linalg.svd(self.gradient[:, torch.tensor(places)])
        loud = torch.zeros(len(places), dtype=torch.float64)
        loud[: len(strengths)] = strengths[: len(places)] / self.noise
        return _Form(
            outside=vectors.T / (1 + loud.square()),
            along=vectors.T * (loud / (1 + loud.square())),
        )

    def costs(self, rows: Tensor) -> Tensor:
        """Return what whole rows (N, D) cost, (N,)."""
        whole = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        return self.form(range(self.last + 1))(whole)

    def whole(self, found: Tensor, *, cost: float, candidates: int) -> Tensor:
        """Return rows (N', D) of categories (N, F'), with the numbers that keep them in the span.

        A number that follows from what is known of a row is the one that does; another is tried at
        all of its steps, if it has few.
        """
        known = sorted({self.last, *(int(place) for hot in self.present for place in hot)})
        at = torch.zeros(self.last + 1, dtype=torch.int64)
        at[known] = torch.arange(len(known))
        rows = torch.zeros(len(found), len(known), dtype=torch.float64)
        rows.scatter_(1, at[found], 1.0)[:, at[self.last]] = 1
        left = dict(self.numbers)
        while left:
            place, slopes, follows = self._next(left, known)
            steps = _steps(left[place])
            if not follows and (
                len(rows) * (steps + 1) > candidates or self._still_open(left, place, known)
            ):  # too many to try: what is nearest to the span
                rows = torch.cat([rows, (rows @ slopes).clamp(0, 1)], dim=1)
                known += list(left)
                break
            column = left.pop(place)
            known.append(place)
            values = torch.linspace(0, 1, 1 if follows else int(steps) + 1, dtype=torch.float64)
            parts = []
            for some in torch.split(rows, max(1, _CHUNK // (len(known) * len(values)))):
                if follows:
                    value = (some @ slopes)[:, 0]
                    value = (value * steps).round() / steps if column.whole else value
                else:
                    value = values.repeat(len(some))
                    some = some.repeat_interleave(len(values), 0)
                inside = (value >= -_OUTSIDE) & (value <= 1 + _OUTSIDE)
                some = torch.cat([some, value[:, None]], dim=1)[inside].clamp(0, 1)
                parts.append(some[self.form(known)(some) <= cost] if column.whole else some)
            rows = torch.cat(parts)
        spread = torch.zeros(len(rows), self.last + 1, dtype=torch.float64)
        spread[:, known] = rows
        return spread[:, : self.last]

    def _next(self, left: Mapping[int, Column], known: list[int]) -> tuple[int, Tensor, bool]:
        """Return the number to add to what is known of rows.

        Returns:
            Its place; what makes of known coordinates the number, (C, 1), if it follows from them,
            and all numbers, (C, L), if none does; and whether it follows. Of those that do not, it
            is the one of the fewest steps.
        """
        first, strengths, second = torch.linalg.svd(self.gradient[:, known], full_matrices=False)
        back = strengths / (strengths.square() + self.noise**2)
        places = list(left)
        slopes = (second.T * back) @ (first.T @ self.gradient[:, places])
        rest = (self.gradient[:, places] - self.gradient[:, known] @ slopes).norm(dim=0)
        best = int(rest.argmin())
        if float(rest[best]) <= _FOLLOWS * self.noise:
            return places[best], slopes[:, best, None], True
        return min(places, key=lambda one: _steps(left[one])), slopes, False

    def _still_open(self, left: Mapping[int, Column], place: int, known: list[int]) -> bool:
        """Return whether no number follows even if this one is known."""
        others = {one: column for one, column in left.items() if one != place}
        return bool(others) and not self._next(others, [*known, place])[2]


def _steps(column: Column) -> float:
    """Return how many steps a number has from its lowest value to its highest."""
    return column.high - column.low if column.whole else math.inf


@dataclass(frozen=True, kw_only=True, eq=False)
class _Form:
    """What vectors at some coordinates cost: how far they are from the span, in blurs of it.

    The combination G' u that comes closest to a vector has a blur of |u| times the noise.

    Attributes:
        outside: v @ outside is what of v lies outside, (C, C).
        along: v @ along is as long as the blur, (C, C).
    """

    outside: Tensor
    along: Tensor

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return the cost of vectors (N, C), (N,)."""
        return _ratio(vectors @ self.outside, vectors @ self.along)

    def one_hot(self, places: Tensor) -> Tensor:
        """Return the cost of vectors that are 1 at the first coordinate and at others (N, F')."""
        parts = []
        for matrix in (self.outside, self.along):
            part = matrix[0].expand(len(places), -1).clone()
            for place in places.T:
                part += matrix[place]
            parts.append(part)
        return _ratio(*parts)


def _ratio(outside: Tensor, along: Tensor) -> Tensor:
    ratio: Tensor = outside.norm(dim=1) / (along.norm(dim=1) + _STEP)
    return ratio


@dataclass(frozen=True, kw_only=True, eq=False)
class _Chosen:
    """Candidates that together explain a gradient.

    Attributes:
        places: Which candidates, (b,) int64; one that is there twice is named twice.
        labels: (b,) int64.
        shares: How often least squares has each, (b,); 1 if all is known.
        left: Relative length of what they do not explain.
    """

    places: Tensor
    labels: Tensor
    shares: Tensor
    left: float


def _explain(rows: Tensor, layer: FirstLayer, gradient: Tensor, batch_size: int) -> _Chosen:
    """Return how often which rows, with which labels, are behind the first layer's gradient."""
    from scipy.optimize import nnls  # importing it takes a while

    inputs = (layer.low.cpu() + rows * (layer.high - layer.low).cpu()).to(layer.weight)
    outputs = layer.outputs(inputs)
    slopes = torch.stack(
        [
            layer.sensitivities(outputs, torch.full((len(rows),), label, device=outputs.device))
            for label in range(layer.num_classes)
        ],
        dim=1,
    ).cpu()
    whole = torch.cat([inputs.cpu(), torch.ones(len(rows), 1, dtype=torch.float64)], dim=1)
    gradient = gradient.cpu()
    # <s x', t y'> = <s, t> <x, y>: no gradient of a candidate is ever laid out
    flat = slopes.flatten(0, 1)
    both = whole.repeat_interleave(layer.num_classes, 0)
    gram = (flat @ flat.T) * (both @ both.T)
    seen = ((flat @ gradient) * both).sum(dim=1)
    scale = gram.diagonal().sqrt().clamp_min(1e-300)
    gram, seen = gram / scale[:, None] / scale, seen / scale
    values, vectors = torch.linalg.eigh(gram)
    kept = values > 1e-13 * values[-1]
    root = vectors[:, kept] * values[kept].sqrt()
    target = (vectors[:, kept].T @ seen) / values[kept].sqrt()
    solution, _ = nnls(root.T.numpy(), target.numpy(), maxiter=30 * len(seen))
    shares = torch.from_numpy(solution) / scale * batch_size
    counts = shares.round().long()
    if int(counts.sum()) > batch_size:
        counts.zero_()[shares.argsort(descending=True)[:batch_size]] = 1
    chosen = torch.arange(len(shares)).repeat_interleave(counts)
    rest = gradient - (flat[chosen].T @ both[chosen]) / batch_size
    return _Chosen(
        places=chosen // layer.num_classes,
        labels=chosen % layer.num_classes,
        shares=(shares / counts.clamp_min(1))[chosen],
        left=float(rest.norm() / gradient.norm()),
    )


def _require_categories(columns: Columns) -> None:
    if not any(column.categories for column in columns.columns):
        raise AttackFailed(
            "a table of numbers alone has nothing that is one-hot; try 'spear' or 'tableak'"
        )
