"""What the numbers of a run's inputs stand for, as `data.json` says; believed within limits."""

from pathlib import Path

from fedsim.data.tables import MOST_COORDINATES
from fedsim.errors import FedsimError
from fedsim.examples import Reader, read_data
from fedsim.records import RunDirectory

MOST_WORDS = 2**18
"""Tokens of a vocabulary; a larger one is not read."""


class DataFile:
    """The reader of a run, read anew when its file has changed.

    Args:
        root: The run directory.
    """

    def __init__(self, root: Path) -> None:
        self.run = RunDirectory(root)
        self.changed_ns = -1
        self.reader: Reader | None = None

    def look(self) -> Reader | None:
        """Return who reads inputs; None where no file says what they are, or it makes no sense."""
        try:
            changed_ns = self.run.data.stat().st_mtime_ns
        except OSError:
            self.changed_ns, self.reader = -1, None
            return None
        if changed_ns != self.changed_ns:
            self.changed_ns, self.reader = changed_ns, self._read()
        return self.reader

    def _read(self) -> Reader | None:
        try:
            found = read_data(self.run)
        except (OSError, ValueError, RecursionError, FedsimError):
            return None
        width = 0 if found.columns is None else found.columns.width
        return found if len(found.words) <= MOST_WORDS and width <= MOST_COORDINATES else None
