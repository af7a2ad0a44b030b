"""Charts of reports, drawn with matplotlib's own objects: no pyplot, no state left behind."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation, Transform

from fedsim.report.curves import Curve, Panel, Spot
from fedsim.report.labels import Box, level_name, line_boxes, mark_at
from fedsim.report.palette import colour_of

MOST_DOTS = 40
"""Curves of more points have dots only where no line leads."""
SHAPES = "osD^vP*X"
"""Of points, by kind; after the last they begin again."""

LOOK = "fedsim.report.chart"
"""chart.mplstyle, beside this file."""
_HEIGHT = 250
"""Of points of two measures, in pixels."""
_APART = 11.0
"""Between the middles of marks that would hide one another, in pixels."""
_LEFT, _RIGHT, _FOOT, _GAP = 46, 14, 44, 46


def over_rounds(
    panels: Sequence[Panel], *, width: int, colours: Mapping[str, str], along: str = "round"
) -> Figure:
    """Return panels with points, from top to bottom over one axis of rounds.

    Args:
        panels: At least one.
        width: In pixels.
        colours: Of the page.
        along: What the axis counts, where it is not rounds.
    """
    legend = {
        curve.label: dot(colours[colour_of(curve.series)])
        for panel in panels
        for curve in panel.curves
        if curve.series is not None
    }
    heights = [panel.height for panel in panels]
    height = sum(heights) + _GAP * (len(panels) - 1)
    with style.context([LOOK, inks(colours)], after_reset=True):
        figure, grid = sheet(legend, width, height)
        grid |= {"height_ratios": heights, "hspace": _GAP * len(heights) / sum(heights)}
        areas = figure.subplots(len(panels), sharex=True, squeeze=False, gridspec_kw=grid)[:, 0]
        rounds = [at.round for panel in panels for at in panel.points]
        slack = 0.012 * (max(rounds) - min(rounds)) or 1.0
        areas[-1].set_xlim(min(rounds) - slack, max(rounds) + slack)
        room = width * (grid["right"] - grid["left"])
        for panel, area in zip(panels, areas, strict=True):
            _fill(area, panel, room, colours)
        areas[-1].xaxis.set_major_locator(MaxNLocator(max(2, width // 80), integer=True))
        areas[-1].set_xlabel(along, loc="right")
    return figure


def scatter(
    spots: Sequence[Spot], *, titles: tuple[str, str], width: int, colours: Mapping[str, str]
) -> Figure:
    """Return points of two measures, named by colour and shape; titles: across, upwards."""
    kinds = list(dict.fromkeys(spot.kind for spot in spots))
    shapes = {kind: SHAPES[place % len(SHAPES)] for place, kind in enumerate(kinds)}
    legend = {spot.name: dot(colours[colour_of(spot.series)]) for spot in spots}
    legend |= {kind: dot(colours["muted"], shape) for kind, shape in shapes.items()}
    with style.context([LOOK, inks(colours)], after_reset=True):
        figure, grid = sheet(legend, width, _HEIGHT)
        area = figure.subplots(gridspec_kw=grid)
        xs, ys = [spot.x for spot in spots], [0.0, *(spot.y for spot in spots)]
        side = 0.06 * (max(xs) - min(xs)) or 1.0
        area.set_xlim(min(xs) - side, max(xs) + side)
        area.set_ylim(min(ys), max(ys) + 0.08 * (max(ys) - min(ys)) or 1.0)
        room = width * (grid["right"] - grid["left"]), float(_HEIGHT)
        asides = _asides(area, spots, room)
        for spot, aside in zip(spots, asides, strict=True):
            area.plot(
                spot.x,
                spot.y,
                shapes[spot.kind],
                color=colours[colour_of(spot.series)],
                markersize=9,
                alpha=0.85,
                clip_on=False,
                transform=area.transData + _shift(area, aside, 0),
            )
        area.grid(axis="y", clip_on=False)
        area.set_xlabel(titles[0], loc="right")
        area.set_title(titles[1])
    return figure


def _asides(area: Axes, spots: Sequence[Spot], room: tuple[float, float]) -> list[float]:
    """Return how far to the right each mark is drawn, so that none hides another, in pixels."""
    (left, right), (bottom, top) = area.get_xlim(), area.get_ylim()
    groups: list[tuple[float, float, list[int]]] = []
    for place, spot in enumerate(spots):
        x = room[0] * (spot.x - left) / (right - left)
        y = room[1] * (spot.y - bottom) / (top - bottom)
        near = (g for g in groups if abs(g[0] - x) < _APART and abs(g[1] - y) < _APART)
        group = next(near, None)
        if group is None:
            groups.append((x, y, [place]))
        else:
            group[2].append(place)
    asides = [0.0] * len(spots)
    for _, _, places in groups:
        for at, place in enumerate(places):
            asides[place] = _APART * (at - (len(places) - 1) / 2)
    return asides


def svg(figure: Figure) -> bytes:
    """Return a figure as a file that holds no date."""
    file = io.BytesIO()
    with style.context(LOOK, after_reset=True):
        figure.savefig(file, format="svg", metadata={"Creator": None, "Date": None})
    return file.getvalue()


def png(figure: Figure) -> bytes:
    """Return a figure at twice its size, on white paper."""
    file = io.BytesIO()
    with style.context(LOOK, after_reset=True):
        figure.savefig(file, format="png", dpi=144, facecolor="white")
    return file.getvalue()


def inks(colours: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings that give texts and lines their colours."""
    texts = ("axes.labelcolor", "text.color", "xtick.labelcolor", "ytick.labelcolor")
    strong = {"axes.titlecolor": colours["ink"], "grid.color": colours["grid"]}
    return strong | dict.fromkeys(texts, colours["muted"])


