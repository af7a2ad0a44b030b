"""Charts: their scales, and what they show of missing values."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.report.chart import At, Curve, Panel, Spot, over_rounds, scatter, ticks
from fedsim.report.drawing import Area, Dot, Drawing, Line, Text, to_svg

values = st.floats(-1e6, 1e6).map(lambda value: round(value, 3))


@given(values, st.floats(0.01, 1e6), st.integers(2, 12))
def test_ticks_are_even_round_and_enclose_the_range(low: float, span: float, most: int) -> None:
    high = low + span

    found = ticks(low, high, most)

    steps = [b - a for a, b in itertools.pairwise(found)]
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert found[0] <= low + slack
    assert found[-1] >= high - slack
    assert max(steps) - min(steps) <= slack
    assert len(found) <= most + 2
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-6)
    assert min(abs(mantissa - nice) for nice in (1, 2, 2.5, 5, 10)) < 1e-3


def test_a_range_of_no_width_has_ticks_all_the_same() -> None:
    assert len(ticks(3.0, 3.0, 5)) >= 2
    assert len(ticks(0.0, 0.0, 5)) >= 2


def drawn(curve: Curve, **panel: float) -> Drawing:
    """One curve in one panel."""
    return over_rounds([Panel(title="PSNR", curves=[curve], **panel)], width=600, label="")  # type: ignore[arg-type]


def test_a_curve_is_its_points_with_a_band_around() -> None:
    points = [At(round=n, value=10.0 * n, low=9.0 * n, high=11.0 * n) for n in (1, 2, 5)]

    marks = drawn(Curve(label="dlg", series=0, points=points)).marks

    (line,) = [mark for mark in marks if isinstance(mark, Line) and mark.series == 0]
    (band,) = [mark for mark in marks if isinstance(mark, Area)]
    xs = [x for x, _ in line.points]
    assert (xs[2] - xs[1]) == pytest.approx(3 * (xs[1] - xs[0]))  # rounds, not places in a list
    assert len(band.points) == 6
    assert len([mark for mark in marks if isinstance(mark, Dot)]) == 3


def test_a_curve_breaks_where_every_attack_of_a_round_failed() -> None:
    points = [At(round=n, value=1.0) for n in (1, 2, 4, 5)]

    marks = drawn(Curve(label="dlg", series=0, points=points, failures=[3])).marks

    lines = [mark for mark in marks if isinstance(mark, Line) and mark.series == 0]
    assert [len(line.points) for line in lines] == [2, 2]
    assert [mark.text for mark in marks if isinstance(mark, Text) and mark.series == 0] == ["x"]


def test_a_panel_of_nothing_but_failures_is_shown() -> None:
    drawing = drawn(Curve(label="dlg", series=0, points=[], failures=[1, 2]))

    assert [hover.lines for hover in drawing.hovers] == [
        ["round 1", "dlg failed"],
        ["round 2", "dlg failed"],
    ]


def test_nothing_at_all_is_an_empty_drawing() -> None:
    drawing = drawn(Curve(label="dlg", series=0, points=[]))

    assert not drawing.hovers
    to_svg(drawing)


def test_a_level_to_compare_with_is_inside_the_scale() -> None:
    curve = Curve(label="dlg", series=0, points=[At(round=1, value=5.0)])
    panel = Panel(title="PSNR", curves=[curve], rules={"recovered": 30.0})

    drawing = over_rounds([panel], width=600, label="")

    (rule,) = [mark for mark in drawing.marks if isinstance(mark, Line) and mark.dashed]
    assert 0 < rule.points[0][1] < drawing.height


def test_the_pointer_reads_off_every_value_of_a_round() -> None:
    psnr = Curve(label="dlg", series=0, points=[At(round=1, value=20.0, low=10.0, high=30.0)])
    accuracy = Curve(label="accuracy", series=None, points=[At(round=1, value=0.5)])
    panels = [
        Panel(title="PSNR", unit=" dB", digits=1, curves=[psnr]),
        Panel(title="accuracy", curves=[accuracy]),
    ]

    (hover,) = over_rounds(panels, width=600, label="").hovers

    assert hover.lines == ["round 1", "dlg 20.0 dB (10.0 to 30.0)", "accuracy 0.50"]


def test_many_rounds_stay_a_small_drawing() -> None:
    points = [At(round=n, value=1.0 / n) for n in range(1, 5001)]

    drawing = drawn(Curve(label="loss", series=None, points=points))

    assert len(drawing.hovers) <= 200
    assert not [mark for mark in drawing.marks if isinstance(mark, Dot)]


def test_a_legend_names_the_curves() -> None:
    curve = Curve(label="dlg", series=0, points=[At(round=1, value=5.0)])

    drawing = over_rounds([Panel(title="", curves=[curve])], width=600, label="", legend=True)

    assert "dlg" in [mark.text for mark in drawing.marks if isinstance(mark, Text)]


def test_points_of_two_measures_lie_inside_and_where_they_belong() -> None:
    spots = [Spot(x=80, y=10, name="a", series=0), Spot(x=90, y=30, name="b", series=1)]

    drawing = scatter(spots, x_title="x", y_title="y", width=500, height=300, label="")

    (bx, by), (ax, ay) = [mark.at for mark in drawing.marks if isinstance(mark, Dot)]
    assert 0 < ax < bx < 500
    assert 300 > ay > by > 0


def test_names_of_points_in_one_place_do_not_cover_each_other() -> None:
    spots = [Spot(x=80, y=10, name=name, series=0) for name in "abc"]

    drawing = scatter(spots, x_title="", y_title="", width=500, height=300, label="")

    names = [mark for mark in drawing.marks if isinstance(mark, Text) and mark.series == 0]
    heights = sorted(mark.at[1] for mark in names)
    assert all(b - a >= 12 for a, b in itertools.pairwise(heights))  # the height of a line
