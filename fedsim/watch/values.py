"""Values of records, of which nothing is believed: each is what it should be, or missing."""

import re
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from fedsim.errors import FedsimError
from fedsim.files import Record, read_json

NAME = re.compile(r"[\w+-][\w.+-]{0,199}")
"""What observations and attacks may be called where a file has their name: no path, nothing hidden.
"""
MOST_TEXT = 400
"""Characters of a text that a page shows."""


def number(value: object) -> float | None:
    """Return a finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if isfinite(value) else None
    except OverflowError:  # a whole number beyond all floats
        return None


def whole(value: object, most: int = 10**9) -> int | None:
    """Return a whole number from 0 to `most`, or None."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value <= most else None


def text(value: object, most: int = MOST_TEXT, instead: str = " ") -> str:
    """Return a text of at most so many characters, on one line; empty for anything else.

    Args:
        value: What may be one.
        most: Characters.
        instead: Of each that is not printed, such as those that turn the direction of reading.
    """
    if not isinstance(value, str):
        return ""
    plain = "".join(letter if letter.isprintable() else instead for letter in value[: most + 1])
    return plain if len(plain) <= most else plain[: most - 1] + "\u2026"


def name(value: object) -> str | None:
    """Return a name that may stand in a file's name, or None."""
    return value if isinstance(value, str) and NAME.fullmatch(value) else None


def listed(value: object) -> list[Any]:
    """Return a list, empty for anything else."""
    return value if isinstance(value, list) else []


def table(value: object) -> Mapping[str, Any]:
    """Return a table, empty for anything else."""
    return value if isinstance(value, dict) else {}


def document(path: Path) -> Record | None:
    """Read one JSON object; None where there is none, or it is not whole."""
    try:
        found = read_json(path)
    except (OSError, ValueError, RecursionError, FedsimError):
        return None
    return found if isinstance(found, dict) else None


def rounded(value: float | None, digits: int = 4) -> float | None:
    """Return a number as short as a page needs it, by significant digits; None if not finite."""
    if value is None:
        return None
    short = float(f"{value:.{digits}g}")  # the largest numbers are rounded up to infinity
    return short if isfinite(short) else None