def dot(colour: str, shape: str = "o") -> Line2D:
    """Return a mark for a legend."""
    return Line2D([], [], color=colour, marker=shape, markersize=8, linestyle="none")


def sheet(legend: Mapping[str, Line2D], width: int, height: int) -> tuple[Figure, dict[str, Any]]:
    """Return a figure with its legend, and the edges of so many pixels of room below it."""
    columns = max(1, (width - _LEFT) // (40 + 8 * max(map(len, legend), default=0)))
    top = 30 + 20 * -(-len(legend) // columns)
    whole = top + height + _FOOT
    figure = Figure(figsize=(width / 72, whole / 72))
    corner = (_LEFT / width, 1 - 4 / whole)
    marks, names = list(legend.values()), list(legend)
    figure.legend(marks, names, loc="upper left", bbox_to_anchor=corner, ncols=columns)
    edges = {"left": _LEFT / width, "right": 1 - _RIGHT / width}
    return figure, edges | {"top": 1 - top / whole, "bottom": _FOOT / whole}


def draw_rules(
    area: Axes,
    rules: Mapping[str, float],
    others: Sequence[Box],
    *,
    room: tuple[float, float],
    leftmost: bool,
    colours: Mapping[str, str],
) -> list[Box]:
    """Draw levels to compare with, and their names; return the room of the names, in pixels.

    A name that cannot but be over a line has paper behind it.

    Args:
        area: Its limits are set.
        rules: Levels in the units of the area, by name.
        others: The room of lines and marks, which names keep away from, in pixels of the area.
        room: Width and height of the area, in pixels.
        leftmost: Whether names are rather at the left end.
        colours: Of the page.
    """
    bottom, top = area.get_ylim()
    heights = {name: room[1] * (level - bottom) / (top - bottom) for name, level in rules.items()}
    full = [*others, *(Box(0, height - 1, room[0], height + 1) for height in heights.values())]
    names: list[Box] = []
    for name in sorted(heights, key=heights.__getitem__, reverse=True):
        area.axhline(rules[name], color=colours["muted"], linewidth=1, dashes=(5, 4), zorder=1)
        place = level_name(
            heights[name], name, names=names, others=full, room=room, leftmost=leftmost
        )
        names.append(place)
        end = 0 if place.left == 0 else 1
        area.text(
            end,
            bottom + (place.low + place.high) / 2 / room[1] * (top - bottom),
            name,
            ha="right" if end else "left",
            va="center",
            fontsize=11,
            transform=area.get_yaxis_transform() + _shift(area, 0 if end else 3, 0),
            bbox={"facecolor": colours["paper"], "alpha": 0.8, "edgecolor": "none", "pad": 0.5},
        )
    return names


def _fill(area: Axes, panel: Panel, width: float, colours: Mapping[str, str]) -> None:
    for place, curve in enumerate(panel.curves):
        name = "ink" if curve.series is None else colour_of(curve.series)
        _draw(area, curve, colours[name], aside=9 * place)
    values = [v for at in panel.points for v in (at.value, at.low, at.high) if v is not None]
    levels = [0.0, *values, *panel.rules.values()]
    area.set_ylim(min(levels), panel.most or 1.12 * max(levels) or 1.0)
    room = (width, float(panel.height))
    lines = [box for curve in panel.curves for box in _room_of(area, curve, room)]
    draw_rules(area, panel.rules, lines, room=room, leftmost=False, colours=colours)
    area.yaxis.set_major_locator(MaxNLocator(max(2, panel.height // 40), steps=[1, 2, 5, 10]))
    area.yaxis.set_major_formatter("{x:g}")
    area.grid(axis="y", clip_on=False)
    area.set_title(panel.title)


def _room_of(area: Axes, curve: Curve, room: tuple[float, float]) -> list[Box]:
    """Return the room that the line and the dots of a curve take, in pixels of the area."""
    rounds = np.array([at.round for at in curve.points], dtype=float)
    values = np.array([at.value for at in curve.points], dtype=float)
    (left, right), (bottom, top) = area.get_xlim(), area.get_ylim()
    xs, ys = (
        room[0] * (rounds - left) / (right - left),
        room[1] * (values - bottom) / (top - bottom),
    )
    boxes = line_boxes(xs, ys, room[0]) if len(xs) else []
    if len(xs) > MOST_DOTS:
        return boxes
    return boxes + [mark_at(x, y) for x, y in zip(xs, ys, strict=True) if np.isfinite(y)]


def _draw(area: Axes, curve: Curve, colour: str, aside: float) -> None:
    """Draw a line and its band, and at the foot an x, so far aside, where a value is missing."""
    rounds = np.array([at.round for at in curve.points])
    rows = [(at.value, at.low, at.high) for at in curve.points]
    value, low, high = np.array(rows, dtype=float).reshape(-1, 3).T
    there = np.isfinite(value)
    beside = np.pad(there, 1)
    alone = there & ~beside[:-2] & ~beside[2:]
    dots = there if len(rounds) <= MOST_DOTS else alone
    area.fill_between(rounds, low, high, color=colour, alpha=0.14, linewidth=0)
    if alone.any():  # a band of no width would not be seen
        area.vlines(rounds[alone], low[alone], high[alone], color=colour, alpha=0.5)
    area.plot(rounds, value, color=colour, clip_on=False)
    area.plot(rounds[dots], value[dots], "o", color=colour, clip_on=False)
    missing = rounds[~there]
    foot = area.get_xaxis_transform() + _shift(area, aside, 6)
    area.plot(missing, np.zeros(len(missing)), "x", color=colour, transform=foot)


def _shift(area: Axes, right: float, up: float) -> Transform:
    return ScaledTranslation(right / 72, up / 72, area.figure.dpi_scale_trans)
