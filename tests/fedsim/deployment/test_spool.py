"""Attacks by workers in another container: every job is done once, whoever dies."""

import json
import os
from pathlib import Path

import pytest

from fedsim.deployment import spool
from fedsim.deployment.spool import (
    LEASE_S,
    MOST_TRIES,
    PATIENCE_S,
    STAND_IN_S,
    SpoolPool,
    SpoolWorker,
    tell_end,
)
from fedsim.files import Record, replace_json
from fedsim.pool import Job
from fedsim.records import RunDirectory


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Inner:
    """Where a worker's attacks run: they end when the test says so."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.jobs: list[Job] = []
        self.answers: list[Record] = []

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def finish(self, status: str = "done") -> None:
        for job in self.jobs:
            for one in job.observations:
                stem = f"{one}--{job.attack}"
                replace_json(self.run.root / "reconstructions" / f"{stem}.json", {})
                self.answers.append(
                    {"observation": one, "attack": job.attack, "status": status, "reason": None}
                )
        self.jobs.clear()

    def poll(self) -> list[Record]:
        answers, self.answers = self.answers, []
        return answers

    @property
    def waiting(self) -> int:
        return len(self.jobs)

    def close(self) -> None:
        pass


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path, "spooled")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pool(run: RunDirectory, clock: Clock) -> SpoolPool:
    return SpoolPool(run, clock)


def job(*observations: str) -> Job:
    return Job(observations or ("round-00001-client-0",), "dlg", 10.0)


def later(folder: Path, name: str) -> None:
    """Let a worker's sign change, whatever the clock of this machine does."""
    path = next(folder.glob(name))
    stamp = path.stat().st_mtime_ns + 1_000_000_000
    os.utime(path, ns=(stamp, stamp))


def test_a_job_goes_to_a_worker_and_its_answer_comes_back(
    run: RunDirectory, pool: SpoolPool
) -> None:
    inner = Inner(run)
    worker = SpoolWorker(run, inner, 1)
    pool.submit(job("a", "b"))

    worker.step()
    assert inner.jobs == [job("a", "b")]
    assert pool.poll() == []
    assert pool.waiting == 2
    inner.finish()
    worker.step()

    assert [one["observation"] for one in pool.poll()] == ["a", "b"]
    assert pool.waiting == 0
    assert not list(pool.folder.glob("0*"))  # nothing of it is left


def test_two_workers_never_have_the_same_job(run: RunDirectory, pool: SpoolPool) -> None:
    first, second = Inner(run), Inner(run)
    one, other = SpoolWorker(run, first, 2), SpoolWorker(run, second, 2)
    for number in range(4):
        pool.submit(job(f"o{number}"))

    for worker in (one, other, one, other):
        worker.step()

    taken = [each.observations[0] for each in (*first.jobs, *second.jobs)]
    assert sorted(taken) == ["o0", "o1", "o2", "o3"]
    assert len(first.jobs) == len(second.jobs) == 2


def test_the_work_of_a_worker_that_died_is_taken_up_again(
    run: RunDirectory, pool: SpoolPool, clock: Clock
) -> None:
    SpoolWorker(run, Inner(run), 1)
    dead, alive = SpoolWorker(run, Inner(run), 1), SpoolWorker(run, inner := Inner(run), 1)
    pool.submit(job())
    dead.step()
    pool.poll()

    clock.now = LEASE_S + 1  # and no sign of it
    assert pool.poll() == []
    alive.step()
    inner.finish()
    alive.step()

    assert [one["status"] for one in pool.poll()] == ["done"]
    assert [event["kind"] for event in run.events()] == ["attack-worker-lost"]


def test_a_worker_that_shows_signs_of_life_keeps_its_job_for_as_long_as_it_takes(
    run: RunDirectory, pool: SpoolPool, clock: Clock
) -> None:
    worker = SpoolWorker(run, Inner(run), 1)
    pool.submit(job())
    worker.step()

    for _ in range(20):
        clock.now += LEASE_S - 1
        later(pool.folder, "*.taken.json")
        pool.poll()

    assert not run.events()
    assert list(pool.folder.glob("*.taken.json"))


