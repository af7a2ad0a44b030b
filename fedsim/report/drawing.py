"""Drawings made of a few marks, as SVG inside a page and as PNG beside it.

One layout serves both. The SVG names its colours by class, so that it follows the reader's light or
dark scheme, and answers the pointer by style rules alone: a report runs no script and stays below
a few hundred kB. A library of interactive charts would put 4.8 MB of script into every report, and
could not make the PNG without a browser.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

Point = tuple[float, float]

NUM_COLOURS = 8
COLOURS = {
    "ink": "#1f1d1a",
    "muted": "#6e6a63",
    "grid": "#e4e0d8",
    "c0": "#c2410c",
    "c1": "#1d5f8a",
    "c2": "#3f7d3a",
    "c3": "#7c4a9e",
    "c4": "#a8326e",
    "c5": "#8a6d0b",
    "c6": "#0f766e",
    "c7": "#57534e",
}
"""Of PNG files, and of pages in the light scheme; the style sheet has the dark ones."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Anything drawn.

    Attributes:
        colour: A key of `COLOURS`.
        series: Number of the curve that it belongs to; the reader can hide one. None if to none.
    """

    colour: str
    series: int | None = None


@dataclass(frozen=True, kw_only=True)
class Line(Mark):
    """Straight strokes from point to point."""

    points: Sequence[Point]
    width: float = 1.0
    dashed: bool = False


@dataclass(frozen=True, kw_only=True)
class Area(Mark):
    """A pale surface."""

    points: Sequence[Point]


@dataclass(frozen=True, kw_only=True)
class Dot(Mark):
    """A disc."""

    at: Point
    radius: float = 3.0


@dataclass(frozen=True, kw_only=True)
class Text(Mark):
    """One line of text; `at` is the left end, the middle or the right end of its base line."""

    at: Point
    text: str
    anchor: str = "start"
    size: float = 12.0


@dataclass(frozen=True, kw_only=True)
class Hover:
    """What the pointer finds in one column: a hair line and some lines of text; SVG only."""

    left: float
    right: float
    x: float
    lines: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Marks on a sheet, first to last.

    Attributes:
        width: In pixels at scale one.
        height: Likewise.
        label: What it shows, for readers who cannot see it.
        marks: What is drawn.
        hovers: What answers the pointer.
    """

    width: float
    height: float
    label: str
    marks: Sequence[Mark]
    hovers: Sequence[Hover] = ()


def to_svg(drawing: Drawing, css_class: str = "") -> Markup:
    """Return an `<svg>` element; every text in it is escaped."""
    parts = [
        Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            f"drawing {css_class}".strip(),
            _short(drawing.width),
            _short(drawing.height),
            drawing.label,
        )
    ]
    parts += [_mark_to_svg(mark) for mark in drawing.marks]
    parts += [_hover_to_svg(hover, drawing) for hover in drawing.hovers]
    return Markup("").join([*parts, Markup("</svg>")])


def _mark_to_svg(mark: Mark) -> Markup:
    css = mark.colour if mark.series is None else f"{mark.colour} s{mark.series}"
    match mark:
        case Line():
            dash = " dashed" if mark.dashed else ""
            return Markup('<polyline class="line{} {}" stroke-width="{}" points="{}"/>').format(
                dash, css, _short(mark.width), _path(mark.points)
            )
        case Area():
            return Markup('<polygon class="area {}" points="{}"/>').format(css, _path(mark.points))
        case Dot():
            x, y = (_short(value) for value in mark.at)
            return Markup('<circle class="dot {}" cx="{}" cy="{}" r="{}"/>').format(
                css, x, y, _short(mark.radius)
            )
        case Text():
            x, y = (_short(value) for value in mark.at)
            return Markup(
                '<text class="{}" x="{}" y="{}" font-size="{}" text-anchor="{}">{}</text>'
            ).format(css, x, y, _short(mark.size), mark.anchor, mark.text)
    raise TypeError(f"no way to draw {mark!r}")


def _hover_to_svg(hover: Hover, drawing: Drawing) -> Markup:
    width = 16 + 6.8 * max(len(line) for line in hover.lines)
    height = 12 + 17 * len(hover.lines)
    left = hover.x + 10 if hover.x + 10 + width < drawing.width else hover.x - 10 - width
    left = max(2.0, left)
    lines = Markup("").join(
        Markup('<text x="{}" y="{}" font-size="12">{}</text>').format(
            _short(left + 8), _short(20 + 17 * index), line
        )
        for index, line in enumerate(hover.lines)
    )
    return Markup(
        '<g class="at"><rect class="hit" x="{}" y="0" width="{}" height="{}"/>'
        '<line class="hair" x1="{}" x2="{}" y1="0" y2="{}"/>'
        '<g class="tip"><rect x="{}" y="4" width="{}" height="{}" rx="4"/>{}</g></g>'
    ).format(
        _short(hover.left),
        _short(hover.right - hover.left),
        _short(drawing.height),
        _short(hover.x),
        _short(hover.x),
        _short(drawing.height),
        _short(left),
        _short(width),
        height,
        lines,
    )


def _path(points: Sequence[Point]) -> str:
    return " ".join(f"{_short(x)},{_short(y)}" for x, y in points)


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
