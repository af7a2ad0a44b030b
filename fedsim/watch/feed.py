"""What is told to pages: the newest state of the run, looked for while anybody looks on."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from fedsim.watch.pictures import Pictures
from fedsim.watch.specimens import Specimens
from fedsim.watch.tensors import RunTensors
from fedsim.watch.watched import Watched

PAUSE_S = 0.4
"""Seconds between two looks at the run directory, at least."""
SHARE = 0.1
"""Of the time that looking may take, at most."""
PING_S = 10.0
"""Seconds after which a page is told that nothing is new."""
CHOOSE_S = 2.0
"""Seconds between two looks for a newer run, where a folder of runs is watched."""
MOST_LISTENERS = 32
"""Pages at a time."""

_log = logging.getLogger("uvicorn.error")


@dataclass(frozen=True)
class Position:
    """What a page has seen: of which reading of which run, up to which version."""

    reading: str = ""
    version: int = 0

    @classmethod
    def parse(cls, text: str | None) -> "Position":
        """Read what a page hands back when it comes again; anything odd is the beginning."""
        reading, _, version = (text or "").partition(":")
        if not (version.isascii() and version.isdigit() and len(version) < 12):
            return cls()
        return cls(reading, int(version))

    def __str__(self) -> str:
        return f"{self.reading}:{self.version}"


class Feed:
    """Follows a run and tells pages.

    Args:
        path: A run directory, one that is not there yet, or a folder of runs, of which the newest
            is followed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listeners = 0
        self.closed = asyncio.Event()
        self.wanted = asyncio.Event()
        self.looked = asyncio.Condition()
        self.chosen_at = float("-inf")
        self._open(run_in(path))

    def _open(self, root: Path) -> None:
        tensors = RunTensors(root)
        self.run, self.pictures, self.specimens = (
            Watched(root),
            Pictures(tensors),
            Specimens(tensors),
        )
        self.reading = uuid4().hex[:12]  # versions of another start mean nothing here

    def look(self) -> bool:
        """Take in what is new; return whether there is more than was read."""
        now = time.monotonic()
        if now - self.chosen_at > CHOOSE_S:
            self.chosen_at = now
            if (root := run_in(self.path)) != self.run.root:
                self._open(root)
        return self.run.look()

    async def follow(self) -> None:
        """Look again and again, while there are pages, until the feed is closed."""
        while not self.closed.is_set():
            began = time.monotonic()
            try:
                more = await asyncio.to_thread(self.look)
            except Exception:  # pages keep what they have, and are told more when that works again
                more = False
                _log.exception("cannot read %s", self.run.root)
            took = time.monotonic() - began
            async with self.looked:
                self.looked.notify_all()
            pause = 0.0 if more else max(PAUSE_S, took * (1 / SHARE - 1))
            await _either(self.closed.wait(), timeout_s=pause)
            if not self.listeners and not more:
                self.wanted.clear()
                await _either(self.closed.wait(), self.wanted.wait())

    async def close(self) -> None:
        """End all streams."""
        self.closed.set()
        async with self.looked:
            self.looked.notify_all()

    async def stream(self, position: Position) -> AsyncGenerator[str, None]:
        """Yield server-sent events: all there is, then what is new, each with its position."""
        self.listeners += 1
        self.wanted.set()
        try:
            yield "retry: 1000\n\n"
            while not self.closed.is_set():
                position, message = await asyncio.to_thread(self.message, position)
                if message:
                    yield message
                elif not await self._next_look():
                    yield f"event: ping\ndata: {position}\n\n"
        finally:
            self.listeners -= 1

    async def _next_look(self) -> bool:
        """Wait for the next look; return whether there was one in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PING_S), self.looked:
                await self.looked.wait()
                return True
        return False

    def message(self, position: Position) -> tuple[Position, str]:
        """Return what is new since a position as an event, and the position after it."""
        run, reading = self.run, self.reading
        if not run.sections:  # not looked at yet
            return position, ""
        since = position.version if position.reading == reading else 0
        found = run.since(since)
        after = Position(reading, found["version"])
        if since and not found["rounds"] and not found["points"] and len(found) == 4:
            return after, ""
        found["reading"] = reading
        body = json.dumps(found, allow_nan=False, separators=(",", ":"))
        return after, f"id: {after}\ndata: {body}\n\n"


async def _either(*waits: Coroutine[Any, Any, object], timeout_s: float | None = None) -> None:
    """Wait for the first of these, or so many seconds."""
    tasks = [asyncio.ensure_future(one) for one in waits]
    try:
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def run_in(path: Path) -> Path:
    """Return the run to watch: the path itself, or the newest run in it, if it is none."""
    if (path / "config.toml").is_file():
        return path
    newest, found = float("-inf"), path
    with contextlib.suppress(OSError):
        for one in path.iterdir():
            with contextlib.suppress(OSError):
                began = (one / "config.toml").stat().st_mtime
                if began > newest:
                    newest, found = began, one
    return found
