"""Utility against leakage: one mark per cell of a sweep, and the frontier of the best of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator
from numpy.typing import NDArray

from fedsim.report.charts import LOOK, SHAPES, dot, draw_rules, inks, sheet
from fedsim.report.labels import Box, line_boxes, mark_at, places_of, rows_of
from fedsim.report.palette import NUM_SERIES, colour_of

MOST_DB = 60.0
"""Where the axis of PSNR ends: an image is long recognised, and the rest needs the room.

Marks of this and more stand in a strip above, in rows, which mean nothing.
"""

_HEIGHT = 420
"""Of the axis, in pixels."""
_ROW = 22
"""Of a row of the strip."""
_MARGIN = 0.06
"""Free room beside the marks, as a part of the range of the axis."""
_NAMES = 0.1
"""More of it on the right, for names: the best marks are there."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One cell.

    Attributes:
        name: Written beside it.
        short: Written where there is no room for the name.
        family: What its colour and shape stand for.
        x: Utility, and the ends of its interval.
        y: Leakage, and the ends of its interval.
    """

    name: str
    short: str
    family: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Frontier:
    """The least leakage of any cell that is at least so useful.

    Attributes:
        x: Utility, rising, shape (N,).
        y: Least leakage, shape (N,).
        low: Lower end of its band, shape (N,); equal to `y` where there is nothing to resample.
        high: Upper end.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def frontier_of(
    utilities: NDArray[np.float64], leakages: NDArray[np.float64], confidence: float
) -> Frontier:
    """Return the frontier of cells, with the band that resampling gives it.

    Shapes:
        utilities, leakages: (1 + R, cells); the first row is what was measured, the others are
            resamples of it
    """
    grid = np.unique(
        np.concatenate([utilities[0], np.linspace(utilities[0].min(), utilities[0].max(), 200)])
    )
    levels = np.stack([_least(grid, *one) for one in zip(utilities, leakages, strict=True)])
    tail = 50 * (1 - confidence)
    low, high = np.percentile(levels, [tail, 100 - tail], axis=0)
    return Frontier(
        x=grid, y=levels[0], low=np.minimum(low, levels[0]), high=np.maximum(high, levels[0])
    )


