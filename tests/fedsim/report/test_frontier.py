"""The frontier of a sweep, and its drawing."""

import numpy as np
import pytest
from numpy.typing import NDArray

from fedsim.report.charts import svg
from fedsim.report.frontier import MOST_DB, Mark, draw, frontier_of
from fedsim.report.palette import LIGHT


def rows(*values: list[float]) -> NDArray[np.float64]:
    return np.array(values)


def test_the_frontier_is_the_least_leakage_of_any_cell_at_least_so_useful() -> None:
    # the third cell is both less useful and leakier than the second
    found = frontier_of(rows([90.0, 60.0, 50.0]), rows([40.0, 10.0, 20.0]), 0.95)

    at = dict(zip(found.x.tolist(), found.y.tolist(), strict=True))
    assert (at[50.0], at[60.0], at[90.0]) == (10.0, 10.0, 40.0)
    assert np.all(np.diff(found.y) >= 0)
    np.testing.assert_array_equal(found.low, found.y)
    np.testing.assert_array_equal(found.high, found.y)


def test_the_band_spans_what_resampling_finds_and_holds_the_line() -> None:
    utilities = rows([90.0, 60.0], *[[90.0, 60.0]] * 100)
    leakages = rows([40.0, 10.0], *[[40.0 + step, 10.0 - step / 20] for step in range(100)])

    found = frontier_of(utilities, leakages, 0.9)

    assert np.all(found.low <= found.y)
    assert np.all(found.y <= found.high)
    assert found.high[-1] == pytest.approx(40 + 0.95 * 99, abs=1.0)
    assert found.low[0] == pytest.approx(10 - 0.95 * 99 / 20, abs=0.1)


def test_a_resample_whose_best_cell_is_less_useful_stands_for_what_lies_beyond_it() -> None:
    found = frontier_of(rows([90.0], [80.0]), rows([40.0], [30.0]), 0.95)

    assert np.isfinite(found.low).all()
    assert np.isfinite(found.high).all()


def test_marks_are_named_and_more_families_than_colours_are_told_apart() -> None:
    marks = [
        Mark(name=str(place), family=f"family {place}", x=(9.0, 8.0, 10.0), y=(120.0, 20.0, 120.0))
        for place in range(10)
    ]
    frontier = frontier_of(rows([9.0] * 10), rows([120.0] * 10), 0.95)

    figure = draw(
        marks, frontier, {"data mean": 12.0}, titles=("across", "up"), width=900, colours=LIGHT
    )

    text = svg(figure).decode()
    assert all(f"family {place}" in text for place in range(10))
    assert "data mean" in text
    looks = [
        (line.get_marker(), line.get_color())
        for line in figure.axes[0].get_lines()
        if line.get_marker() not in ("None", "", None)
    ]
    assert len(set(looks)) == len(looks) == 10
    assert figure.axes[0].dataLim.y1 <= MOST_DB
