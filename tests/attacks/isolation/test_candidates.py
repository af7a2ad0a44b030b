"""The quick look leaves out nothing that follows, and most of what does not."""

import numpy as np
import pytest

from attacks.isolation.candidates import may_follow


def test_what_is_heard_alone_or_as_a_difference_follows() -> None:
    rows = np.array([[1.0, 0, 0, 0, 0], [1, 2, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]])

    assert may_follow(rows, known=[]).tolist() == [True, True, False, False, False]
    assert may_follow(rows, known=[3]).tolist() == [True, True, True, True, False]
    assert may_follow(rows[:0], known=[4]).tolist() == [False] * 4 + [True]


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_row_space_of_random_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    seen = rng.choice(30, size=12, replace=False)
    rows = np.zeros((16, 30))
    rows[:, seen] = rng.normal(size=(16, 12))  # all twelve follow, and nothing else

    assert np.flatnonzero(may_follow(rows, known=[])).tolist() == sorted(seen.tolist())