def _least(
    grid: NDArray[np.float64], utility: NDArray[np.float64], leakage: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the least leakage at each utility; beyond the most useful cell, that cell's."""
    enough = utility[None, :] >= np.minimum(grid, utility.max())[:, None] - 1e-9
    least: NDArray[np.float64] = np.where(enough, leakage[None, :], np.inf).min(axis=1)
    return least


def draw(
    marks: Sequence[Mark],
    frontier: Frontier,
    rules: Mapping[str, float],
    *,
    titles: tuple[str, str],
    width: int,
    colours: Mapping[str, str],
    most: float = MOST_DB,
) -> Figure:
    """Return marks with the whiskers of their intervals, and the frontier below them.

    Args:
        marks: One per cell.
        frontier: In the units of the marks.
        rules: Levels of leakage to compare with, by name.
        titles: Across, upwards.
        width: In pixels.
        colours: Of the page.
        most: Where the axis ends, in dB; infinite for what is no PSNR.
    """
    families = list(dict.fromkeys(mark.family for mark in marks))
    looks = {
        # after the last colour the shapes move on by one, so that no two families are alike
        family: (colours[colour_of(place)], SHAPES[(place + place // NUM_SERIES) % len(SHAPES)])
        for place, family in enumerate(families)
    }
    legend = {family: dot(*look) for family, look in looks.items()}
    across = _limits([end for mark in marks for end in mark.x])
    across = across[0], across[1] + _NAMES * (across[1] - across[0])
    upwards = _limits([0.0, *(min(end, most) for mark in marks for end in mark.y)])
    beyond = [mark for mark in marks if mark.y[0] >= most]
    if beyond:
        upwards = (upwards[0], most)
    with style.context([LOOK, inks(colours)], after_reset=True):
        _, edges = sheet(legend, width, _HEIGHT)
        room = width * (edges["right"] - edges["left"])
        unit = (across[1] - across[0]) / room, (upwards[1] - upwards[0]) / _HEIGHT  # of a pixel
        columns = [(mark.x[0] - across[0]) / unit[0] for mark in beyond]
        rows = rows_of(columns, [mark.name for mark in beyond], room)
        strip = _ROW * (1.5 + max(rows)) if rows else 0.0

        figure, grid = sheet(legend, width, _HEIGHT + round(strip))
        area = figure.subplots(gridspec_kw=grid)
        area.set_xlim(*across)
        area.set_ylim(upwards[0], upwards[1] + strip * unit[1])
        area.yaxis.set_major_locator(FixedLocator(list(np.arange(0, upwards[1] + 1, 10))))
        _draw_frontier(area, frontier, most, colours)
        if beyond:
            area.axhspan(most, area.get_ylim()[1], color=colours["grid"], alpha=0.35, zorder=0)
            title = f"{most:g} dB or more"
            area.text(0.005, most, title, va="bottom", transform=area.get_yaxis_transform())
        heights = {id(mark): mark.y[0] for mark in marks}
        for mark, row in zip(beyond, rows, strict=True):
            heights[id(mark)] = most + _ROW * (row + 0.6) * unit[1]
        for mark in marks:
            _draw_mark(area, mark, heights[id(mark)], most, *looks[mark.family])
        drawn = _room_of(area, marks, heights, frontier, most, unit, room)
        whole = room, _HEIGHT + strip
        taken = draw_rules(area, rules, drawn, room=whole, leftmost=True, colours=colours)
        _draw_names(area, marks, [heights[id(mark)] for mark in marks], unit, room, taken, colours)
        area.grid(axis="y", clip_on=False)
        area.set_xlabel(titles[0], loc="right")
        area.set_title(titles[1])
    return figure


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis that has all values, and some room."""
    low, high = min(values), max(values)
    margin = _MARGIN * (high - low) or 1.0
    return low - margin, high + margin


def _draw_frontier(area: Axes, frontier: Frontier, most: float, colours: Mapping[str, str]) -> None:
    area.fill_between(
        frontier.x,
        frontier.low.clip(max=most),
        frontier.high.clip(max=most),
        color=colours["muted"],
        alpha=0.16,
        linewidth=0,
        step="pre",
        zorder=0,
    )
    area.step(
        frontier.x,
        frontier.y.clip(max=most),
        where="pre",
        color=colours["muted"],
        linewidth=1.5,
        zorder=1,
    )


def _room_of(
    area: Axes,
    marks: Sequence[Mark],
    heights: Mapping[int, float],
    frontier: Frontier,
    most: float,
    unit: tuple[float, float],
    room: float,
) -> list[Box]:
    """Return the room that marks and the frontier take, in pixels of the area."""
    left, bottom = area.get_xlim()[0], area.get_ylim()[0]
    columns = (frontier.x - left) / unit[0]
    lines = [
        box
        for levels in (frontier.low, frontier.y, frontier.high)
        for box in line_boxes(columns, (levels.clip(max=most) - bottom) / unit[1], room)
    ]
    return lines + [
        mark_at((mark.x[0] - left) / unit[0], (heights[id(mark)] - bottom) / unit[1])
        for mark in marks
    ]


def _draw_mark(area: Axes, mark: Mark, height: float, most: float, colour: str, shape: str) -> None:
    """Draw a mark, so high, with its whiskers; one in the strip has none in there."""
    x, left, right = mark.x
    _, low, high = mark.y
    area.plot([left, right], [height] * 2, color=colour, alpha=0.45, linewidth=1.5, zorder=2)
    ends = [low, min(high, max(height, most))] if low < most else []
    area.plot([x] * len(ends), ends, color=colour, alpha=0.45, linewidth=1.5, zorder=2)
    area.plot(x, height, shape, color=colour, markersize=8, zorder=3)


def _draw_names(
    area: Axes,
    marks: Sequence[Mark],
    heights: Sequence[float],
    unit: tuple[float, float],
    room: float,
    taken: Sequence[Box],
    colours: Mapping[str, str],
) -> None:
    """Write each mark's name where it meets nothing."""
    left, bottom = area.get_xlim()[0], area.get_ylim()[0]
    points = [
        ((mark.x[0] - left) / unit[0], (height - bottom) / unit[1])
        for mark, height in zip(marks, heights, strict=True)
    ]
    places = places_of(points, [(mark.name, mark.short) for mark in marks], room, taken)
    for mark, height, point, (name, place) in zip(marks, heights, points, places, strict=True):
        leftwards = place.right < point[0]
        end = place.right if leftwards else place.left
        area.annotate(
            name,
            (mark.x[0], height),
            xytext=(end - point[0], (place.low + place.high) / 2 - point[1]),
            textcoords="offset points",
            ha="right" if leftwards else "left",
            va="center",
            fontsize=10.5,
            color=colours["ink"],
            zorder=4,
        )
