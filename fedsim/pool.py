"""Processes that run attacks beside the training, and never hold it up."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from fedsim.records import Record, RunDirectory

GRACE_S = 30.0
"""Seconds beyond its budget after which an attack that does not watch its budget is ended."""


@dataclass(frozen=True)
class Job:
    """One attack on one observation.

    Attributes:
        observation: Id of the observation.
        attack: Title of the attack.
        time_budget_s: What the attack is allowed.
    """

    observation: str
    attack: str
    time_budget_s: float

    @property
    def limit_s(self) -> float:
        """Seconds after which its worker is ended."""
        return self.time_budget_s * 1.5 + GRACE_S

    def failed(self, reason: str) -> Record:
        """Return the answer of a worker that could not give one."""
        return {
            "observation": self.observation,
            "attack": self.attack,
            "status": "failed",
            "reason": reason,
            "lost": True,
        }


class AttackPool(Protocol):
    """Where attacks run. An answer is what `AttackWorker.attack` returns.

    An answer with `lost` set comes from no worker: nothing was written for that job.
    """

    def submit(self, job: Job) -> None:
        """Queue a job; return at once."""

    def poll(self) -> list[Record]:
        """Return the answers that came since the last call, and keep the workers busy."""

    @property
    def waiting(self) -> int:
        """Jobs queued or running."""

    def close(self) -> None:
        """End the workers; jobs that are not answered yet are dropped."""


class _Worker:
    """One process, and the job that it is on."""

    def __init__(self, run: RunDirectory, answers: "queue.Queue[tuple[_Worker, str]]") -> None:
        self.job: Job | None = None
        self.deadline = 0.0
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            # modules of the user's own must be found as the parent finds them
            "PYTHONPATH": os.pathsep.join(place or str(Path.cwd()) for place in sys.path),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fedsim.attacking", str(run.root.resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the parent; it ends its workers itself
        )
        threading.Thread(target=self._listen, args=(answers,), daemon=True).start()

    def _listen(self, answers: "queue.Queue[tuple[_Worker, str]]") -> None:
        for line in self.process.stdout or ():
            answers.put((self, line))
        answers.put((self, ""))  # the process ended

    def start(self, job: Job) -> None:
        """Hand the job over; a worker that has just died answers by its end."""
        self.job = job
        self.deadline = time.monotonic() + job.limit_s
        line = json.dumps({"observation": job.observation, "attack": job.attack})
        with contextlib.suppress(OSError):  # a broken pipe: its end will be heard
            print(line, file=self.process.stdin, flush=True)

    def last_words(self) -> str:
        """Return the last line that the process wrote to its error stream."""
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self.process.poll()}"

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


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
        """Jobs queued or running."""
        return len(self.jobs) + sum(worker.job is not None for worker in self.workers)

    def poll(self) -> list[Record]:
        """Return the answers that came since the last call, and keep the workers busy."""
        answered: list[Record] = []
        while True:
            try:
                worker, line = self.answers.get_nowait()
            except queue.Empty:
                break
            if worker not in self.workers:
                continue  # it was replaced
            if line:
                answered.append(json.loads(line))
                worker.job = None
            else:
                answered += self._replace(worker, "the attack worker died: ")
        now = time.monotonic()
        for worker in list(self.workers):
            if worker.job is not None and now > worker.deadline:
                limit = f"it did not end within {worker.job.limit_s:g} s, and was ended"
                answered += self._replace(worker, limit)
        for worker in list(self.workers):
            if worker.job is None and self.jobs:
                worker.job = self.jobs.popleft()
                if worker.process.poll() is None:
                    worker.start(worker.job)
                else:  # it died idle; its end was heard already
                    answered += self._replace(worker, "the attack worker died: ")
        return answered

    def _replace(self, worker: _Worker, reason: str) -> list[Record]:
        """End a worker and spend its job: one that kills its worker would do so for ever."""
        job = worker.job
        worker.end()
        if job is None:
            return []  # it died idle; it is replaced when there is work
        self.workers[self.workers.index(worker)] = _Worker(self.run, self.answers)
        said = reason + (worker.last_words() if reason.endswith(": ") else "")
        return [job.failed(said)]

    def close(self) -> None:
        """End the workers; jobs that are not answered yet are dropped."""
        self.jobs.clear()
        for worker in self.workers:
            worker.end()
            worker.log.close()
