"""One sweep from beginning to end: run what is missing, then tables and page."""

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedsim.errors import ConfigError, RunFailed
from fedsim.files import Record, read_json, replace_json
from fedsim.named_attacks import build_attack
from fedsim.schemas.course import Environment
from fedsim.schemas.sweep import SweepCell, SweepRecord
from fedsim.stages.prepare import environment
from fedsim.sweep.cells import Cell, Job, cells_of, jobs_of
from fedsim.sweep.config import Sweep
from fedsim.sweep.job import Outcome, outcome_of
from fedsim.sweep.reached import with_reach
from fedsim.sweep.rows import Measured, measure, rows_of, seeds_of
from fedsim.sweep.tables import modalities, write_tables
from fedsim.sweep.workers import in_processes, on_ray


@dataclass
class SweepProgress:
    """Where a sweep stands, for whoever watches.

    Attributes:
        folder: Of the sweep.
        total: Jobs in all.
        ended: Jobs that ended, those of earlier calls included.
        failed: Those of them that failed in this call.
        last: The job that ended last.
        stopping: Whether it was interrupted, and is ending the runs under way.
    """

    folder: Path
    total: int
    ended: int = 0
    failed: list[Outcome] = field(default_factory=list)
    last: Outcome | None = None
    stopping: bool = False


Watch = Callable[[SweepProgress], None]
"""Called when a job has ended, and when the jobs under way are being ended."""


@dataclass(frozen=True, kw_only=True)
class Swept:
    """What a sweep's folder holds, read.

    Attributes:
        sweep: What was asked for.
        folder: Where.
        cells: Its cells.
        measured: What the runs of each cell hold, by its number.
        record: What `sweep.json` holds.
    """

    sweep: Sweep
    folder: Path
    cells: Sequence[Cell]
    measured: dict[int, list[Measured]]
    record: SweepRecord

    @property
    def page(self) -> Path:
        """The page for people."""
        return self.folder / "sweep.html"


def run_sweep(
    sweep: Sweep,
    folder: Path,
    *,
    workers: int,
    address: str = "",
    watch: Watch | None = None,
) -> Swept:
    """Run what a sweep asks for and its folder does not hold yet, and write tables and page.

    A job is known by the digest of its experiment, so that the same folder goes on after a kill,
    and after a change of the sweep repeats only what changed. Jobs that failed are tried again.

    Args:
        sweep: As read.
        folder: Made if it is not there.
        workers: Processes of this machine, or CPUs of a Ray that is started here.
        address: Of a Ray cluster (`local` starts one); empty for processes of this machine.
        watch: Told of progress.

    Raises:
        ConfigError: The sweep cannot be run, or the folder belongs to another one.
        RunFailed: Every job failed.
    """
    start = time.perf_counter()
    cells = cells_of(sweep)
    for attacker in sweep.attackers.by_role().values():
        build_attack(attacker)  # a wrong name would otherwise be refused cell by cell
    _claim(folder, sweep)
    jobs = jobs_of(cells)
    found = {job.digest: outcome_of(folder, job.digest) for job in jobs}
    outcomes = {digest: one for digest, one in found.items() if one and one.status == "done"}
    left = [job for job in jobs if job.digest not in outcomes]
    progress = SweepProgress(folder, total=len(jobs), ended=len(outcomes))
    if watch is not None:
        watch(progress)

    def stopping() -> None:
        progress.stopping = True
        if watch is not None:
            watch(progress)

    status = "interrupted"
    try:
        with contextlib.closing(_running(folder, left, workers, address, stopping)) as ended:
            for outcome in ended:
                outcomes[outcome.digest] = outcome
                progress.ended += 1
                progress.last = outcome
                if outcome.status == "failed":
                    progress.failed.append(outcome)
                if watch is not None:
                    watch(progress)
        status = "done"
    finally:
        swept = _conclude(sweep, folder, cells, outcomes, status, time.perf_counter() - start)
    if all(one.status == "failed" for one in outcomes.values()):
        first = next(iter(outcomes.values())).reason
        raise RunFailed(f"every job of sweep '{folder}' failed; the first: {first}")
    return swept


def read_folder(sweep: Sweep, folder: Path) -> Swept:
    """Write tables and page anew from whatever a sweep's folder holds."""
    cells = cells_of(sweep)
    found = {job.digest: outcome_of(folder, job.digest) for job in jobs_of(cells)}
    outcomes = {digest: one for digest, one in found.items() if one is not None}
    whole = len(outcomes) == len(found)
    return _conclude(sweep, folder, cells, outcomes, "done" if whole else "interrupted", 0.0)


def _success_accuracy(cells: Sequence[Cell], rows: Sequence[SweepCell]) -> float | None:
    """Return from where texts and rows count as recovered; None where all cells hold images."""
    if modalities(rows) == ["image"]:
        return None
    return cells[0].experiment.score.success_accuracy


def _running(
    folder: Path,
    jobs: Sequence[Job],
    workers: int,
    address: str,
    stopping: Callable[[], None],
) -> Generator[Outcome, None, None]:
    """Return what runs the jobs and yields how each ended."""
    if address and jobs:
        return on_ray(folder, jobs, workers, address, stopping)
    return in_processes(folder, jobs, workers, stopping)


def _claim(folder: Path, sweep: Sweep) -> None:
    """Make the folder, or find it made by the same sweep."""
    path = folder / "sweep.json"
    if path.is_file():
        name = read_json(path)["name"]
        if name != sweep.name:
            raise ConfigError(
                f"'{folder}' belongs to the sweep '{name}', not to '{sweep.name}'; "
                "choose another folder with --output"
            )
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not (folder / "jobs").is_dir():
            raise ConfigError(
                f"'{folder}' holds something other than a sweep; choose another with --output"
            )
        (folder / "jobs").mkdir(exist_ok=True)
        runs = folder / "runs"
        runs.mkdir(mode=0o700, exist_ok=True)  # what was overheard is private data, too
    except OSError as error:
        raise ConfigError(
            f"cannot make '{folder}': {error.strerror or error}; choose another with --output"
        ) from error


def _conclude(
    sweep: Sweep,
    folder: Path,
    cells: Sequence[Cell],
    outcomes: dict[str, Outcome],
    status: str,
    seconds: float,
) -> Swept:
    from fedsim.report.sweep_page import build  # drawing takes a while to import

    measured = {cell.number: measure(cell, folder, outcomes) for cell in cells}
    attackers = {str(role): one for role, one in sweep.attackers.by_role().items()}
    rows = rows_of(cells, measured, attackers, sweep.confidence)
    same_batches = None
    if sweep.compares == "adversaries":
        rows, same_batches = with_reach(rows, measured)
    record = SweepRecord.model_validate(
        {
            "name": sweep.name,
            "description": sweep.description,
            "status": status,
            "compares": sweep.compares,
            "same_batches": same_batches,
            "confidence": sweep.confidence,
            "success_threshold_db": cells[0].experiment.score.success_threshold_db,
            "success_accuracy": _success_accuracy(cells, rows),
            "own_utility": sweep.utility is not None,
            "utility_note": "" if sweep.utility is None else sweep.utility.note,
            "environment": Environment.model_validate(environment()),
            "seconds": round(seconds, 3),
            "cells": rows,
            "seeds": [
                row for cell in cells for row in seeds_of(cell, measured[cell.number], folder)
            ],
        }
    )
    swept = Swept(sweep=sweep, folder=folder, cells=cells, measured=measured, record=record)
    document: Record = record.model_dump(mode="json")
    replace_json(folder / "sweep.json", document)
    write_tables(folder, record)
    build(swept)
    return swept
