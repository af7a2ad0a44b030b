"""Charts: they carry the data they are given, and show what is missing."""

import io
import math
import re
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from fedsim.report.charts import over_rounds, png, scatter, svg
from fedsim.report.curves import At, Curve, Panel, Spot
from fedsim.report.palette import DARK, LIGHT

USED = ("ink", "muted", "paper", "grid", "c0")
POINTS = [
    At(round=1, value=20.0, low=10.0, high=30.0),
    At(round=2, value=18.0, low=9.0, high=27.0),
    At(round=3, value=None),
    At(round=5, value=12.0, low=6.0, high=18.0),
    At(round=9, value=8.0, low=4.0, high=12.0),
]
DLG = Curve(label="dlg", series=0, points=POINTS)
ACCURACY = Curve(label="accuracy", points=[At(round=n, value=n / 10) for n in range(10)])
PANELS = [
    Panel(title="PSNR, dB", curves=[DLG], height=200, rules={"recovered": 40.0}),
    Panel(title="accuracy", curves=[ACCURACY], height=90, most=1),
]


def drawn(*curves: Curve) -> Axes:
    """Curves in one panel."""
    panel = Panel(title="PSNR", curves=curves, height=100)
    return over_rounds([panel], width=600, colours=LIGHT).axes[0]


def points(area: Axes, shape: str) -> list[tuple[float, float]]:
    """What is drawn with that marker, or as a line if it is "None"."""
    return [
        (x, y)
        for line in area.lines
        if line.get_marker() == shape
        for x, y in np.asarray(line.get_xydata()).tolist()
    ]


def texts(figure: Figure) -> list[str | None]:
    """All text of a drawing, as a reader of the file finds it."""
    found = ElementTree.fromstring(svg(figure))  # noqa: S314 (our own text)
    return [element.text for element in found.iter("{http://www.w3.org/2000/svg}text")]


def test_a_line_carries_the_data_given_and_breaks_where_a_value_is_missing() -> None:
    area = drawn(DLG)

    expected = [(1, 20), (2, 18), (3, math.nan), (5, 12), (9, 8)]
    np.testing.assert_array_equal(points(area, "None"), expected)


def test_a_band_reaches_from_worst_to_best_on_both_sides_of_a_gap() -> None:
    (band,) = drawn(DLG).collections

    before, after = (path.get_extents() for path in band.get_paths())
    assert (before.x0, before.y0, before.x1, before.y1) == (1, 9, 2, 30)
    assert (after.x0, after.y0, after.x1, after.y1) == (5, 4, 9, 18)


def test_an_x_marks_the_round_without_a_value() -> None:
    assert [x for x, _ in points(drawn(DLG), "x")] == [3]


def test_a_panel_of_nothing_but_failures_is_drawn() -> None:
    curve = Curve(label="dlg", series=0, points=[At(round=n, value=None) for n in (1, 2)])

    assert [x for x, _ in points(drawn(curve), "x")] == [1, 2]


def test_a_point_between_two_gaps_is_seen_with_its_band_on_a_long_curve() -> None:
    around = [At(round=n, value=None if n in (49, 51) else 1.0) for n in range(100)]
    around[50] = At(round=50, value=2.0, low=1.5, high=3.0)

    area = drawn(Curve(label="dlg", series=0, points=around))

    assert points(area, "o") == [(50, 2)]
    extents = [path.get_extents() for one in area.collections for path in one.get_paths()]
    assert (1.5, 3.0) in [(box.y0, box.y1) for box in extents if box.x0 == box.x1 == 50]


def test_thousands_of_rounds_are_a_line_without_dots() -> None:
    losses = [At(round=n, value=1.0 / n) for n in range(1, 5001)]

    area = drawn(Curve(label="loss", points=losses))

    assert not points(area, "o")
    assert len(points(area, "None")) == 5000


def test_a_scale_holds_every_value_zero_and_the_levels_to_compare_with() -> None:
    psnr, accuracy = over_rounds(PANELS, width=600, colours=LIGHT).axes

    assert psnr.get_ylim()[0] == 0
    assert 40 < psnr.get_ylim()[1] < 45
    assert accuracy.get_ylim() == (0, 1)
    assert psnr.get_xlim() == accuracy.get_xlim()


