"""The frontier of a sweep, and its drawing."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from fedsim.report.charts import svg
from fedsim.report.frontier import MOST_DB, Mark, draw, frontier_of
from fedsim.report.palette import LIGHT


def drawn_marks(figure: Figure) -> list[Line2D]:
    return [one for one in figure.axes[0].get_lines() if one.get_marker() not in ("None", "", None)]


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
        Mark(
            name=f"{place} name",
            short=str(place),
            family=f"family {place}",
            x=(9.0, 8.0, 10.0),
            y=(120.0, 20.0, 120.0),
        )
        for place in range(10)
    ]
    frontier = frontier_of(rows([9.0] * 10), rows([120.0] * 10), 0.95)

    figure = draw(
        marks, frontier, {"data mean": 12.0}, titles=("across", "up"), width=900, colours=LIGHT
    )

    text = svg(figure).decode()
    assert all(f"family {place}" in text for place in range(10))
    assert all(f"{place} name" in text for place in range(10))
    assert "data mean" in text
    looks = [(line.get_marker(), line.get_color()) for line in drawn_marks(figure)]
    assert len(set(looks)) == len(looks) == 10


def test_what_leaks_more_than_the_axis_shows_stands_in_rows_of_a_strip_above_it() -> None:
    marks = [
        Mark(name=f"{leak:g}", short="", family=f"{leak:g}", x=(0.9, 0.9, 0.9), y=(leak, 5.0, leak))
        for leak in (10.0, 59.9, 60.0, 90.0, 120.0)
    ]
    frontier = frontier_of(rows([0.9] * 5), rows([10.0] * 5), 0.95)

    figure = draw(marks, frontier, {}, titles=("across", "up"), width=900, colours=LIGHT)

    heights = [float(np.asarray(line.get_ydata())[0]) for line in drawn_marks(figure)]
    assert heights[:2] == [10.0, 59.9]
    assert MOST_DB < heights[2] < heights[3] < heights[4] < figure.axes[0].get_ylim()[1]
    pixels = figure.axes[0].transData.transform([(0.9, height) for height in heights[2:]])
    assert np.all(np.diff(pixels[:, 1]) > 15)  # a mark is 8 high
    assert max(figure.axes[0].get_yticks()) == MOST_DB
    assert "60 dB or more" in svg(figure).decode()


def test_without_such_a_mark_there_is_no_strip() -> None:
    marks = [Mark(name="a", short="a", family="a", x=(0.9, 0.9, 0.9), y=(10.0, 5.0, 120.0))]
    frontier = frontier_of(rows([0.9]), rows([10.0]), 0.95)

    figure = draw(marks, frontier, {}, titles=("across", "up"), width=900, colours=LIGHT)

    assert "or more" not in svg(figure).decode()
    assert figure.axes[0].dataLim.y1 <= MOST_DB
