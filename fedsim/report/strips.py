"""One value per image, a row per setting: what each of them gave away, image by image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from fedsim.report.charts import LOOK, dot, inks
from fedsim.report.palette import colour_of

_ROW, _TOP, _FOOT, _MISSED = 34, 34, 44, 74
_SPREAD = 7
"""Pixels up and down over which dots of a row lie, so that equal ones are seen."""


@dataclass(frozen=True, kw_only=True)
class Strip:
    """One setting.

    Attributes:
        label: Its name.
        dots: (value, kind) per image; kinds are in the legend.
        missed: Images without a value.
    """

    label: str
    dots: Sequence[tuple[float, str]]
    missed: int


def draw(
    strips: Sequence[Strip],
    rules: Mapping[str, float],
    *,
    kinds: Sequence[str],
    titles: tuple[str, str],
    width: int,
    colours: Mapping[str, str],
) -> Figure:
    """Return a row of dots per setting, from top to bottom.

    Args:
        strips: At least one.
        rules: Values to compare with, by name; the lowest first.
        kinds: What dots stand for, in order of colours.
        titles: Of the values; of what is missed.
        width: In pixels; names stand beside the rows where there is room, else above them.
        colours: Of the page.
    """
    look = {kind: colours[colour_of(place)] for place, kind in enumerate(kinds)}
    names = 9 * max(len(strip.label) for strip in strips) * 0.72 + 12
    beside = width > 600 and names < 0.6 * width
    names = names if beside else 0
    row = _ROW if beside else _ROW + 18
    height = _TOP + row * len(strips) + _FOOT
    left = names + _MISSED
    with style.context([LOOK, inks(colours)], after_reset=True):
        figure = Figure(figsize=(width / 72, height / 72))
        marks = [dot(colour) for colour in look.values()]
        figure.legend(
            marks, list(look), loc="upper left", bbox_to_anchor=(0, 1 - 2 / height), ncols=4
        )
        area = figure.add_axes(
            (left / width, _FOOT / height, 1 - (left + 16) / width, row * len(strips) / height)
        )
        area.set_ylim(len(strips) - 0.5, -0.5)
        shift = ScaledTranslation(-10 / 72, 0, figure.dpi_scale_trans)
        aside = area.get_yaxis_transform() + shift
        for place, strip in enumerate(strips):
            middle = place if beside else place + 9 / row
            area.axhline(middle, color=colours["grid"], linewidth=1, zorder=0)
            for number, (value, kind) in enumerate(strip.dots):
                up = ((number * 0.618) % 1 - 0.5) * 2 * _SPREAD / row
                area.plot(
                    value, middle + up, "o", color=look[kind], markersize=5, alpha=0.75, zorder=3
                )
            if strip.missed:
                said = f"{strip.missed} \N{MULTIPLICATION SIGN}"
                area.text(0, middle, said, ha="right", va="center", transform=aside, fontsize=11)
            where = -left / (width - left - 16) if beside else -_MISSED / (width - left - 16)
            area.text(
                where,
                middle if beside else place - 14 / row,
                strip.label,
                va="center",
                fontsize=11.5,
                color=colours["ink"],
                bbox={"facecolor": colours["paper"], "edgecolor": "none", "pad": 1},
                transform=area.get_yaxis_transform(),
            )
        for place, (name, level) in enumerate(rules.items()):
            area.axvline(level, color=colours["muted"], linewidth=1, dashes=(5, 4), zorder=1)
            area.text(
                level,
                1,
                f" {name} ",
                fontsize=10,
                va="bottom",
                ha="left" if place else "right",
                transform=area.get_xaxis_transform(),
            )
        area.text(
            0,
            0,
            titles[1],
            ha="right",
            va="top",
            fontsize=10,
            transform=area.transAxes + ScaledTranslation(-10 / 72, -6 / 72, figure.dpi_scale_trans),
        )
        area.set_yticks([])
        area.set_xlabel(titles[0], loc="right")
        area.set_xlim(0, None)
    return figure
