"""What follows in exact arithmetic is what fractions say, and what floating point sees of it."""

from fractions import Fraction

import numpy as np
import pytest

from attacks.isolation.identifiability import PRIME, ReducedRows, matmul


def rank_of(rows: list[list[Fraction]]) -> int:
    """Return the rank of rows of fractions, by elimination."""
    rows, rank = [row[:] for row in rows], 0
    for column in range(len(rows[0]) if rows else 0):
        pivot = next((place for place in range(rank, len(rows)) if rows[place][column]), None)
        if pivot is None:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        for place in range(rank + 1, len(rows)):
            factor = rows[place][column] / rows[rank][column]
            rows[place] = [
                mine - factor * other for mine, other in zip(rows[place], rows[rank], strict=True)
            ]
        rank += 1
    return rank


@pytest.mark.parametrize("seed", range(20))
def test_unknowns_are_determined_where_their_unit_row_adds_no_rank(seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = rng.integers(-2, 3, size=(6, 8)) * (rng.random((6, 8)) < 0.4)
    fractions = [[Fraction(int(one), 3) for one in row] for row in whole]
    reduced = ReducedRows(8)

    reduced.add(whole * pow(3, -1, PRIME) % PRIME)

    assert reduced.rank == rank_of(fractions)
    for column in range(8):
        unit = [Fraction(int(place == column)) for place in range(8)]
        assert reduced.determined()[column] == (rank_of([*fractions, unit]) == rank_of(fractions))


def test_rows_may_come_in_parts() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, PRIME, size=(150, 160))
    rows[:, 20:] *= rng.random((150, 140)) < 0.01
    at_once, in_parts = ReducedRows(160, [3]), ReducedRows(160, [3])

    at_once.add(rows)
    for first in range(0, 150, 7):
        in_parts.add(rows[first : first + 7])

    assert at_once.rank == in_parts.rank
    assert np.array_equal(at_once.determined(), in_parts.determined())
    assert 1 < at_once.determined().sum() < 160


def test_products_of_the_largest_residues_are_exact() -> None:
    rng = np.random.default_rng(1)
    left = PRIME - 1 - rng.integers(0, 3, size=(3, 130))
    right = PRIME - 1 - rng.integers(0, 3, size=(130, 4))

    found = matmul(left, right)

    expected = (left.astype(object) @ right.astype(object)) % PRIME
    assert found.tolist() == expected.tolist()


def test_a_difference_that_floating_point_does_not_see_counts() -> None:
    tiny = pow(10**18, -1, PRIME)
    reduced = ReducedRows(2)

    reduced.add(np.array([[1, 1], [1, (1 + tiny) % PRIME]]))

    assert reduced.determined().all()


def test_known_columns_are_determined_and_take_no_rank() -> None:
    reduced = ReducedRows(3, known=[0])

    reduced.add(np.array([[5, 1, 0], [7, 0, 0]]))

    assert reduced.rank == 1
    assert reduced.determined().tolist() == [True, True, False]
