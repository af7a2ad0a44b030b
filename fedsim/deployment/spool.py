"""Attacks in another container: jobs and answers are files below `jobs/` of the run directory.

`N.job.json` waits for a worker. One takes it by renaming it to `N.taken.json`, which no second one
can do, and touches that file while it works. It leaves `N.answer.json`, and the file it took goes.
A job whose file is no longer touched is offered again, and given up after some tries: it may be
what ends its workers.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedsim.errors import Damaged
from fedsim.files import Record, read_json, replace_json
from fedsim.pool import AttackPool, Job
from fedsim.records import RunDirectory

TOUCH_S = 1.0
"""Seconds between two signs of life of a worker."""
LEASE_S = 20.0
"""Seconds without one after which a worker is taken for dead."""
STAND_IN_S = 45.0
"""Seconds that a job waits without any worker, after which the pool attacks itself, if it may."""
PATIENCE_S = 90.0
"""Seconds after which nobody waits for a worker any more, if the pool may not."""
MOST_TRIES = 3
"""Workers that may die of a job."""

OVER = "over.json"
"""Says to workers that nobody offers jobs; with the status `done`, that nobody ever will."""

Clock = Callable[[], float]


def folder_of(run: RunDirectory) -> Path:
    """Return where the jobs of a run lie."""
    return run.root / "jobs"


def tell_end(run: RunDirectory, status: str) -> None:
    """Say to workers how a run ended, also to those who come later."""
    replace_json(folder_of(run) / OVER, {"status": status})


@dataclass
class _Sight:
    """When a file was last seen to change: no clock of a worker's is believed.

    Attributes:
        stamp: Its time of change.
        since: When that was first seen.
    """

    stamp: int
    since: float


@dataclass
class _Open:
    """A job that nobody answered yet.

    Attributes:
        job: It.
        since: When it was first offered.
        tries: Workers that took it and died.
        taken: Sight of the file by which one says that it works on it.
    """

    job: Job
    since: float
    tries: int = 0
    taken: _Sight | None = None


class SpoolPool:
    """Attack workers that take their jobs from the run directory, wherever they run.

    Where no worker shows up for long, it brings one of its own if it was given one; if not, the
    jobs are left as they are: `fedsim attack` can do them later.

    Args:
        run: The run that is attacked.
        clock: Tells the time, in seconds.
        stand_in: Starts a worker of its own; None if there is none.
    """

    def __init__(
        self,
        run: RunDirectory,
        clock: Clock = time.monotonic,
        stand_in: "Callable[[], SpoolWorker] | None" = None,
    ) -> None:
        self.run = run
        self.clock = clock
        self.stand_in = stand_in
        self.own: SpoolWorker | None = None
        self.folder = folder_of(run)
        self.open: dict[int, _Open] = {}
        self.last_sign = clock()
        self.signs: dict[str, int] = {}
        self.told = False
        self.folder.mkdir(exist_ok=True)
        for left in self.folder.iterdir():  # of an earlier try of the same run
            if not left.name.startswith("worker-"):
                left.unlink(missing_ok=True)
        self.number = 0

    def submit(self, job: Job) -> None:
        """Offer a job; return at once."""
        self.number += 1
        self.open[self.number] = _Open(job, self.clock())
        self._offer(self.number)

    @property
    def waiting(self) -> int:
        """Observations whose attack somebody can still be expected to do."""
        if self._deserted():
            return 0
        return sum(len(one.job.observations) for one in self.open.values())

    def poll(self) -> list[Record]:
        """Return the answers that came since the last call; offer again what nobody works on."""
        self._look_for_workers()
        self._stand_in()
        answered: list[Record] = []
        for number, one in list(self.open.items()):
            answer = self._answer(number, one.job)
            if answer is None and self._abandoned(number, one):
                one.tries += 1
                if one.tries < MOST_TRIES:
                    self.run.append_event(
                        "attack-worker-lost",
                        f"the worker on {one.job.attack} is gone; the job is offered again",
                        observations=list(one.job.observations),
                    )
                    self._offer(number)
                else:
                    answer = one.job.failed(f"{MOST_TRIES} attack workers died of it")
            if answer is not None:
                answered += answer
                del self.open[number]
                self._forget(number)
        return answered

    def close(self) -> None:
        """Tell the workers to go; jobs that are not answered yet are dropped."""
        if self.own is not None:
            self.own.end()
            self.own.pool.close()
        for number in self.open:
            self._forget(number)
        replace_json(self.folder / OVER, {})

    def _offer(self, number: int) -> None:
        one = self.open[number]
        one.taken = None
        self._path(number, "taken").unlink(missing_ok=True)
        record = {
            "observations": list(one.job.observations),
            "attack": one.job.attack,
            "time_budget_s": one.job.time_budget_s,
        }
        replace_json(self._path(number, "job"), record)

    def _answer(self, number: int, job: Job) -> list[Record] | None:
        path = self._path(number, "answer")
        if not path.is_file():
            return None
        try:
            answers = read_json(path)["answers"]
            told = {str(one["observation"]): one for one in answers}
            if len(answers) != len(told) or set(told) != set(job.observations):
                raise KeyError("other observations than were asked for")
            return [self._checked(job, one, told[one]) for one in job.observations]
        except (Damaged, LookupError, TypeError, AttributeError) as error:
            return job.failed(f"the answer of its worker cannot be read: {error}")

    def _checked(self, job: Job, observation: str, said: Record) -> Record:
        """Return what is believed of an answer: what it says of this job, in words of ours."""
        there = self.run.root / "reconstructions" / f"{observation}--{job.attack}.json"
        if said.get("lost") or not there.is_file():
            (record,) = Job((observation,), job.attack, job.time_budget_s).failed(
                str(said.get("reason") or "its worker wrote nothing down")
            )
            return record
        reason = said.get("reason")
        return {
            "observation": observation,
            "attack": job.attack,
            "status": str(said.get("status")),
            "reason": None if reason is None else str(reason),
        }

    def _abandoned(self, number: int, one: _Open) -> bool:
        sight = self._sight(self._path(number, "taken"), one.taken)
        one.taken = sight
        return sight is not None and self.clock() - sight.since > LEASE_S

    def _sight(self, path: Path, before: _Sight | None) -> _Sight | None:
        try:
            stamp = path.stat().st_mtime_ns
        except FileNotFoundError:
            return None
        if before is not None and before.stamp == stamp:
            return before
        return _Sight(stamp, self.clock())

    def _look_for_workers(self) -> None:
        for path in self.folder.glob("worker-*"):
            with contextlib.suppress(FileNotFoundError):
                stamp = path.stat().st_mtime_ns
                # what was there before this pool may be of a worker that is long gone
                if self.signs.setdefault(path.name, stamp) != stamp:
                    self.signs[path.name] = stamp
                    self.last_sign = self.clock()

    def _stand_in(self) -> None:
        """Work on the jobs, if nobody else does."""
        if self.own is not None:
            self.own.step()
        elif self.stand_in and self._alone_s > STAND_IN_S:
            self.run.append_event(
                "attack-stand-in",
                f"no attack worker was there for {STAND_IN_S:g} s: the director attacks, too",
            )
            self.own = self.stand_in()

    @property
    def _alone_s(self) -> float:
        """Seconds for which there has been something to do, and nobody to do it."""
        now = self.clock()
        return now - max(
            self.last_sign, min((one.since for one in self.open.values()), default=now)
        )

    def _deserted(self) -> bool:
        if self.stand_in or self._alone_s <= PATIENCE_S:
            return False
        if not self.told:
            self.told = True
            self.run.append_event(
                "attack-worker-missing",
                f"no attack worker was there for {PATIENCE_S:g} s: what was recorded is kept, and "
                "`fedsim attack` attacks it later",
            )
        return True

    def _forget(self, number: int) -> None:
        for kind in ("job", "taken", "answer"):
            self._path(number, kind).unlink(missing_ok=True)

    def _path(self, number: int, kind: str) -> Path:
        return self.folder / f"{number:06d}.{kind}.json"


class SpoolWorker:
    """Takes jobs from a run directory, as many as its pool has room for, and answers them.

    Args:
        run: The run that is attacked.
        pool: Where attacks run.
        size: Jobs at a time.
    """

    def __init__(self, run: RunDirectory, pool: AttackPool, size: int) -> None:
        self.folder = folder_of(run)
        self.pool = pool
        self.size = size
        self.over_before = self._end()
        self.sign = self.folder / f"worker-{socket.gethostname()}-{os.getpid()}"
        self.touched = 0.0
        self.taken: dict[Path, tuple[Job, list[Record]]] = {}

    @property
    def over(self) -> bool:
        """Whether the run needs no worker any more, as its director says; no clock is asked."""
        end = self._end()
        if end is None:
            return False
        # what stood there before is of a run that may be gone on with, unless it says otherwise
        with contextlib.suppress(FileNotFoundError):  # a run is gone on with at this moment
            return end != self.over_before or read_json(self.folder / OVER).get("status") == "done"
        return False

    def step(self) -> None:
        """Show a sign of life, take what there is room for, and bring what is done."""
        self._touch()
        if len(self.taken) < self.size:
            self._take()
        for answer in self.pool.poll():
            self._sort(answer)
        for path, (job, answers) in list(self.taken.items()):
            if len(answers) == len(job.observations):
                del self.taken[path]
                if path.exists():  # or else it was given to somebody else meanwhile
                    stem = path.name.removesuffix(".taken.json")
                    replace_json(path.with_name(f"{stem}.answer.json"), {"answers": answers})
                    path.unlink(missing_ok=True)

    def end(self) -> None:
        """Give back what is not done, and go."""
        for path in self.taken:
            stem = path.name.removesuffix(".taken.json")
            with contextlib.suppress(FileNotFoundError):
                path.rename(path.with_name(f"{stem}.job.json"))
        self.taken.clear()
        self.sign.unlink(missing_ok=True)

    def _end(self) -> tuple[int, int] | None:
        try:
            found = (self.folder / OVER).stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_ino

    def _touch(self) -> None:
        if time.monotonic() - self.touched < TOUCH_S:
            return
        self.touched = time.monotonic()
        self.sign.touch()
        for path in self.taken:
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)  # not `touch`: a job that was taken from us must not come back

    def _take(self) -> None:
        for path in sorted(self.folder.glob("*.job.json")):
            taken = path.with_name(f"{path.name.removesuffix('.job.json')}.taken.json")
            try:
                path.rename(taken)
                os.utime(taken)
                record = read_json(taken)
            except FileNotFoundError:  # somebody else was faster, or it is no longer wanted
                continue
            job = Job(
                tuple(record["observations"]), record["attack"], float(record["time_budget_s"])
            )
            self.taken[taken] = (job, [])
            self.pool.submit(job)
            if len(self.taken) >= self.size:
                return

    def _sort(self, answer: Record) -> None:
        for job, answers in self.taken.values():
            asked = answer["attack"] == job.attack and answer["observation"] in job.observations
            if asked and all(one["observation"] != answer["observation"] for one in answers):
                answers.append(answer)
                return
