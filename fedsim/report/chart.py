"""Charts: curves over rounds in panels that share their rounds, and points of two measures."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fedsim.report.drawing import NUM_COLOURS, Area, Dot, Drawing, Hover, Line, Mark, Point, Text

MOST_DOTS = 40
"""Curves of more points are drawn without dots."""
MOST_HOVERS = 200
"""More rounds than this share their columns."""

_LEFT, _RIGHT, _GAP = 46.0, 14.0, 46.0


@dataclass(frozen=True, kw_only=True)
class At:
    """A curve at one round.

    Attributes:
        round: The round.
        value: What the line shows.
        low: Lower end of the band; None for no band.
        high: Upper end.
    """

    round: int
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One series over rounds.

    Attributes:
        label: Its name.
        series: Its number, which is also its colour; None for ink.
        points: In order of rounds.
        failures: Rounds in which there should be a point and is none, marked at the foot.
    """

    label: str
    series: int | None
    points: Sequence[At]
    failures: Sequence[int] = ()

    @property
    def rounds(self) -> set[int]:
        """Rounds in which there is something to show."""
        return {at.round for at in self.points} | set(self.failures)

    @property
    def colour(self) -> str:
        """A key of the drawing's colours."""
        return "ink" if self.series is None else f"c{self.series % NUM_COLOURS}"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Curves with one scale.

    Attributes:
        title: What is measured.
        unit: Written after values.
        curves: What is shown.
        rules: Levels to compare with, by name.
        height: In pixels.
        digits: Of values in hover texts.
        most: The scale ends here; None to end it above the highest value.
    """

    title: str
    curves: Sequence[Curve]
    unit: str = ""
    rules: dict[str, float] = field(default_factory=dict)
    height: float = 110.0
    digits: int = 2
    most: float | None = None

    def says(self, value: float) -> str:
        """Return a value as text."""
        return f"{value:.{self.digits}f}{self.unit}"


@dataclass(frozen=True)
class Scale:
    """A measure laid along a stretch of pixels, with round numbers to mark it by."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the place of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, most: int) -> list[float]:
    """Return round numbers from at or below `low` to at or above `high`, about `most` of them."""
    span = high - low or abs(high) or 1.0
    rough = span / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in (1, 2, 2.5, 5, 10) if power * nice >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, max(last, first + 1) + 1)]


def over_rounds(
    panels: Sequence[Panel], *, width: float, label: str, legend: bool = False
) -> Drawing:
    """Return panels above each other over one axis of rounds.

    Args:
        panels: From top to bottom; those with nothing to show are left out.
        width: In pixels.
        label: What the chart shows.
        legend: Whether to name the curves in the drawing; a page does so beside it.
    """
    panels = [panel for panel in panels if any(curve.rounds for curve in panel.curves)]
    rounds = sorted(
        {number for panel in panels for curve in panel.curves for number in curve.rounds}
    )
    across = _round_scale(rounds, width)
    marks = _legend(panels) if legend else []
    top = 48.0 if legend else 22.0
    for panel in panels:
        marks += _panel(panel, across, top)
        top += panel.height + _GAP
    foot = top - _GAP
    for number in _round_ticks(rounds, width):
        marks.append(_text((across(number), foot + 18), f"{number}", "middle"))
    marks.append(_text((width - _RIGHT, foot + 34), "round", "end"))
    return Drawing(
        width=width,
        height=foot + 40,
        label=label,
        marks=marks,
        hovers=_hovers(panels, rounds, across, width),
    )


def _legend(panels: Sequence[Panel]) -> list[Mark]:
    names = {
        curve.label: curve.colour
        for panel in panels
        for curve in panel.curves
        if curve.series is not None and curve.rounds
    }
    marks: list[Mark] = []
    left = _LEFT
    for name, colour in names.items():
        marks += [Dot(at=(left + 5, 14), radius=4, colour=colour), _text((left + 14, 18), name)]
        left += 40 + 6.5 * len(name)
    return marks


def _round_scale(rounds: Sequence[int], width: float) -> Scale:
    low, high = (rounds[0], rounds[-1]) if rounds else (0, 1)
    if low == high:
        low, high = low - 1, high + 1
    return Scale(low, high, _LEFT + 8, width - _RIGHT - 8)


def _round_ticks(rounds: Sequence[int], width: float) -> list[int]:
    if not rounds:
        return []
    found = {round(tick) for tick in ticks(rounds[0], rounds[-1], max(2, round(width / 90)))}
    return sorted(tick for tick in found if rounds[0] <= tick <= rounds[-1])


def _panel(panel: Panel, across: Scale, top: float) -> list[Mark]:
    down = _value_scale(panel, top)
    marks: list[Mark] = []
    for tick in ticks(down.low, down.high, max(3, round(panel.height / 40))):
        if not down.low <= tick <= down.high:
            continue
        ends = [(across.start - 8, down(tick)), (across.end + 8, down(tick))]
        marks.append(Line(points=ends, colour="grid"))
        marks.append(_text((across.start - 14, down(tick) + 4), f"{tick:g}", "end"))
    marks.append(_text((across.start - 8, top - 9), panel.title, colour="ink"))
    for name, level in panel.rules.items():
        ends = [(across.start - 8, down(level)), (across.end + 8, down(level))]
        marks.append(Line(points=ends, colour="muted", dashed=True))
        marks.append(_text((across.end + 8, down(level) - 5), name, "end", size=11))
    for place, curve in enumerate(panel.curves):
        for part in _unbroken(curve):
            marks += _curve(curve, part, across, down)
        for number in curve.failures:
            at = (across(number) + 9 * place, down.start - 4)
            marks.append(
                Text(at=at, text="x", anchor="middle", colour=curve.colour, series=curve.series)
            )
    return marks


