"""What the coordinates of an encoded row stand for."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Column:
    """One feature of a table.

    A category is one-hot: as many coordinates as there are categories, 1 at its own. A number is
    one coordinate: 0 at `low` and 1 at `high`, the public range of the feature.

    Attributes:
        name: Of the feature.
        categories: Their names, in order; empty for a number.
        low: The lowest value of a number.
        high: The highest.
        whole: Whether a number is a whole one.
    """

    name: str
    categories: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0
    whole: bool = False

    @property
    def width(self) -> int:
        """How many coordinates encode it."""
        return len(self.categories) or 1


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The features of a table, in order.

    Attributes:
        columns: F of them.
    """

    columns: Sequence[Column]

    @property
    def width(self) -> int:
        """D."""
        return sum(column.width for column in self.columns)

    def places(self) -> list[tuple[Column, slice]]:
        """Return each feature with the coordinates that encode it."""
        found, first = [], 0
        for column in self.columns:
            found.append((column, slice(first, first + column.width)))
            first += column.width
        return found
