"""Processes that run attacks: whatever an attack does, the others go on."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from attacks.observation import Kind, Observation
from fedsim import pool as pool_module
from fedsim.config import parse_experiment
from fedsim.files import Record, replace_bytes, replace_json
from fedsim.pool import Job, ProcessPool
from fedsim.records import RunDirectory
from fedsim.truth import seal

OWN_ATTACKS = '''
import os
import time
from pathlib import Path
from attacks.observation import Reconstruction


class Attack:
    """Do one thing, then guess."""

    needs = frozenset()

    def __init__(self, does: str) -> None:
        self.does = does

    def __call__(self, seen, known, *, rng, budget=None):
        if self.does == "raise":
            raise ValueError("boom")
        if self.does == "print":
            print("to standard output")
            os.system("echo from another process")
            os.write(1, b"past Python\\n")
        if self.does == "peek":
            next((Path.cwd() / "truth").iterdir()).read_bytes()
        if self.does == "die":
            print("last words", flush=True)
            os._exit(7)
        if self.does == "sleep":
            time.sleep(3600)
        if self.does == "wait":
            started = Path.cwd().parent / "started"
            if not started.exists():
                started.touch()
                time.sleep(3600)
        return Reconstruction(inputs=seen.update["x"], labels=None)
'''

DEEDS = ("nothing", "raise", "print", "peek", "die", "sleep", "wait")
OBSERVATION = "round-00001-client-0-to-server"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunDirectory]:
    """A run with one observation, and an attack for each deed."""
    (tmp_path / "own.py").write_text(OWN_ATTACKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    attacks = "".join(
        f'[[attacks]]\nname = "own:Attack"\nlabel = "{deed}"\noptions = {{ does = "{deed}" }}\n'
        for deed in DEEDS
    )
    run = RunDirectory.create(tmp_path / "runs", "tiny")
    monkeypatch.chdir(run.root)  # workers start where their parent is
    replace_bytes(run.config, parse_experiment(f'name = "tiny"\n{attacks}').to_toml().encode())
    replace_json(run.root / "knowledge.json", {})
    run.write_observation(
        Observation(
            round=1,
            sender="client-0",
            receiver="server",
            kind=Kind.GRADIENT,
            update={"x": torch.ones(1, 1, 2, 2)},
        )
    )
    seal(run, 1, "client-0", torch.ones(1, 1, 2, 2), torch.tensor([1]))
    yield run
    sys.modules.pop("own", None)


def answers(pool: ProcessPool, jobs: list[Job]) -> list[Record]:
    """Submit jobs and wait for all answers."""
    for job in jobs:
        pool.submit(job)
    found: list[Record] = []
    while pool.waiting:
        found += pool.poll()
        time.sleep(0.02)
    return found


def job(deed: str, time_budget_s: float = 100.0) -> Job:
    return Job((OBSERVATION,), deed, time_budget_s)


def test_code_that_lies_in_the_current_directory_is_not_run_by_workers(run: RunDirectory) -> None:
    (run.root / "torch.py").write_text("from pathlib import Path; Path('ran').touch()")
    pool = ProcessPool(run, 1)
    try:
        found = answers(pool, [job("nothing")])
    finally:
        pool.close()

    assert [one["status"] for one in found] == ["done"]
    assert not (run.root / "ran").exists()


@pytest.mark.slow
def test_whatever_an_attack_does_it_alone_fails_and_the_others_go_on(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "GRACE_S", 0.25)
    pool = ProcessPool(run, 1)
    try:
        found = answers(
            pool,
            [
                job("nothing"),
                job("raise"),
                job("print"),
                job("peek"),
                job("die"),
                job("nothing"),
                job("sleep", time_budget_s=0.5),
                job("nothing"),
            ],
        )
    finally:
        pool.close()

    assert [(one["attack"], one["status"], one["reason"]) for one in found] == [
        ("nothing", "done", None),
        ("raise", "failed", "the attack crashed: ValueError: boom"),
        ("print", "done", None),
        (
            "peek",
            "failed",
            "the attack crashed: PermissionError: "
            "the truth is sealed: attack workers may not open it",
        ),
        ("die", "failed", "the attack worker died: exit code 7, last words"),
        ("nothing", "done", None),
        ("sleep", "failed", "it did not end within 1 s, and was ended"),
        ("nothing", "done", None),
    ]
    assert [one["attack"] for one in found if one.get("lost")] == ["die", "sleep"]
    written = {record["attack"]: record["status"] for record in run.reconstruction_records()}
    assert written == {"nothing": "done", "raise": "failed", "print": "done", "peek": "failed"}


@pytest.mark.slow
def test_the_work_of_a_worker_that_was_killed_is_taken_up_again(run: RunDirectory) -> None:
    pool = ProcessPool(run, 1)
    started = run.root.parent / "started"
    try:
        pool.submit(job("wait"))
        while not started.exists():
            assert pool.poll() == []
            time.sleep(0.02)
        first, shown = pool.workers[0], run.root / "progress"
        assert [path.stem for path in shown.iterdir()] == [first.shown]
        first.process.kill()  # as the system does for want of memory
        (shown / f".{first.shown}.safetensors.1.part").touch()
        [answer] = answers(pool, [])
        assert list(shown.iterdir()) == []
    finally:
        pool.close()

    assert (answer["attack"], answer["status"]) == ("wait", "done")
    [event] = run.events()
    assert event["kind"] == "attack-taken-up-again"
    assert "the attack worker died: exit code -9" in event["message"]


@pytest.mark.slow
def test_a_worker_that_died_while_it_had_nothing_to_do_costs_no_attack(run: RunDirectory) -> None:
    pool = ProcessPool(run, 1)
    try:
        first = pool.workers[0].process
        assert answers(pool, [job("nothing")])[0]["status"] == "done"
        first.kill()
        first.wait()

        assert answers(pool, [job("print")])[0]["status"] == "done"
        assert pool.workers[0].process.pid != first.pid
    finally:
        pool.close()


@pytest.mark.slow
def test_closing_ends_the_workers_and_drops_what_is_queued(run: RunDirectory) -> None:
    pool = ProcessPool(run, 2)
    processes = [worker.process for worker in pool.workers]
    for one in [job("sleep"), job("sleep"), job("nothing")]:
        pool.submit(one)
    assert pool.poll() == []
    assert pool.waiting == 3

    pool.close()

    assert [process.returncode for process in processes] == [-9, -9]
    assert not list((run.root / "progress").glob("*"))
    assert run.reconstruction_records() == []


@pytest.mark.slow
def test_a_worker_that_cannot_start_fails_its_job_with_the_reason(run: RunDirectory) -> None:
    (run.root / "knowledge.json").unlink()
    pool = ProcessPool(run, 1)
    try:
        [answer] = answers(pool, [job("nothing")])
    finally:
        pool.close()

    assert (answer["status"], answer["lost"]) == ("failed", True)
    assert answer["reason"].startswith("the attack worker died: exit code 1, FileNotFoundError: ")


@pytest.mark.slow
def test_a_guess_that_cannot_be_written_fails_with_the_reason(run: RunDirectory) -> None:
    # a directory in the way of the record stands for a full disk or a missing permission
    (run.root / "reconstructions" / f"{OBSERVATION}--nothing.json").mkdir()
    pool = ProcessPool(run, 1)
    try:
        [answer] = answers(pool, [job("nothing")])
    finally:
        pool.close()

    assert (answer["status"], answer["lost"]) == ("failed", True)
    assert "IsADirectoryError" in answer["reason"]


def test_a_job_may_take_its_budget_half_again_and_some_grace() -> None:
    assert job("nothing", 10.0).limit_s == 15.0 + pool_module.GRACE_S
    assert Job(("a", "b", "c"), "many", 10.0).limit_s == 45.0 + pool_module.GRACE_S