def test_a_job_that_ends_its_workers_is_given_up(
    run: RunDirectory, pool: SpoolPool, clock: Clock
) -> None:
    pool.submit(job())
    answers: list[Record] = []

    for _ in range(MOST_TRIES):
        SpoolWorker(run, Inner(run), 1).step()
        pool.poll()
        clock.now += LEASE_S + 1
        answers += pool.poll()

    assert [one["reason"] for one in answers] == [f"{MOST_TRIES} attack workers died of it"]
    assert answers[0]["lost"]


def test_an_answer_of_a_worker_whose_job_was_given_to_another_is_not_taken_twice(
    run: RunDirectory, pool: SpoolPool, clock: Clock
) -> None:
    slow, quick = Inner(run), Inner(run)
    stalled, other = SpoolWorker(run, slow, 1), SpoolWorker(run, quick, 1)
    pool.submit(job())
    stalled.step()
    pool.poll()
    clock.now = LEASE_S + 1
    pool.poll()
    other.step()
    quick.finish()
    other.step()
    assert len(pool.poll()) == 1

    slow.finish()
    stalled.step()

    assert pool.poll() == []
    assert not list(pool.folder.glob("0*"))


def test_where_no_worker_is_there_it_brings_one_of_its_own(run: RunDirectory, clock: Clock) -> None:
    inner = Inner(run)
    pool = SpoolPool(run, clock, stand_in=lambda: SpoolWorker(run, inner, 1))
    clock.now = STAND_IN_S + 1
    assert pool.poll() == []
    pool.submit(job())
    pool.poll()
    assert run.events() == []  # nothing waited so far, so nobody is missing

    clock.now += STAND_IN_S + 1
    pool.poll()
    pool.poll()
    inner.finish()
    answered = [*pool.poll(), *pool.poll()]

    assert [one["status"] for one in answered] == ["done"]
    assert [event["kind"] for event in run.events()] == ["attack-stand-in"]
    clock.now += 2 * PATIENCE_S
    pool.submit(job("another"))
    later(pool.folder, "worker-*")
    pool.poll()
    assert pool.waiting == 1  # its own worker shows signs of life as any other
    pool.close()
    assert not list(pool.folder.glob("worker-*"))


def test_a_job_after_long_silence_is_waited_for_until_somebody_did_it(
    run: RunDirectory, clock: Clock
) -> None:
    inner = Inner(run)
    pool = SpoolPool(run, clock, stand_in=lambda: SpoolWorker(run, inner, 1))
    clock.now = 2 * PATIENCE_S  # rounds that the adversary does not hear
    pool.submit(job())
    assert pool.waiting == 1

    clock.now += STAND_IN_S + 1
    pool.poll()

    assert pool.own is not None
    assert pool.waiting == 1  # it has only just begun
    clock.now += 2 * PATIENCE_S  # and may be too busy to show signs of life
    assert pool.waiting == 1
    assert [event["kind"] for event in run.events()] == ["attack-stand-in"]


def test_a_worker_has_time_to_come_after_long_silence(
    run: RunDirectory, pool: SpoolPool, clock: Clock
) -> None:
    clock.now = 2 * PATIENCE_S
    pool.submit(job())

    clock.now += PATIENCE_S

    assert pool.waiting == 1
    clock.now += 1
    assert pool.waiting == 0