@pytest.mark.parametrize("value", [0.0, None])
def test_a_single_round_with_nothing_to_measure_has_a_scale(value: float | None) -> None:
    area = drawn(Curve(label="loss", points=[At(round=3, value=value)]))

    assert area.get_ylim() == (0, 1)
    assert area.get_xlim() == (2, 4)


def test_names_are_written_as_they_are() -> None:
    names = ["_hidden", "$a$ & <b>", "plain"]
    curves = [Curve(label=name, series=series, points=POINTS) for series, name in enumerate(names)]
    panel = Panel(title="PSNR (oracle: an upper bound)", curves=curves, height=100)

    found = texts(over_rounds([panel], width=420, colours=LIGHT))

    assert {*names, "PSNR (oracle: an upper bound)", "round"} <= {*found}


def test_equal_data_are_equal_bytes_whatever_the_settings_of_the_reader() -> None:
    first = svg(over_rounds(PANELS, width=600, colours=LIGHT))

    with matplotlib.rc_context({"lines.linewidth": 9, "svg.hashsalt": None}):
        second = svg(over_rounds(PANELS, width=600, colours=LIGHT))
        assert matplotlib.rcParams["lines.linewidth"] == 9

    assert first == second


def test_light_and_dark_differ_in_nothing_but_colours() -> None:
    light, dark = (
        svg(over_rounds(PANELS, width=600, colours=colours)).decode() for colours in (LIGHT, DARK)
    )

    assert set(re.findall("#[0-9a-f]{6}", light)) == {LIGHT[name] for name in USED}
    assert set(re.findall("#[0-9a-f]{6}", dark)) == {DARK[name] for name in USED}
    shapes = re.compile(r' d="[^"]*"')
    assert shapes.findall(light) == shapes.findall(dark)


def test_the_png_is_twice_as_large_on_white_paper() -> None:
    figure = over_rounds(PANELS, width=600, colours=LIGHT)

    with Image.open(io.BytesIO(png(figure))) as picture:
        assert picture.width == 1200
        assert picture.convert("RGB").getpixel((1199, 0)) == (255, 255, 255)


def test_points_of_two_measures_are_told_apart_by_colour_and_shape() -> None:
    spots = [
        Spot(x=80, y=10, series=0, name="undefended", kind="dlg"),
        Spot(x=80, y=10, series=0, name="undefended", kind="IG"),
        Spot(x=70, y=5, series=1, name="clipped", kind="dlg"),
    ]

    figure = scatter(spots, titles=("accuracy", "PSNR"), width=600, colours=LIGHT)

    (area,) = figure.axes
    assert points(area, "o") == [(80, 10), (70, 5)]
    assert points(area, "s") == [(80, 10)]
    assert [line.get_color() for line in area.lines] == [LIGHT[name] for name in ("c0", "c0", "c1")]
    assert {"undefended", "clipped", "dlg", "IG", "accuracy", "PSNR"} <= {*texts(figure)}


def test_names_of_levels_close_to_each_other_are_apart() -> None:
    rules = {"data mean": 11.8, "counts as recovered": 15.0}
    panel = Panel(title="PSNR", curves=[DLG], height=210, rules=rules)

    (area,) = over_rounds([panel], width=900, colours=LIGHT).axes

    heights = {
        text.get_text(): area.transData.transform((0, text.get_position()[1]))[1]
        for text in area.texts
    }
    assert set(heights) == set(rules)
    assert abs(heights["data mean"] - heights["counts as recovered"]) > 12


def test_points_at_the_same_place_are_side_by_side_and_whole() -> None:
    spots = [
        Spot(x=80, y=120, series=series, name=str(series), kind="dlg") for series in range(3)
    ] + [Spot(x=60, y=120, series=3, name="3", kind="dlg")]

    (area,) = scatter(spots, titles=("accuracy", "PSNR"), width=600, colours=LIGHT).axes

    drawn = np.array([line.get_transform().transform((80, 120))[0] for line in area.lines])
    np.testing.assert_allclose(np.diff(drawn[:3]), 11.0)
    assert drawn[3] == area.transData.transform((80, 120))[0]  # alone, at its own place
    top = area.transData.transform((0, area.get_ylim()[1]))[1]
    assert top - area.transData.transform((0, 120))[1] > 9
