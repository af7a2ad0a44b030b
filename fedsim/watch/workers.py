"""What attack workers are on, as they show it themselves; see `fedsim.progress`."""

import contextlib
import heapq
import os
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fedsim.pool import Job
from fedsim.watch.values import document, listed, name, number, table, whole

MOST_WORKERS = 64
"""Workers that a page shows."""
MOST_FILES = 256
"""Files of workers that are read at a look, the newest; the others are of some that were killed."""
MOST_VICTIMS = 200
"""Victims of one job that a page shows."""


@dataclass(frozen=True)
class Working:
    """A job that a worker has.

    Attributes:
        worker: Name of its files.
        attack: What it runs.
        observations: On what.
        started: When, in seconds since 1970.
        guesses: Observation -> (steps, images) of its newest guess.
        stamp: Changes with every guess.
    """

    worker: str
    attack: str
    observations: tuple[str, ...]
    started: float
    guesses: dict[str, tuple[int, int]]
    stamp: int


def at_work(root: Path, scored: Collection[tuple[str, str]], now: float) -> list[Working]:
    """Return the jobs under way, oldest first.

    Left out are those that a worker which was killed left behind: their scores are there, or their
    time is up.

    Args:
        root: The run directory.
        scored: (observation, attack) that have a score.
        now: Seconds since 1970.
    """
    found = [_working(path) for path in _newest(root / "progress")]
    under_way = [
        one
        for one, limit_s in filter(None, found)
        if now <= one.started + limit_s
        and any((each, one.attack) not in scored for each in one.observations)
    ]
    return sorted(under_way[:MOST_WORKERS], key=lambda one: (one.started, one.worker))


def _newest(folder: Path) -> list[Path]:
    """Return the files of workers that changed last."""
    changed: list[tuple[int, str]] = []
    try:
        with os.scandir(folder) as entries:
            for one in entries:
                if one.name.endswith(".json"):
                    with contextlib.suppress(OSError):  # its job has just ended
                        changed.append((one.stat(follow_symlinks=False).st_mtime_ns, one.name))
    except OSError:
        return []
    return [folder / file for _, file in heapq.nlargest(MOST_FILES, changed)]


def _working(path: Path) -> tuple[Working, float] | None:
    record = document(path) or {}
    attack, worker = name(record.get("attack")), name(path.stem)
    names = [name(one) for one in listed(record.get("observations"))[:MOST_VICTIMS]]
    observations = tuple(one for one in names if one is not None)
    budget = number(record.get("time_budget_s"))
    try:
        started = datetime.fromisoformat(str(record.get("started")))
        stamp = path.stat().st_mtime_ns
    except (ValueError, OSError):
        return None
    if attack is None or worker is None or budget is None or not observations:
        return None
    told = table(record.get("guesses"))
    guesses = {}
    for one in observations:
        guess = table(told.get(one))
        step, images = whole(guess.get("step")), whole(guess.get("images"))
        if step is not None and images:
            guesses[one] = (step, images)
    started = started if started.tzinfo else started.replace(tzinfo=UTC)
    working = Working(worker, attack, observations, started.timestamp(), guesses, stamp)
    return working, Job(observations, attack, budget).limit_s