def test_a_job_that_goes_while_it_is_taken_does_not_end_the_worker(
    run: RunDirectory, pool: SpoolPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = SpoolWorker(run, inner := Inner(run), 1)
    pool.submit(job())
    rename = Path.rename

    def then_it_goes(self: Path, target: Path) -> Path:
        rename(self, target).unlink()
        return target

    monkeypatch.setattr(Path, "rename", then_it_goes)

    worker.step()

    assert inner.jobs == []


def test_while_a_worker_is_there_nobody_stands_in_for_it(run: RunDirectory, clock: Clock) -> None:
    def never() -> SpoolWorker:
        raise AssertionError("somebody was there")

    pool = SpoolPool(run, clock, stand_in=never)
    worker = SpoolWorker(run, Inner(run), 1)
    worker.step()
    pool.poll()
    pool.submit(job())

    for _ in range(5):
        clock.now += STAND_IN_S - 1
        later(pool.folder, "worker-*")
        pool.poll()

    assert run.events() == []


def test_a_worker_that_is_told_to_go_gives_its_jobs_back(
    run: RunDirectory, pool: SpoolPool
) -> None:
    worker = SpoolWorker(run, Inner(run), 1)
    pool.submit(job())
    worker.step()

    worker.end()

    assert list(pool.folder.glob("*.job.json"))
    assert not list(pool.folder.glob("worker-*"))


def test_where_no_worker_comes_nobody_waits_for_ever(
    run: RunDirectory, pool: SpoolPool, clock: Clock
) -> None:
    pool.submit(job())
    clock.now = PATIENCE_S
    assert pool.waiting == 1

    clock.now = PATIENCE_S + 1

    assert pool.waiting == 0
    assert pool.waiting == 0
    assert [event["kind"] for event in run.events()] == ["attack-worker-missing"]


def test_a_sign_that_an_earlier_worker_left_is_no_sign_of_life(
    run: RunDirectory, clock: Clock
) -> None:
    SpoolPool(run, clock)
    SpoolWorker(run, Inner(run), 1).step()
    pool = SpoolPool(run, clock)
    pool.submit(job())

    for _ in range(10):
        clock.now += PATIENCE_S / 5
        pool.poll()

    assert pool.waiting == 0


def test_a_worker_goes_when_the_run_is_over_and_not_because_an_earlier_one_was(
    run: RunDirectory, pool: SpoolPool
) -> None:
    early = SpoolWorker(run, Inner(run), 1)
    pool.close()
    late = SpoolWorker(run, Inner(run), 1)
    assert early.over
    assert not late.over  # the run may be gone on with

    SpoolPool(run, Clock()).close()

    assert late.over


def test_a_worker_goes_when_the_run_is_over_also_if_the_clock_was_set_back(
    run: RunDirectory, pool: SpoolPool
) -> None:
    worker = SpoolWorker(run, Inner(run), 1)
    pool.close()
    os.utime(pool.folder / "over.json", (0, 0))

    assert worker.over


def test_a_worker_that_comes_when_the_run_is_done_goes_again(
    run: RunDirectory, pool: SpoolPool
) -> None:
    pool.close()
    tell_end(run, "done")

    assert SpoolWorker(run, Inner(run), 1).over


@pytest.mark.parametrize(
    "written",
    [
        "[]",
        "{",
        '{"answers": 3}',
        '{"answers": []}',
        '{"answers": [{"observation": "../../truth/x", "attack": "dlg", "status": "done"}]}',
        '{"answers": [{"observation": ["a"]}]}',
        '{"answers": [null]}',
    ],
)
def test_an_answer_that_is_none_is_a_failed_attack_and_leads_nowhere(
    run: RunDirectory, pool: SpoolPool, written: str
) -> None:
    pool.submit(job("a"))
    (pool.folder / "000001.job.json").unlink()
    (pool.folder / "000001.answer.json").write_text(written)

    (answer,) = pool.poll()

    assert answer["observation"] == "a"
    assert answer["lost"]
    assert "cannot be read" in answer["reason"]


def test_an_answer_about_a_guess_that_nobody_wrote_is_a_failed_attack(
    run: RunDirectory, pool: SpoolPool
) -> None:
    pool.submit(job("a"))
    said = {"observation": "a", "attack": "dlg", "status": "done", "reason": None}
    (pool.folder / "000001.answer.json").write_text(json.dumps({"answers": [said]}))

    (answer,) = pool.poll()

    assert answer["lost"]
    assert answer["reason"] == "its worker wrote nothing down"


def test_a_pool_opened_on_a_run_that_was_interrupted_forgets_its_old_jobs(
    run: RunDirectory, pool: SpoolPool, clock: Clock
) -> None:
    pool.submit(job())

    again = SpoolPool(run, clock)

    assert again.waiting == 0
    assert not list(spool.folder_of(run).glob("*.job.json"))
