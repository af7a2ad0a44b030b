"""What charts show: values over rounds, and points of two measures."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class At:
    """A curve at one round.

    Attributes:
        round: The round, or what else the axis counts.
        value: What the line shows; None where there should be a value and is none.
        low: Lower end of the band; None for no band.
        high: Upper end.
    """

    round: int
    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One series over rounds.

    Attributes:
        label: Its name.
        series: Its number, which is also its colour; None for ink, and no place in the legend.
        points: In order of rounds.
    """

    label: str
    series: int | None = None
    points: Sequence[At]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Curves with one scale.

    Attributes:
        title: What is measured.
        curves: What is shown.
        height: In pixels.
        rules: Levels to compare with, by name.
        most: The scale ends here; None to end it above the highest value.
    """

    title: str
    curves: Sequence[Curve]
    height: int
    rules: dict[str, float] = field(default_factory=dict)
    most: float | None = None

    @property
    def points(self) -> list[At]:
        """Of all curves."""
        return [at for curve in self.curves for at in curve.points]


@dataclass(frozen=True, kw_only=True)
class Spot:
    """A point of two measures.

    Attributes:
        x: First measure.
        y: Second measure.
        series: Number of what its colour stands for.
        name: What its colour stands for.
        kind: What its shape stands for.
    """

    x: float
    y: float
    series: int
    name: str
    kind: str
