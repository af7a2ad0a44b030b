"""Drawings as PNG, with the font that Pillow brings along: equal on every machine."""

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from fedsim.report.drawing import COLOURS, Area, Dot, Drawing, Line, Mark, Point, Text

PAPER = "#ffffff"

_SCALE = 2
_FINER = 2  # drawn finer and reduced: Pillow's own strokes have hard edges


def to_png(drawing: Drawing) -> Image.Image:
    """Return the drawing at twice its size, on white paper."""
    scale = _SCALE * _FINER
    size = (round(drawing.width * scale), round(drawing.height * scale))
    sheet = Image.new("RGB", size, PAPER)
    for mark in drawing.marks:
        if isinstance(mark, Area):
            _shade(sheet, _scaled(mark.points, scale), COLOURS[mark.colour])
        else:
            _draw(ImageDraw.Draw(sheet), mark, scale)
    return sheet.reduce(_FINER)


def _shade(sheet: Image.Image, points: Sequence[Point], colour: str) -> None:
    """Lay a thin veil over a polygon."""
    left, top = (math.floor(min(values)) for values in zip(*points, strict=True))
    right, bottom = (math.ceil(max(values)) for values in zip(*points, strict=True))
    veil = Image.new("L", (right - left + 1, bottom - top + 1), 0)
    ImageDraw.Draw(veil).polygon([(x - left, y - top) for x, y in points], fill=36)
    sheet.paste(colour, (left, top), veil)


def _draw(pen: ImageDraw.ImageDraw, mark: Mark, scale: int) -> None:
    colour = COLOURS[mark.colour]
    match mark:
        case Line():
            strokes = _dashes(mark.points) if mark.dashed else [mark.points]
            for stroke in strokes:
                width = max(1, round(mark.width * scale))
                pen.line(_scaled(stroke, scale), fill=colour, width=width, joint="curve")
        case Dot():
            ((x, y),) = _scaled([mark.at], scale)
            radius = mark.radius * scale
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        case Text():
            ((x, y),) = _scaled([mark.at], scale)
            anchor = {"start": "ls", "middle": "ms", "end": "rs"}[mark.anchor]
            pen.text((x, y), plain(mark.text), colour, font(mark.size * scale), anchor=anchor)


def _scaled(points: Sequence[Point], scale: int) -> list[Point]:
    return [(x * scale, y * scale) for x, y in points]


def _dashes(points: Sequence[Point], on: float = 5.0, off: float = 4.0) -> Iterator[list[Point]]:
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        length = math.hypot(x1 - x0, y1 - y0)
        start = 0.0
        while start < length:
            ends = (start / length, min(start + on, length) / length)
            yield [(x0 + (x1 - x0) * end, y0 + (y1 - y0) * end) for end in ends]
            start += on + off


@cache
def font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font of all pictures."""
    return ImageFont.load_default(size)


def plain(text: str) -> str:
    """Return `text` in the characters that this font has."""
    return text.replace("\u00a0", " ").encode("ascii", "replace").decode()
