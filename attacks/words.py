"""How messages list names. No paper."""

from collections.abc import Sequence


def some_of(names: Sequence[str]) -> str:
    """Return the first three names in quotes, and how many more there are."""
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
