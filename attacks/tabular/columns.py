"""What the coordinates of an encoded row stand for."""

from collections.abc import Sequence
from dataclasses import dataclass

from attacks.network import known_architecture
from attacks.observation import AttackFailed, Knowledge


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


def columns_of(known: Knowledge) -> Columns:
    """Return what the coordinates of a row stand for.

    Raises:
        AttackFailed: The data are no table, or what they stand for was not granted.
    """
    if known.columns is None:
        raise AttackFailed(
            "this attack is on tables, and needs to know their columns; grant 'input-domain', and "
            "choose data such as 'adult'"
        )
    _, input_shape = known_architecture(known)
    if input_shape != (known.columns.width,):
        raise AttackFailed(
            f"rows of these columns have {known.columns.width} coordinates, the inputs known have "
            f"shape {input_shape}"
        )
    return known.columns
