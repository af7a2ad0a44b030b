"""Where the names of marks go, so that none is drawn over a mark or over another name.

All in pixels, x to the right and y upwards. Widths of texts are estimates: what is laid out here is
text that the reader's own font draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_REACH = 6.0
"""Half of a mark's side."""
_LINE = 13.0
"""Height of a name."""
_RAISED = 1.0
"""How far above the middle of its mark a name begins: whiskers run through the middle."""
_LETTER = 5.9
"""Mean width of a letter."""


@dataclass(frozen=True)
class Box:
    """A rectangle."""

    left: float
    low: float
    right: float
    high: float

    def meets(self, other: "Box") -> bool:
        """Whether the two have a point in common."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.low < other.high
            and other.low < self.high
        )


def width_of(name: str) -> float:
    """Return about how wide a name is."""
    return _LETTER * len(name)


def mark_at(x: float, y: float) -> Box:
    """Return the room that a mark takes."""
    return Box(x - _REACH, y - _REACH, x + _REACH, y + _REACH)


def beside(x: float, y: float, name: str, room: float) -> Box:
    """Return the room of a name right of a mark, or left of it if it would reach past `room`."""
    wide, away = width_of(name), _REACH + 4
    left = x + away if x + away + wide <= room else x - away - wide
    return Box(left, y + _RAISED, left + wide, y + _RAISED + _LINE)


def rows_of(xs: Sequence[float], names: Sequence[str], room: float) -> list[int]:
    """Return a row for each mark, from 0: with their names, marks of one row do not meet.

    Each takes the lowest row that has room for it, from left to right.
    """
    rows = [0] * len(xs)
    taken: list[list[Box]] = []
    for index in sorted(range(len(xs)), key=lambda index: xs[index]):
        own = (mark_at(xs[index], 0), beside(xs[index], 0, names[index], room))
        while rows[index] < len(taken) and _meet(own, taken[rows[index]]):
            rows[index] += 1
        if rows[index] == len(taken):
            taken.append([])
        taken[rows[index]] += own
    return rows


def places_of(
    points: Sequence[tuple[float, float]],
    names: Sequence[tuple[str, ...]],
    room: float,
    taken: Sequence[Box],
) -> list[tuple[str, Box]]:
    """Return a name for each point, and a place near it where it meets nothing.

    Args:
        points: Of marks, (x, y).
        names: For each, from the one wished for to shorter ones that take less room; if none has
            room, the last is written over what is there.
        room: How far to the right a name may reach.
        taken: Where no name may be, besides the marks.
    """
    full = [*taken, *(mark_at(x, y) for x, y in points)]
    places: list[tuple[str, Box]] = []
    for (x, y), wishes in zip(points, names, strict=True):
        tried = [(name, place) for name in wishes for place in _near(x, y, name, room)]
        last = (wishes[-1], beside(x, y, wishes[-1], room))
        chosen = next((one for one in tried if not _meet([one[1]], full)), last)
        places.append(chosen)
        full.append(chosen[1])
    return places


def level_name(
    level: float,
    name: str,
    *,
    names: Sequence[Box],
    others: Sequence[Box],
    room: tuple[float, float],
    leftmost: bool,
) -> Box:
    """Return a place for the name of a level: near its line, at one end or the other.

    Args:
        level: How high the level is.
        name: What is written.
        names: Where other names of levels are: these it does not meet, if there is any room.
        others: What else it should not meet, where it has a choice.
        room: Width and height of the drawing.
        leftmost: Whether the left end is tried before the right one.
    """
    wide, above = width_of(name) + 8, level + 2
    ends = (0.0, room[0] - wide) if leftmost else (room[0] - wide, 0.0)
    lows = [above + step for step in (0, -_LINE - 4, _LINE, -2 * _LINE - 4, 2 * _LINE)]
    tried = [
        Box(left, low, left + wide, low + _LINE)
        for left in ends
        for low in lows
        if low == above or 0 <= low <= room[1] - _LINE
    ]
    free = [box for box in tried if not _meet([box], names)]
    best = (box for box in free if not _meet([box], others))
    return next(best, (free or tried)[0])


def line_boxes(xs: NDArray[np.float64], ys: NDArray[np.float64], room: float) -> list[Box]:
    """Return the room that a line takes, piece by piece; it has gaps where a y is no number."""
    grid = np.linspace(0, room, max(2, round(room / 4)))
    heights = np.interp(grid, xs, ys, left=np.nan, right=np.nan)
    pieces = zip(grid[:-1], grid[1:], heights[:-1], heights[1:], strict=True)
    return [
        Box(float(left), float(min(one, other)) - 2, float(right), float(max(one, other)) + 2)
        for left, right, one, other in pieces
        if np.isfinite(one + other)
    ]


def _near(x: float, y: float, name: str, room: float) -> list[Box]:
    """Return places for the name of a mark, the best first."""
    wide, away = width_of(name), _REACH + 4
    return [
        Box(left, low, left + wide, low + _LINE)
        for low in (y + _RAISED + lines * _LINE for lines in (0, -1, 0.5, -1.5, 1, -2, 1.5))
        for left in (x + away, x - away - wide)
        if left >= 0 and left + wide <= room
    ]


def _meet(some: Sequence[Box], others: Sequence[Box]) -> bool:
    return any(one.meets(other) for one in some for other in others)
