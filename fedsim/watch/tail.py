"""Logs of JSON lines, read as they grow: each byte once."""

import errno
import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from fedsim.files import LARGEST_LOG, Record

MOST_BYTES = 4 * 2**20
"""Read at one look; a page that is opened late gets a long log in several looks."""


@dataclass(frozen=True)
class Line:
    """One record of a log.

    Attributes:
        record: What the line holds.
        place: Where it begins in the file, in bytes.
        length: Its bytes.
    """

    record: Record
    place: int
    length: int


@dataclass(frozen=True)
class Growth:
    """What a look at a log found.

    Attributes:
        lines: New records, in order; lines that are no JSON object are left out.
        anew: Whether the log was written anew, and `lines` are its first.
        more: Whether there is more than was read.
    """

    lines: list[Line] = field(default_factory=list)
    anew: bool = False
    more: bool = False


class Tail:
    """Follows one log.

    Args:
        path: It may not be there yet.
        most: Bytes read at a look. A line that is longer is left out.
    """

    def __init__(self, path: Path, most: int = MOST_BYTES) -> None:
        self.path = path
        self.most = most
        self.place = 0
        self.inode: int | None = None
        self.skipping = False

    def look(self) -> Growth:
        """Return what the log has grown by; a last line without its end is left for later."""
        try:
            with _plain(self.path) as file:
                state = os.fstat(file.fileno())
                anew = self._anew(state)
                file.seek(self.place)
                chunk = file.read(self.most)
        except OSError:  # not there, or not any more, or no log
            anew = self.inode is not None
            self.place, self.inode, self.skipping = 0, None, False
            return Growth(anew=anew)
        start, whole = self.place, chunk[: chunk.rfind(b"\n") + 1]
        if not whole and len(chunk) == self.most:
            self.skipping, whole = True, chunk
            self.place += len(whole)
            return Growth(anew=anew, more=True)
        self.place += len(whole)
        return Growth(self._lines(whole, start), anew, more=len(chunk) == self.most)

    def _anew(self, state: os.stat_result) -> bool:
        """Whether this is another file than before, or a shorter one; then begin again."""
        before, self.inode = self.inode, state.st_ino
        if (before is None or before == state.st_ino) and state.st_size >= self.place:
            return False
        self.place, self.skipping = 0, False
        return True

    def _lines(self, whole: bytes, start: int) -> list[Line]:
        found: list[Line] = []
        for one in whole.split(b"\n")[:-1]:
            if self.skipping:  # the rest of a line that is too long
                self.skipping = False
            elif isinstance(record := _parsed(one), dict):
                found.append(Line(record, start, len(one)))
            start += len(one) + 1
        return found

    def line_at(self, place: int, length: int) -> Record | None:
        """Return a record read before, by its place; None if something else is there now."""
        try:
            with _plain(self.path) as file:
                file.seek(place)
                found = _parsed(file.read(length))
        except OSError:
            return None
        return found if isinstance(found, dict) else None


def _plain(path: Path) -> BinaryIO:
    """Open a log, unless it is a link, a pipe or the like, or larger than any log.

    Raises:
        OSError: It is, or is not there.
    """
    # a link is not followed, and nobody is waited for who might write to a pipe
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    state = os.fstat(descriptor)
    if stat.S_ISREG(state.st_mode) and state.st_size <= LARGEST_LOG:
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise OSError(errno.EINVAL, "no log", str(path))


def _parsed(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