def _unbroken(curve: Curve) -> list[list[At]]:
    """Return the stretches of a curve between the rounds in which it has no point but should."""
    stretches: dict[int, list[At]] = {}
    for at in curve.points:
        place = sum(number < at.round for number in curve.failures)
        stretches.setdefault(place, []).append(at)
    return list(stretches.values())


def _value_scale(panel: Panel, top: float) -> Scale:
    values = [value for curve in panel.curves for at in curve.points for value in _ends(at)]
    values += [0.0, *panel.rules.values()]
    low, high = min(values), panel.most or max(values) * 1.06
    return Scale(low, max(high, low + 1e-9), top + panel.height, top)


def _ends(at: At) -> list[float]:
    return [value for value in (at.value, at.low, at.high) if value is not None]


def _curve(curve: Curve, points: Sequence[At], across: Scale, down: Scale) -> list[Mark]:
    colour, series = curve.colour, curve.series
    line = [(across(at.round), down(at.value)) for at in points]
    upper = [(across(at.round), down(at.high)) for at in points if at.high is not None]
    lower = [(across(at.round), down(at.low)) for at in points if at.low is not None]
    marks: list[Mark] = []
    if len(line) > 1:
        if upper and lower:
            marks.append(Area(points=[*upper, *reversed(lower)], colour=colour, series=series))
        marks.append(Line(points=line, width=2, colour=colour, series=series))
    elif upper and lower:  # a band of no width would not be seen
        marks.append(Line(points=[*upper, *lower], width=2, colour=colour, series=series))
    if len(curve.points) <= MOST_DOTS:
        marks += [Dot(at=point, colour=colour, series=series) for point in line]
    return marks


def _hovers(
    panels: Sequence[Panel], rounds: Sequence[int], across: Scale, width: float
) -> list[Hover]:
    shown = rounds[:: max(1, math.ceil(len(rounds) / MOST_HOVERS))]
    places = [across(number) for number in shown]
    edges = [0.0, *((a + b) / 2 for a, b in itertools.pairwise(places)), width]
    return [
        Hover(
            left=edges[index],
            right=edges[index + 1],
            x=places[index],
            lines=[f"round {number}", *_said(panels, number)],
        )
        for index, number in enumerate(shown)
    ]


def _said(panels: Sequence[Panel], number: int) -> Iterable[str]:
    for panel in panels:
        for curve in panel.curves:
            for at in curve.points:
                if at.round == number:
                    ends = "" if at.low is None else f" ({at.low:.1f} to {at.high:.1f})"
                    yield f"{curve.label} {panel.says(at.value)}{ends}"
            if number in curve.failures:
                yield f"{curve.label} failed"


@dataclass(frozen=True, kw_only=True)
class Spot:
    """A point of two measures.

    Attributes:
        x: First measure.
        y: Second measure.
        name: Written beside it.
        series: Its colour.
    """

    x: float
    y: float
    name: str
    series: int


def scatter(
    spots: Sequence[Spot], *, x_title: str, y_title: str, width: float, height: float, label: str
) -> Drawing:
    """Return points of two measures, named."""
    x_ticks = ticks(min(s.x for s in spots), max(s.x for s in spots), max(2, round(width / 110)))
    y_ticks = ticks(min(0.0, *(s.y for s in spots)), max(s.y for s in spots), round(height / 45))
    across = Scale(x_ticks[0], x_ticks[-1], _LEFT + 8, width - _RIGHT - 24)
    down = Scale(y_ticks[0], y_ticks[-1], height - 44, 26)
    marks: list[Mark] = [_text((_LEFT, 13), y_title, colour="ink")]
    for tick in y_ticks:
        ends = [(_LEFT, down(tick)), (width - _RIGHT, down(tick))]
        marks += [
            Line(points=ends, colour="grid"),
            _text((_LEFT - 6, down(tick) + 4), f"{tick:g}", "end"),
        ]
    marks += [_text((across(tick), height - 24), f"{tick:g}", "middle") for tick in x_ticks]
    marks.append(_text((width - _RIGHT, height - 6), x_title, "end", colour="ink"))
    taken: list[Point] = []
    for spot in sorted(spots, key=lambda spot: -spot.y):
        at, colour = (across(spot.x), down(spot.y)), f"c{spot.series % NUM_COLOURS}"
        marks.append(Dot(at=at, radius=5, colour=colour, series=spot.series))
        beside = _free((at[0] + 9, at[1] + 4), taken)
        taken.append(beside)
        marks.append(Text(at=beside, text=spot.name, colour="ink", series=spot.series))
    return Drawing(width=width, height=height, label=label, marks=marks)


def _free(at: Point, taken: Sequence[Point]) -> Point:
    """Return a place for a name at or below `at`, clear of those already taken from the top."""
    x, y = at
    for other_x, other_y in taken:
        if abs(other_x - x) < 60 and y < other_y + 13:
            y = other_y + 13
    return x, y


def _text(
    at: Point, text: str, anchor: str = "start", *, colour: str = "muted", size: float = 12.0
) -> Text:
    return Text(at=at, text=text, anchor=anchor, colour=colour, size=size)
