"""Marks as SVG and as PNG."""

from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import ImageColor

from fedsim.report.drawing import COLOURS, Area, Dot, Drawing, Hover, Line, Mark, Text, to_svg
from fedsim.report.raster import plain, to_png

SVG = "{http://www.w3.org/2000/svg}"
MARKS: list[Mark] = [
    Area(points=[(10, 10), (50, 10), (50, 30)], colour="c0", series=0),
    Line(points=[(0, 20), (60, 20)], colour="grid", dashed=True),
    Line(points=[(0, 5), (60, 5)], colour="ink", width=2),
    Dot(at=(30, 25), radius=4, colour="c1", series=1),
    Text(at=(2, 38), text="<b> & 'x'", colour="muted"),
]
HOVER = Hover(left=0, right=60, x=30, lines=["round <1>", "dlg 3 dB"])
DRAWING = Drawing(width=60, height=40, label='a "label" <here>', marks=MARKS, hovers=[HOVER])


def test_the_svg_is_well_formed_and_says_what_was_written() -> None:
    found = ElementTree.fromstring(to_svg(DRAWING, "wide"))  # noqa: S314 (our own text)

    assert found.get("viewBox") == "0 0 60 40"
    assert found.get("aria-label") == 'a "label" <here>'
    texts = [element.text for element in found.iter("text")]
    assert texts == ["<b> & 'x'", "round <1>", "dlg 3 dB"]


def test_curves_can_be_told_apart_by_class_and_no_style_is_written_inline() -> None:
    svg = to_svg(DRAWING)

    assert 'class="area c0 s0"' in svg
    assert 'class="dot c1 s1"' in svg
    assert "style=" not in svg


def test_a_tip_stays_inside_the_drawing() -> None:
    wide = Drawing(
        width=900,
        height=40,
        label="",
        marks=[],
        hovers=[Hover(left=800, right=900, x=880, lines=["a rather long line of text"])],
    )
    found = ElementTree.fromstring(to_svg(wide))  # noqa: S314 (our own text)

    box = next(rect for rect in found.iter("rect") if rect.get("rx"))
    assert float(box.get("x", "-1")) >= 0
    assert float(box.get("x", "0")) + float(box.get("width", "0")) <= 900


@pytest.mark.parametrize(
    ("place", "colour"), [((30, 5), "ink"), ((30, 25), "c1"), ((58, 38), None)]
)
def test_the_png_has_the_same_colours_at_twice_the_size(
    place: tuple[int, int], colour: str | None
) -> None:
    pixels = np.asarray(to_png(DRAWING))

    expected = ImageColor.getrgb(COLOURS[colour]) if colour else (255, 255, 255)
    assert pixels.shape == (80, 120, 3)
    assert tuple(pixels[2 * place[1], 2 * place[0]]) == expected


def test_a_dashed_line_has_gaps() -> None:
    dashed = Drawing(
        width=60,
        height=10,
        label="",
        marks=[Line(points=[(0, 5), (60, 5)], colour="ink", dashed=True)],
    )

    row = np.asarray(to_png(dashed).convert("L"))[10]

    assert row.min() < 100
    assert row.max() == 255


def test_what_the_font_lacks_becomes_a_question_mark() -> None:
    assert plain("3\u00a0dB \u4e2d") == "3 dB ?"
