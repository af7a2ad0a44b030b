"""What was heard so far, from the names of the files alone."""

import os
import re
from collections import Counter
from pathlib import Path

from fedsim.watch.values import name

_ID = re.compile(r"round-(\d{1,9})-(.+)-to-(.+)")


class Heard:
    """The observations of a run, by id; looked for again when the folder has changed.

    Args:
        folder: `observations/` of a run; it may not be there yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.changed_ns = -1
        self.found: dict[str, tuple[int, str]] = {}

    def look(self) -> bool:
        """Find what is new; return whether anything is. Values: (round, sender)."""
        try:
            changed_ns = self.folder.stat().st_mtime_ns
            if changed_ns == self.changed_ns:
                return False
            names = [one.name for one in os.scandir(self.folder) if one.name.endswith(".json")]
        except OSError:
            return False
        self.changed_ns = changed_ns
        before = len(self.found)
        for one in names:
            identity = name(one.removesuffix(".json"))
            if identity is not None and identity not in self.found:
                self._note(identity)
        return len(self.found) > before

    def _note(self, identity: str) -> None:
        parts = _ID.fullmatch(identity)
        if parts is not None:
            self.found[identity] = (int(parts[1]), parts[2])

    def expected(self, join_rounds: int) -> int:
        """Return how many of these an attack that joins so many rounds has a turn on."""
        if join_rounds <= 1:
            return len(self.found)
        by_sender = Counter(sender for _, sender in self.found.values())
        return sum(max(0, heard - join_rounds + 1) for heard in by_sender.values())


def trailing_number(sender: str) -> int | None:
    """Return the number of a client, as senders are called: "client-3"; None if it has none."""
    digits = sender.rpartition("-")[2]
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 9 else None
