"""Utility against leakage: one mark per cell of a sweep, and the frontier of the best of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fedsim.report.charts import LOOK, SHAPES, dot, inks, sheet
from fedsim.report.palette import NUM_SERIES, colour_of

MOST_DB = 60.0
"""Leakage above this is drawn here: an image is long recognised, and the rest needs the room."""

_HEIGHT = 420


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One cell.

    Attributes:
        name: Written beside it.
        family: What its colour and shape stand for.
        x: Utility, and the ends of its interval.
        y: Leakage, and the ends of its interval.
    """

    name: str
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
) -> Figure:
    """Return marks with the whiskers of their intervals, and the frontier below them.

    Args:
        marks: One per cell.
        frontier: In the units of the marks.
        rules: Levels of leakage to compare with, by name.
        titles: Across, upwards.
        width: In pixels.
        colours: Of the page.
    """
    families = list(dict.fromkeys(mark.family for mark in marks))
    looks = {
        # after the last colour the shapes move on by one, so that no two families are alike
        family: (colours[colour_of(place)], SHAPES[(place + place // NUM_SERIES) % len(SHAPES)])
        for place, family in enumerate(families)
    }
    legend = {family: dot(*look) for family, look in looks.items()}
    with style.context([LOOK, inks(colours)], after_reset=True):
        figure, grid = sheet(legend, width, _HEIGHT)
        area = figure.subplots(gridspec_kw=grid)
        _draw_frontier(area, frontier, colours)
        for name, level in rules.items():
            area.axhline(level, color=colours["muted"], linewidth=1, dashes=(5, 4), zorder=1)
            area.text(
                1,
                level,
                name,
                ha="right",
                va="bottom",
                fontsize=11,
                transform=area.get_yaxis_transform(),
            )
        for mark in marks:
            _draw_mark(area, mark, *looks[mark.family], colours)
        area.grid(axis="y", clip_on=False)
        area.set_xlabel(titles[0], loc="right")
        area.set_title(titles[1])
        area.margins(x=0.05, y=0.08)
    return figure


def _draw_frontier(area: Axes, frontier: Frontier, colours: Mapping[str, str]) -> None:
    area.fill_between(
        frontier.x,
        frontier.low.clip(max=MOST_DB),
        frontier.high.clip(max=MOST_DB),
        color=colours["muted"],
        alpha=0.16,
        linewidth=0,
        step="pre",
        zorder=0,
    )
    area.step(
        frontier.x,
        frontier.y.clip(max=MOST_DB),
        where="pre",
        color=colours["muted"],
        linewidth=1.5,
        zorder=1,
    )


def _draw_mark(area: Axes, mark: Mark, colour: str, shape: str, colours: Mapping[str, str]) -> None:
    (x, left, right) = mark.x
    y, low, high = (min(value, MOST_DB) for value in mark.y)
    area.plot([left, right], [y, y], color=colour, alpha=0.45, linewidth=1.5, zorder=2)
    area.plot([x, x], [low, high], color=colour, alpha=0.45, linewidth=1.5, zorder=2)
    area.plot(x, y, shape, color=colour, markersize=8, zorder=3)
    area.annotate(
        mark.name,
        (x, y),
        xytext=(6, 5),
        textcoords="offset points",
        fontsize=10.5,
        color=colours["ink"],
        zorder=4,
    )
