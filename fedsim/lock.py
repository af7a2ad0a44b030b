"""One process at a time works on a run directory.

The lock is the kernel's (`flock`), so it is gone with the process that holds it, however that
ends; the file says to people who that is, and is taken away at the end. One that is left over
tells the next that its owner was killed. It holds within one machine and, where the file system
passes locks on, between machines.
"""

import contextlib
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fedsim.errors import ConfigError

NAME = ".lock"
_LONGEST = 4096
_NOTE_WITHIN_S = 1.0


@contextlib.contextmanager
def locked(root: Path, doing: str) -> Iterator[str | None]:
    """Hold the lock of a run directory; yield who held it last, if it never gave it back.

    Args:
        root: The run directory.
        doing: What is done meanwhile, for whoever comes second.

    Raises:
        ConfigError: Another process, or another thread of this one, works on the run; or the
            directory cannot be written.
    """
    path = root / NAME
    descriptor = _taken(path)
    try:
        left_by = _note(descriptor)
        os.ftruncate(descriptor, 0)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since": now, "doing": doing}
        with contextlib.suppress(OSError):  # a full disk: the lock holds without a note
            os.pwrite(descriptor, json.dumps(note).encode(), 0)
        try:
            yield None if left_by is None else str(left_by)
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _taken(path: Path) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ConfigError(f"cannot lock '{path}': {error.strerror or error}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise ConfigError(f"cannot lock '{path}': it is no plain file; remove it")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, descriptor):
                return descriptor
            os.close(descriptor)  # who held it took the file away meanwhile
        except BlockingIOError:
            who = _living_owner(descriptor) or "another process"
            os.close(descriptor)
            raise ConfigError(
                f"run '{path.parent}' is in use by {who}; wait until it has ended, or end it"
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise ConfigError(f"cannot lock '{path}': {error.strerror or error}") from error


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _living_owner(descriptor: int) -> str | None:
    """Return who holds the lock, once it has said so; None if it does not.

    Between taking the lock and writing its note, the owner leaves that of one that was killed.
    """
    deadline = time.monotonic() + _NOTE_WITHIN_S
    while True:
        note = _note(descriptor)
        if note is not None and not note.is_dead():
            return str(note)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.01)


@dataclass(frozen=True)
class _Note:
    """Who holds a lock, as it says itself."""

    pid: int
    host: str
    since: str
    doing: str

    def is_dead(self) -> bool:
        """Return whether it was a process of this machine that is gone."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except PermissionError:
            return False  # somebody else's
        return False

    def __str__(self) -> str:
        said = f"process {self.pid} on {self.host}, {self.doing} since {self.since}"
        return "".join(one if one.isprintable() else "?" for one in said)


def _note(descriptor: int) -> _Note | None:
    """Return the note in the file; None if there is none that can be read."""
    try:
        note = json.loads(os.pread(descriptor, _LONGEST, 0))
        return _Note(
            pid=int(note["pid"]),
            host=str(note["host"])[:80],
            since=str(note["since"])[:40],
            doing=str(note["doing"])[:80],
        )
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None  # somebody else wrote it
