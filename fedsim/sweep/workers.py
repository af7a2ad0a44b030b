"""Where the jobs of a sweep run: processes of this machine, or a Ray cluster."""

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from fedsim.config import Experiment
from fedsim.sweep.cells import Job
from fedsim.sweep.job import Outcome, failed, run_job

PATIENCE_S = 5.0
"""Seconds that a run has to end when it is asked to; after them its process is killed."""

MOST_MEMORY = 1536 * 2**20
"""Bytes that a process may hold between two jobs: libraries keep what they made for shapes that do
not come again, and a fresh process starts in seconds."""

_SPAWN = multiprocessing.get_context("spawn")  # a fork would share threads and their locks


def in_processes(
    folder: Path, jobs: Sequence[Job], workers: int, stopping: Callable[[], None]
) -> Generator[Outcome, None, None]:
    """Run jobs in so many processes of this machine; yield how each ended, as it ends.

    A process that dies is a failed job, and is replaced. When the caller stops early, the processes
    are ended, politely at first: their runs keep what they recorded. `stopping` is called before
    that, as it takes seconds.
    """
    todo: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
        todo.put(job)
    ended: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
    seats = [_Seat(folder, todo, ended) for _ in range(min(workers, len(jobs)))]
    try:
        for _ in jobs:
            outcome = _get(ended)
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome
    except (KeyboardInterrupt, GeneratorExit):
        stopping()
        raise
    finally:
        for seat in seats:
            seat.stop()
        until = time.monotonic() + PATIENCE_S
        for seat in seats:
            seat.join(until)


def _get(ended: "queue.SimpleQueue[Outcome | BaseException]") -> Outcome | BaseException:
    while True:  # short waits, so that Ctrl-C is heard
        with contextlib.suppress(queue.Empty):
            return ended.get(timeout=0.2)


class _Seat:
    """A thread of the parent with one process, to which it hands job after job."""

    def __init__(
        self,
        folder: Path,
        todo: "queue.SimpleQueue[Job]",
        ended: "queue.SimpleQueue[Outcome | BaseException]",
    ) -> None:
        self.folder = folder
        self.todo = todo
        self.ended = ended
        self.stopped = False
        self.busy = False
        self.process: BaseProcess | None = None
        self.line: Connection | None = None
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Ask the process to end what it does; one that does nothing ends by itself."""
        self.stopped = True
        if self.busy and self.process is not None and self.process.is_alive():
            self.process.terminate()

    def join(self, until: float) -> None:
        """Wait for thread and process; kill the process if it is still there then."""
        self.thread.join(max(0.0, until - time.monotonic()))
        if self.thread.is_alive() and self.process is not None:
            self.process.kill()
        self.thread.join()

    def _work(self) -> None:
        try:
            while not self.stopped:
                try:
                    job = self.todo.get_nowait()
                except queue.Empty:
                    break
                self.busy = True
                outcome = self._run(job)
                self.busy = False
                self.ended.put(outcome)
                if self.process is not None and _resident(self.process) > MOST_MEMORY:
                    self._let_go()
            self._let_go()
        except BaseException as error:
            self.ended.put(error)

    def _run(self, job: Job) -> Outcome:
        start = time.perf_counter()
        if self.process is None or not self.process.is_alive() or self.line is None:
            self.line, other = _SPAWN.Pipe()
            arguments = (other, str(self.folder))
            self.process = _SPAWN.Process(target=_serve, args=arguments, daemon=True)
            self.process.start()
            other.close()
        try:
            self.line.send((job.digest, job.experiment.model_dump_json()))
            outcome: Outcome = self.line.recv()
        except (EOFError, OSError):
            self.process.join()
            spent = time.perf_counter() - start
            reason = f"its process ended with exit code {self.process.exitcode}"
            if self.stopped:  # it is not over: the next call goes on with it
                return Outcome(
                    digest=job.digest, status="failed", reason=reason, refused={}, seconds=spent
                )
            return failed(self.folder, job.digest, reason, spent)
        return outcome

    def _let_go(self) -> None:
        """End the process: it hears that its line is closed, and is killed if it stays."""
        if self.line is not None:
            self.line.close()
        if self.process is not None:
            self.process.join(PATIENCE_S)
            if self.process.is_alive():
                self.process.kill()
                self.process.join()


def _resident(process: BaseProcess) -> int:
    """Return the bytes of memory that a process holds; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        pages = Path(f"/proc/{process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _serve(line: Connection, folder: str) -> None:
    """Run what comes over the line, until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent; it ends its workers
    signal.signal(signal.SIGTERM, _interrupt)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            digest, text = line.recv()
            line.send(run_job(Path(folder), digest, Experiment.model_validate_json(text)))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # nobody waits for the result any more


def on_ray(
    folder: Path, jobs: Sequence[Job], workers: int, address: str, stopping: Callable[[], None]
) -> Generator[Outcome, None, None]:
    """Run jobs on a Ray cluster, a core each; yield how each ended, as it ends.

    `stopping` is called when the caller stops early. Every machine of the cluster must see the
    folder of the sweep under the same path.

    Raises:
        ConfigError: There is no such cluster.
    """
    import ray
    from ray.exceptions import RayError

    from fedsim.engines.ray import environment, join_cluster

    join_cluster(address, workers)
    remote = ray.remote(run_job).options(
        num_cpus=1, max_retries=0, runtime_env=environment(address)
    )
    try:
        running: dict[Any, Job] = {
            remote.remote(folder.resolve(), job.digest, job.experiment): job for job in jobs
        }
        while running:
            ready, _ = ray.wait(list(running), timeout=1.0)
            for one in ready:
                job = running.pop(one)
                try:
                    yield ray.get(one)
                except RayError as error:
                    said = str(error).strip().splitlines()[-1]
                    yield failed(folder, job.digest, f"its worker was lost: {said}", 0.0)
    except (KeyboardInterrupt, GeneratorExit):
        stopping()
        raise
    finally:
        ray.shutdown()
