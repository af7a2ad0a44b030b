"""A quick look at which unknowns may follow from what was heard, before they are computed."""

from collections.abc import Collection

import numpy as np

INSIDE = 0.99
"""A unit vector may be in a row space if this part of its squared length is."""
SMALLEST = 1e-13
"""Singular values below this part of the largest are zero for sure."""


def may_follow(rows: np.ndarray, known: Collection[int]) -> np.ndarray:
    """Return which unknowns may follow, (U,) bool: all that do, and few besides.

    The part of each unit vector that lies in the row space is read off one decomposition, which is
    much quicker than to solve for them one by one.

    Args:
        rows: Coefficients of what was heard, (M, U).
        known: Columns that are known; they count as following.
    """
    free = np.ones(rows.shape[1], dtype=bool)
    free[[column for column in known if column < len(free)]] = False
    rows = rows * free
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = (rows / np.where(lengths > 0, lengths, 1.0))[lengths[:, 0] > 0]
    if not len(rows):
        return ~free
    _, values, right = np.linalg.svd(rows, full_matrices=False)
    inside = (right[values > SMALLEST * values[0]] ** 2).sum(axis=0)
    return np.asarray(~free | (inside > INSIDE))
