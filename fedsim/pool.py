"""Processes that run attacks beside the training, and never hold it up."""

import json
import queue
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Protocol

from fedsim import progress
from fedsim.files import Record
from fedsim.line_process import LineProcess
from fedsim.records import RunDirectory

GRACE_S = 30.0
"""Seconds beyond its budget after which an attack that does not watch its budget is ended."""


@dataclass(frozen=True)
class Job:
    """One attack on one observation, or on several in one computation.

    Attributes:
        observations: Ids of the observations, one per victim.
        attack: Title of the attack.
        time_budget_s: What the attack is allowed, per victim.
        tries: Workers that may take it up: if one dies, another does. A worker may have been
            killed for reasons of its own; an attack that ends every process is not tried for ever.
    """

    observations: tuple[str, ...]
    attack: str
    time_budget_s: float
    tries: int = 2

    @property
    def limit_s(self) -> float:
        """Seconds after which its worker is ended."""
        return self.time_budget_s * len(self.observations) * 1.5 + GRACE_S

    def again(self, run: RunDirectory, reason: str) -> "Job | None":
        """Return the job for another worker after one died, and note it; None to give it up."""
        if self.tries <= 1:
            return None
        what = f"{self.attack} on {', '.join(self.observations)}"
        run.append_event("attack-taken-up-again", f"{what}: {reason}; another worker takes it up")
        return replace(self, tries=self.tries - 1)

    def failed(self, reason: str) -> list[Record]:
        """Return the answers of a worker that could not give any."""
        return [
            {
                "observation": observation,
                "attack": self.attack,
                "status": "failed",
                "reason": reason,
                "lost": True,
            }
            for observation in self.observations
        ]


class AttackPool(Protocol):
    """Where attacks run. Answers are what `AttackWorker.attack` returns, one per observation.

    An answer with `lost` set comes from no worker: nothing was written for that job.
    """

    def submit(self, job: Job) -> None:
        """Queue a job; return at once."""

    def poll(self) -> list[Record]:
        """Return the answers that came since the last call, and keep the workers busy."""

    @property
    def waiting(self) -> int:
        """Observations queued or being attacked."""

    def close(self) -> None:
        """End the workers; jobs that are not answered yet are dropped."""


class _Worker:
    """One process, and the job that it is on."""

    def __init__(self, run: RunDirectory, answers: "queue.Queue[tuple[_Worker, str]]") -> None:
        self.run = run
        self.shown = progress.new_name()
        self.job: Job | None = None
        self.deadline = 0.0
        self.child = LineProcess(
            "fedsim.attacking",
            [str(run.root.resolve())],
            lambda line: answers.put((self, line)),
            {progress.SHOWN_AS: self.shown},
        )
        self.process = self.child.process

    def start(self, job: Job) -> None:
        """Hand the job over; a worker that has just died answers by its end."""
        self.job = job
        self.deadline = time.monotonic() + job.limit_s
        self.child.say(json.dumps({"observations": job.observations, "attack": job.attack}))

    def end(self) -> None:
        """End the process."""
        self.child.end()
        progress.clear(self.run.root, self.shown)


class ProcessPool:
    """Attack workers as processes of this machine.

    Args:
        run: The run they attack.
        size: Number of processes.
    """

    def __init__(self, run: RunDirectory, size: int) -> None:
        self.run = run
        self.answers: queue.Queue[tuple[_Worker, str]] = queue.Queue()
        self.jobs: deque[Job] = deque()
        self.workers = [_Worker(run, self.answers) for _ in range(size)]

    def submit(self, job: Job) -> None:
        """Queue a job; return at once."""
        self.jobs.append(job)

    @property
    def waiting(self) -> int:
        """Observations queued or being attacked."""
        running = [worker.job for worker in self.workers if worker.job is not None]
        return sum(len(job.observations) for job in (*self.jobs, *running))

    def poll(self) -> list[Record]:
        """Return the answers that came since the last call, and keep the workers busy."""
        answered: list[Record] = []
        while not self.answers.empty():
            worker, line = self.answers.get()
            if worker not in self.workers:
                continue  # it was replaced
            if line.endswith("\n"):
                answered += json.loads(line)
                worker.job = None
            elif worker.job is not None:  # one that died idle is replaced when there is work
                reason = f"the attack worker died: {worker.child.last_words()}"
                if (again := worker.job.again(self.run, reason)) is not None:
                    self.jobs.appendleft(again)
                else:
                    answered += worker.job.failed(reason)
                self._replace(worker)
        now = time.monotonic()
        for worker in list(self.workers):
            if worker.job is not None and now > worker.deadline:
                reason = f"it did not end within {worker.job.limit_s:g} s, and was ended"
                answered += worker.job.failed(reason)
                self._replace(worker)
        for worker in list(self.workers):
            if worker.job is None and self.jobs:
                able = worker if worker.process.poll() is None else self._replace(worker)
                able.start(self.jobs.popleft())
        return answered

    def _replace(self, worker: _Worker) -> _Worker:
        """End a worker and start another."""
        worker.end()
        other = _Worker(self.run, self.answers)
        self.workers[self.workers.index(worker)] = other
        return other

    def close(self) -> None:
        """End the workers; jobs that are not answered yet are dropped."""
        self.jobs.clear()
        for worker in self.workers:
            worker.end()
