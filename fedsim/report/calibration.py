"""How often attacks are right about the features of which they say how sure they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from fedsim.files import Record
from fedsim.quality import examples, modality_of
from fedsim.report.charts import LOOK, dot, inks, sheet
from fedsim.report.palette import colour_of

NUM_BINS = 10
"""Of equal width, from not sure at all to certain."""
WIDTH = 520
"""Of the chart, where there is room, in pixels."""
_HEIGHT = 260
"""Of the axis, in pixels."""


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Features of which an attack is about equally sure.

    Attributes:
        low: The least that it can be.
        high: The most.
        sure: How sure it is, on average.
        right: Share of them that are right.
        number: How many there are.
    """

    low: float
    high: float
    sure: float
    right: float
    number: int


def bins_of(scores: Sequence[Record], attack: str) -> list[Bin]:
    """Return what an attack said of all the features it guessed, in bins; empty ones left out."""
    found: list[list[tuple[float, bool]]] = [[] for _ in range(NUM_BINS)]
    for score in scores:
        if score["attack"] != attack or modality_of(score) != "table":
            continue
        for row in examples(score):
            for place, sure in enumerate(row["confidence"]):
                found[min(int(sure * NUM_BINS), NUM_BINS - 1)].append(
                    (sure, place not in row["wrong"])
                )
    return [
        Bin(
            low=place / NUM_BINS,
            high=(place + 1) / NUM_BINS,
            sure=sum(sure for sure, _ in said) / len(said),
            right=sum(right for _, right in said) / len(said),
            number=len(said),
        )
        for place, said in enumerate(found)
        if said
    ]


def draw(
    by_attack: Mapping[str, tuple[int, Sequence[Bin]]], *, width: int, colours: Mapping[str, str]
) -> Figure:
    """Return share right against confidence, and the line on which both are equal.

    Args:
        by_attack: Number of its colour and bins of each attack, by its name.
        width: In pixels.
        colours: Of the page.
    """
    legend = {name: dot(colours[colour_of(series)]) for name, (series, _) in by_attack.items()}
    with style.context([LOOK, inks(colours)], after_reset=True):
        figure, grid = sheet(legend, width, _HEIGHT)
        area = figure.subplots(gridspec_kw=grid)
        area.plot([0, 100], [0, 100], color=colours["muted"], linewidth=1, dashes=(5, 4), zorder=1)
        for series, bins in by_attack.values():
            colour = colours[colour_of(series)]
            xs, ys = [100 * one.sure for one in bins], [100 * one.right for one in bins]
            area.plot(xs, ys, color=colour, alpha=0.6, clip_on=False)
            area.plot(xs, ys, "o", color=colour, clip_on=False)
        area.set_xlim(0, 100)
        area.set_ylim(0, 103)
        area.xaxis.set_major_locator(MultipleLocator(20))
        area.yaxis.set_major_locator(MultipleLocator(20))
        area.grid(axis="y", clip_on=False)
        area.set_xlabel("confidence of the attack, %", loc="right")
        area.set_title("features right, %")
    return figure
