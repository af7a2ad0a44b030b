"""Which unknowns follow from what was heard, in exact arithmetic.

The weights of protocols are fractions. Modulo a prime they are whole numbers, on which rows are
reduced without rounding: an unknown is determined if its own unit row is among the reduced rows.
This is the knowledge matrix of El Mrini, Cyffers and Bellet (2024,
https://arxiv.org/abs/2402.10001), without the doubt that floating point leaves about its rank. A
prime near 2^31 can mistake a rank in about U of 2^31 cases.
"""

from collections.abc import Sequence

import numpy as np

PRIME = 2**31 - 1
"""Residues are below it, so products of two fit into 64 bits."""

BLOCK = 64
"""Rows at a time: so many products of 47 bits add up exactly in double precision."""


class ReducedRows:
    """Rows in reduced echelon form, to which more can be added.

    Args:
        num_columns: U.
        known: Columns whose unknowns are known from the start.
    """

    def __init__(self, num_columns: int, known: Sequence[int] = ()) -> None:
        self.free = np.ones(num_columns, dtype=bool)
        self.free[list(known)] = False
        self.rows = np.zeros((0, num_columns), dtype=np.int64)
        self.pivots = np.zeros(0, dtype=np.int64)

    @property
    def rank(self) -> int:
        """How many independent combinations of what is not known were heard."""
        return len(self.pivots)

    def add(self, rows: np.ndarray) -> None:
        """Take in more rows (M, U), int64 residues from 0 to PRIME - 1."""
        rows = rows * self.free
        different = {row.tobytes(): row for row in rows if row.any()}
        rows = np.reshape(list(different.values()), (-1, rows.shape[1]))
        for first in range(0, len(rows), BLOCK):
            self._add_block(rows[first : first + BLOCK])

    def determined(self) -> np.ndarray:
        """Return which unknowns follow, (U,) bool; those that are known from the start too."""
        mask = ~self.free
        single = (self.rows != 0).sum(axis=1) == 1
        mask[self.pivots[single]] = True
        return mask

    def _add_block(self, rows: np.ndarray) -> None:
        rows = (rows - matmul(rows[:, self.pivots], self.rows)) % PRIME
        rows, pivots = _reduced(rows)
        if not len(pivots):
            return
        self.rows = (self.rows - matmul(self.rows[:, pivots], rows)) % PRIME
        self.rows = np.concatenate([self.rows, rows])
        self.pivots = np.concatenate([self.pivots, pivots])


def matmul(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return left (M, R) @ right (R, U) modulo PRIME, int64.

    The left factor is cut into 16 and 15 bits, so that double precision is exact.
    """
    total = np.zeros((left.shape[0], right.shape[1]), dtype=np.int64)
    for first in range(0, left.shape[1], BLOCK):
        part = left[:, first : first + BLOCK]
        other = right[first : first + BLOCK].astype(np.float64)
        high = ((part >> 16).astype(np.float64) @ other).astype(np.int64) % PRIME
        low = ((part & 0xFFFF).astype(np.float64) @ other).astype(np.int64)
        total = (total + (high << 16) + low) % PRIME
    return total


def _reduced(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the reduced echelon form of a few rows, without zero rows, and its pivot columns."""
    rows = rows.copy()
    pivots: list[int] = []
    kept: list[int] = []
    for place in range(len(rows)):
        nonzero = np.flatnonzero(rows[place])
        if not len(nonzero):
            continue
        pivot = int(nonzero[0])
        rows[place] = rows[place] * pow(int(rows[place, pivot]), -1, PRIME) % PRIME
        factors = rows[:, pivot].copy()
        factors[place] = 0
        used = np.flatnonzero(factors)
        rows[used] = (rows[used] - factors[used, None] * rows[place][None, :] % PRIME) % PRIME
        pivots.append(pivot)
        kept.append(place)
    return rows[kept], np.asarray(pivots, dtype=np.int64)
