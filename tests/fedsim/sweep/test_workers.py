"""Jobs in processes that must end when told to, and on a Ray cluster."""

import contextlib
import gc
import multiprocessing
import os
import signal
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from fedsim.sweep.cells import cells_of, jobs_of
from fedsim.sweep.config import parse_sweep
from fedsim.sweep.job import Outcome
from fedsim.sweep.workers import in_processes, on_ray

TINY: dict[str, object] = {
    "experiment": {"rounds": 1, "model": {"name": "mlp"}, "partition": {"clients": 2}},
    "attackers": {"plain": {"name": "linear", "time_budget_s": 5}},
}


def _deaf(line: Connection, folder: str) -> None:
    """Take a job, and go on with it whatever one is asked politely."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    line.recv()
    (Path(folder) / "deaf").touch()
    time.sleep(60)
    (Path(folder) / "lasted").touch()


def test_a_run_that_does_not_end_when_it_is_asked_to_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object) -> None:
        while not (tmp_path / "deaf").is_file():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr("fedsim.sweep.workers._serve", _deaf)
    monkeypatch.setattr("fedsim.sweep.workers._get", interrupted)
    monkeypatch.setattr("fedsim.sweep.workers.PATIENCE_S", 0.2)
    jobs = jobs_of(cells_of(parse_sweep({"name": "tiny", "cells": [{"label": "one"}]} | TINY)))
    said: list[int] = []

    def stopping() -> None:
        said.append(len(multiprocessing.active_children()))

    with pytest.raises(KeyboardInterrupt):
        list(in_processes(tmp_path, jobs[:1], 1, stopping))

    assert said == [1]  # once, and while it was still at work
    assert multiprocessing.active_children() == []
    assert not (tmp_path / "lasted").exists()
    assert not (tmp_path / "jobs").exists()  # nothing says that it is over


def _names_itself(line: Connection, folder: str) -> None:
    """Take jobs, and say of each which process had it."""
    with contextlib.suppress(EOFError):
        while True:
            digest, _ = line.recv()
            me = str(os.getpid())
            line.send(
                Outcome(digest=digest, status="done", reason=me, refused={}, seconds=0.0),
            )


def test_a_process_that_holds_too_much_memory_is_replaced_between_two_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsim.sweep.workers._serve", _names_itself)
    monkeypatch.setattr("fedsim.sweep.workers.MOST_MEMORY", 0)
    two = {"name": "tiny", "seeds": [0, 1], "cells": [{"label": "one"}]}
    jobs = jobs_of(cells_of(parse_sweep(two | TINY)))[:2]

    outcomes = list(in_processes(tmp_path, jobs, 1, lambda: None))

    assert [one.status for one in outcomes] == ["done"] * 2
    assert len({one.reason for one in outcomes}) == 2
    assert multiprocessing.active_children() == []


def _will_not_end(line: Connection, folder: str) -> None:
    """Take jobs; stay when there are none any more."""
    _names_itself(line, folder)
    time.sleep(3600)


def test_a_process_that_does_not_end_is_killed_and_its_job_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsim.sweep.workers._serve", _will_not_end)
    monkeypatch.setattr("fedsim.sweep.workers.PATIENCE_S", 0.3)
    monkeypatch.setattr("fedsim.sweep.workers.MOST_MEMORY", 0)
    two = {"name": "tiny", "seeds": [0, 1], "cells": [{"label": "one"}]}
    jobs = jobs_of(cells_of(parse_sweep(two | TINY)))[:2]

    outcomes = list(in_processes(tmp_path, jobs, 1, lambda: None))

    assert [one.status for one in outcomes] == ["done"] * 2
    assert multiprocessing.active_children() == []


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray leaves handles of its own processes to the collector
def test_a_cluster_runs_the_jobs_and_a_bad_one_fails_alone(tmp_path: Path) -> None:
    sweep = parse_sweep(
        {
            "name": "tiny",
            "cells": [
                {"label": "good"},
                {"label": "too large", "set": {"training.batch_size": 100_000}},
            ],
        }
        | TINY
    )
    jobs = jobs_of(cells_of(sweep))

    with warnings.catch_warnings(action="ignore"):
        ended = {one.digest: one for one in on_ray(tmp_path, jobs, 2, "local", lambda: None)}
        gc.collect()

    good, bad = (ended[job.digest] for job in jobs)
    assert good.status == "done"
    assert (tmp_path / good.run / "summary.json").is_file()
    assert bad.status == "failed"
    assert bad.reason is not None
    assert "training.batch_size must be at most" in bad.reason
