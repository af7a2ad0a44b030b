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
from fedsim.report.palette import colour_of

MOST_DOTS = 40
"""Curves of more points have dots only where no line leads."""
SHAPES = "osD^vP*X"
"""Of points, by kind; after the last they begin again."""

LOOK = "fedsim.report.chart"
"""chart.mplstyle, beside this file."""
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
        for panel, area in zip(panels, areas, strict=True):
            _fill(area, panel, colours)
        rounds = [at.round for panel in panels for at in panel.points]
        slack = 0.012 * (max(rounds) - min(rounds)) or 1.0
        areas[-1].set_xlim(min(rounds) - slack, max(rounds) + slack)
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
        figure, grid = sheet(legend, width, 250)
        area = figure.subplots(gridspec_kw=grid)
        for spot in spots:
            colour = colours[colour_of(spot.series)]
            area.plot(spot.x, spot.y, shapes[spot.kind], color=colour, markersize=9, alpha=0.85)
        area.set_ylim(min(0.0, *(spot.y for spot in spots)), None)
        area.grid(axis="y", clip_on=False)
        area.set_xlabel(titles[0], loc="right")
        area.set_title(titles[1])
    return figure


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


def _fill(area: Axes, panel: Panel, colours: Mapping[str, str]) -> None:
    for name, level in panel.rules.items():
        area.axhline(level, color=colours["muted"], linewidth=1, dashes=(5, 4))
        above = area.get_yaxis_transform() + _shift(area, 0, 5)
        area.text(1, level, name, ha="right", fontsize=11, transform=above)
    for place, curve in enumerate(panel.curves):
        name = "ink" if curve.series is None else colour_of(curve.series)
        _draw(area, curve, colours[name], aside=9 * place)
    values = [v for at in panel.points for v in (at.value, at.low, at.high) if v is not None]
    levels = [0.0, *values, *panel.rules.values()]
    area.set_ylim(min(levels), panel.most or 1.12 * max(levels) or 1.0)
    area.yaxis.set_major_locator(MaxNLocator(max(2, panel.height // 40), steps=[1, 2, 5, 10]))
    area.yaxis.set_major_formatter("{x:g}")
    area.grid(axis="y", clip_on=False)
    area.set_title(panel.title)


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
