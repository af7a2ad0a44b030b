"""Linear algebra of isolation: which unknown vectors follow from those heard, and how well.

Every heard vector is a known combination of unknown ones, y_m = sum_u A_mu z_u + rounding, the same
in each coordinate. A combination t of the unknowns is exact where t lies in the row space of A:
then sum_m c_m y_m is t z, for the c with c A = t. Otherwise the best guess, under a Gaussian prior
on the unknowns, is the posterior mean; its error is known beforehand. With updates that change
little from round to round that is the generalised least squares of El Mrini, Cyffers and Bellet
(2024, https://arxiv.org/abs/2402.10001), with a prior in place of a fixed gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy.linalg import solve_triangular

from attacks.isolation.prior import Prior
from attacks.isolation.unknowns import Unknowns

OUTSIDE = 1e-6
"""A target is in the row space if no more than this part of it, by length, lies outside."""
RANK = 1e-11
"""Directions that were heard by less than this part of the loudest one were not heard."""
TOO_SMALL = 1e-10
"""Coefficients whose vectors add less than this, in standard deviations of an update, are zero."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """How to compute one wanted combination of the unknowns from what was heard.

    It is the sum of `weights` times the heard vectors `heard`, plus the sum of `known_weights`
    times the known unknowns `known`.

    Attributes:
        how: exact: it holds whatever the other unknowns are; estimated: it is the posterior mean.
        heard: Indices of heard vectors, (n,) int64, ascending.
        weights: One per heard vector, (n,) float64.
        known: Columns of known unknowns, (k,) int64, ascending.
        known_weights: One per known unknown, (k,) float64.
        expected_error: Root mean square error over that of the wanted vector, both under the
            prior; 1 means that nothing is known of it.
        noise_gain: How much one relative error of the heard vectors (each times its own size)
            grows to, relative to the wanted vector; the error that rounding alone makes is this
            times the relative precision of what was heard.
        prior_std: Root mean square of the wanted vector under the prior, without what is known.
    """

    how: Literal["exact", "estimated"]
    heard: np.ndarray
    weights: np.ndarray
    known: np.ndarray
    known_weights: np.ndarray
    expected_error: float
    noise_gain: float
    prior_std: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """What was heard, and what is known.

    Attributes:
        unknowns: What the columns are.
        rows: Coefficients of what was heard, (M, U), float64.
        known: Columns that the adversary knows the vectors of.
        sizes: Root mean square of each heard vector over its coordinates, (M,).
        precision: Relative error of each coordinate of what was heard, in terms of `sizes`.
        prior: On the unknowns.
    """

    unknowns: Unknowns
    rows: np.ndarray
    known: Sequence[int]
    sizes: np.ndarray
    precision: float = 2.0**-24
    prior: Prior = field(default_factory=Prior)

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or self.rows.shape[1] != len(self.unknowns):
            raise ValueError(
                f"rows must have shape (M, {len(self.unknowns)}), got {self.rows.shape}"
            )
        if self.sizes.shape != (len(self.rows),):
            raise ValueError(f"sizes must have shape ({len(self.rows)},), got {self.sizes.shape}")

    def read(self, targets: np.ndarray) -> list[Reading]:
        """Return how to compute each of the wanted combinations, (J, U), best.

        Where the exact reading would drown in rounding, and the prior knows better, it is the
        estimate that is returned.
        """
        exact = self.exact(targets)
        readings = self.estimated(targets, exact, range(len(targets)))
        return [one for one in readings if one is not None]

    def estimated(
        self, targets: np.ndarray, exact: Sequence[Reading | None], places: Sequence[int]
    ) -> list[Reading | None]:
        """Return exact readings, with estimates at those of these places where they are better."""
        readings = list(exact)
        rest = [place for place in places if not _good(exact[place])]
        guesses = _estimates(self, targets[rest]) if rest else []
        for place, guess in zip(rest, guesses, strict=True):
            own = readings[place]
            if own is None or guess.expected_error < own.expected_error:
                readings[place] = guess
        return readings

    def exact(self, targets: np.ndarray) -> list[Reading | None]:
        """Return how to compute each combination, (J, U), that lies in the row space."""
        solved = _Exact(self)
        return [solved.read(target) for target in targets]

    @property
    def is_known(self) -> np.ndarray:
        """(U,) bool."""
        mask = np.zeros(len(self.unknowns), dtype=bool)
        mask[list(self.known)] = True
        return mask

    def noise(self) -> np.ndarray:
        """Return the standard deviation of the error of what was heard, (M,)."""
        # none is trusted without bound: a vector of zeros would drown all others out
        floor = max(float(self.sizes.max(initial=0.0)) * 1e-6, 1e-300)
        return np.asarray(self.precision * np.maximum(self.sizes, floor))


GOOD = 1e-2
"""An exact reading with a smaller relative error than this needs no comparison with a guess."""


def _good(reading: Reading | None) -> bool:
    return reading is not None and reading.expected_error <= GOOD


class _Exact:
    """Reads what lies in the row space of what was heard.

    Rows in which one unknown is left are taken first, over and over: they are triangular. What is
    left is decomposed by singular values, with rows in units of their error and columns in units
    of their standard deviation.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.stds = problem.prior.stds(problem.unknowns)
        self.noise = problem.noise()
        self.free = ~problem.is_known
        self.places = _loudest_of_each(problem.rows * self.free, self.noise)
        rows = problem.rows[self.places] * self.free
        self.peeled_rows, self.peeled_columns = _peel(rows, self.noise[self.places])
        left_columns = self.free.copy()
        left_columns[self.peeled_columns] = False
        core = rows * left_columns * self.stds / self.noise[self.places][:, None]
        self.core_rows = np.flatnonzero((core != 0).any(axis=1))
        self.core_columns = np.flatnonzero((core != 0).any(axis=0))
        self.rows = rows
        core = core[np.ix_(self.core_rows, self.core_columns)]
        left, values, right = np.linalg.svd(core, full_matrices=False)
        heard = values > RANK * values.max(initial=0.0)
        self.left, self.values, self.right = left[:, heard], values[heard], right[heard]
        # column-major, as the solver wants it
        self.triangle = np.asfortranarray(rows[np.ix_(self.peeled_rows, self.peeled_columns)])
        self.reach = np.abs(rows * self.stds).max(axis=1, initial=0.0)

    def read(self, target: np.ndarray) -> Reading | None:
        """Return the reading of one combination (U,), or None if it is not in the row space."""
        prior_std = _length(target * self.free * self.stds)
        weights = np.zeros(len(self.rows))
        outside = 0.0
        rest = target * self.free
        if prior_std > 0:
            rest, weights, outside = self._through_core(rest, weights)
            if outside > OUTSIDE * prior_std:
                return None
            weights = self._through_triangle(rest, weights)
            weights = _snapped(weights)
        weights[np.abs(weights) * self.reach <= TOO_SMALL * prior_std] = 0.0
        used = np.flatnonzero(weights)
        heard, weights = self.places[used], weights[used]
        noise = _length(weights * self.noise[heard])
        columns = np.flatnonzero(~self.free)
        known_weights = target[columns] - weights @ self.problem.rows[np.ix_(heard, columns)]
        scale = prior_std if prior_std > 0 else 1.0
        return Reading(
            how="exact",
            heard=heard,
            weights=weights,
            known=columns[known_weights != 0],
            known_weights=known_weights[known_weights != 0],
            expected_error=float(np.hypot(noise, outside)) / scale,
            noise_gain=noise / scale / self.problem.precision,
            prior_std=prior_std,
        )

    def _through_core(
        self, target: np.ndarray, weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Read what no triangle reads; return what is left for it, and what cannot be read."""
        inner = target[self.core_columns] * self.stds[self.core_columns]
        unheard = target * self.stds
        unheard[self.core_columns] = 0.0
        unheard[self.peeled_columns] = 0.0
        if not inner.any():
            return target, weights, _length(unheard)
        along = self.right @ inner
        missing = _length(inner - self.right.T @ along)
        noise = self.noise[self.places[self.core_rows]]
        weights[self.core_rows] = (self.left @ (along / self.values)) / noise
        rest = target - weights[self.core_rows] @ self.rows[self.core_rows]
        return rest, weights, float(np.hypot(missing, _length(unheard)))

    def _through_triangle(self, target: np.ndarray, weights: np.ndarray) -> np.ndarray:
        wanted = target[self.peeled_columns]
        if wanted.any():
            weights[self.peeled_rows] += solve_triangular(
                self.triangle, wanted, trans="T", lower=True, check_finite=False
            )
        return weights


def _estimates(problem: Problem, targets: np.ndarray) -> list[Reading]:
    """Return the posterior mean of each target (J, U), and its error."""
    known_updates = np.asarray(
        [one for one in sorted(problem.known) if one >= problem.unknowns.num_starts], dtype=np.int64
    )
    # updates that are known tell of others that depend on them: they are heard, all but exactly
    own = np.zeros((len(known_updates), len(problem.unknowns)))
    own[np.arange(len(known_updates)), known_updates] = 1.0
    free = np.ones(len(problem.unknowns), dtype=bool)
    free[[one for one in problem.known if one < problem.unknowns.num_starts]] = False
    noise = np.concatenate(
        [problem.noise(), np.full(len(own), problem.precision * problem.prior.update_std)]
    )
    rows, num_heard = np.concatenate([problem.rows, own]) * free, len(problem.rows)
    heard = problem.prior.factor(problem.unknowns, rows) / noise[:, None]
    left, values, right = np.linalg.svd(heard, full_matrices=False)
    wanted = problem.prior.factor(problem.unknowns, targets * free)
    stds = problem.prior.factor(problem.unknowns, targets * ~problem.is_known)
    along = wanted @ right.T
    outside = ((wanted - along @ right) ** 2).sum(axis=1)
    errors = np.sqrt(outside + (along**2 / (1 + values**2)).sum(axis=1))
    gains = (along * (values / (1 + values**2))) @ left.T
    starts = np.flatnonzero(~free)
    known = np.concatenate([starts, known_updates])
    reach = noise * np.sqrt(np.sum(heard**2, axis=1))
    readings = []
    for place, target in enumerate(targets):
        weights = gains[place] / noise
        prior_std = _length(stds[place])
        weights[np.abs(weights) * reach <= TOO_SMALL * prior_std] = 0.0
        used = np.flatnonzero(weights[:num_heard])
        known_weights = np.concatenate(
            [
                target[starts] - weights[used] @ problem.rows[np.ix_(used, starts)],
                weights[num_heard:],
            ]
        )
        scale = prior_std if prior_std > 0 else 1.0
        readings.append(
            Reading(
                how="estimated",
                heard=used,
                weights=weights[used],
                known=known[known_weights != 0],
                known_weights=known_weights[known_weights != 0],
                expected_error=float(errors[place]) / scale,
                noise_gain=_length(weights[used] * noise[used]) / scale / problem.precision,
                prior_std=prior_std,
            )
        )
    return readings


def _loudest_of_each(rows: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Return the indices of rows that are no multiples of others, of each the least noisy."""
    best: dict[bytes, int] = {}
    for place, row in enumerate(rows):
        nonzero = np.flatnonzero(row)
        if not len(nonzero):
            continue
        scaled = np.round(row / row[nonzero[0]], 12) + 0.0
        key = scaled.tobytes()
        other = best.get(key)
        first = nonzero[0]
        if other is None or (
            noise[place] / abs(row[first]) < noise[other] / abs(rows[other][first]) * (1 - 1e-9)
        ):
            best[key] = place
    return np.asarray(sorted(best.values()), dtype=np.int64)


def _peel(rows: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns, in an order in which the rows are lower triangular."""
    left = (rows != 0).sum(axis=1)
    nonzero = rows != 0
    peeled_rows: list[int] = []
    peeled_columns: list[int] = []
    while True:
        single = np.flatnonzero(left == 1)
        if not len(single):
            break
        columns = nonzero[single].argmax(axis=1)
        best: dict[int, int] = {}
        for row, column in zip(single.tolist(), columns.tolist(), strict=True):
            other = best.get(column)
            if other is None or (
                noise[row] / abs(rows[row, column]) < noise[other] / abs(rows[other, column])
            ):
                best[column] = row
        for column, row in best.items():
            peeled_rows.append(row)
            peeled_columns.append(column)
        left -= nonzero[:, list(best)].sum(axis=1)
        nonzero = nonzero.copy()
        nonzero[:, list(best)] = False
    return np.asarray(peeled_rows, dtype=np.int64), np.asarray(peeled_columns, dtype=np.int64)


def _snapped(weights: np.ndarray) -> np.ndarray:
    """Return weights of which those next to a whole number are that number."""
    whole = np.round(weights)
    return np.where(np.abs(weights - whole) <= 1e-11 * np.abs(whole), whole, weights)


def _length(vector: np.ndarray) -> float:
    return float(np.sqrt(np.sum(vector**2)))
