"""Faults of a whole run: killed, gone on with twice, a clock that jumps."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

import fedsim
from clients.local_training import LocalUpdate, local_update
from fedsim import driver, lock
from fedsim.config import parse_experiment
from fedsim.engines.local import LocalGrid
from fedsim.errors import ConfigError, RunFailed
from fedsim.files import digest
from fedsim.records import RunDirectory
from server import rounds

OWN_ATTACK = '''
import os
import time
from pathlib import Path

import torch
from attacks.observation import Reconstruction, only


class Noise:
    """Guess noise."""

    needs = frozenset()

    def check(self, known):
        pass

    def __call__(self, seen, known, *, rng, budget=None):
        while (wait := os.environ.get("WAIT_FOR")) and not Path(wait).exists():
            time.sleep(0.05)
        shape = (only(seen).num_examples, *known.input_shape)
        return Reconstruction(inputs=torch.rand(shape, generator=rng), labels=None)
'''

EXPERIMENT = """
name = "tiny"
rounds = 4
partition = { clients = 3 }
model = { name = "mlp", options = { hidden = [6] } }
training = { batch_size = 2 }
adversary = { victims = [0] }
[[attacks]]
name = "own_noise:Noise"
label = "noise"
"""


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A tiny experiment with an attack of the user's own."""
    (tmp_path / "own_noise.py").write_text(OWN_ATTACK)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.toml"
    path.write_text(EXPERIMENT)
    yield path
    sys.modules.pop("own_noise", None)


class Nobody(LocalGrid):
    """Nodes that never answer."""

    def deliver(self, messages: Sequence[Message], timeout: float | None) -> list[Message]:
        return []


def came_to(root: Path) -> tuple[str, str]:
    run = RunDirectory(root)
    return digest(driver.final_weights(run)), run.views_sha256()


def reconstructed(root: Path) -> dict[str, str]:
    return {
        f"{one['observation']}/{one['attack']}": one["sha256"]
        for one in RunDirectory(root).reconstruction_records()
    }


def files_of(root: Path) -> dict[str, bytes]:
    """Everything in a run directory, by path."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def at_rest(root: Path) -> dict[str, bytes]:
    """Everything in a run directory, once nobody has written to it for a while."""
    deadline, found = time.monotonic() + 60, files_of(root)
    while time.monotonic() < deadline:
        time.sleep(0.5)
        before, found = found, files_of(root)
        if found == before:
            return found
    pytest.fail("it is still written to")


@pytest.mark.slow
def test_whatever_else_is_started_on_a_run_under_way_is_refused_and_changes_nothing(
    experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fedsim.run(experiment).directory
    one = rounds._Rounds.one
    held, go_on = threading.Event(), threading.Event()

    def wait_in_round_3(self: rounds._Rounds, number: int, arrays: object) -> object:
        if number == 3:
            held.set()
            assert go_on.wait(120)
        return one(self, number, arrays)  # type: ignore[arg-type]

    monkeypatch.setattr(rounds._Rounds, "one", wait_in_round_3)
    done: list[driver.RunResult] = []
    running = threading.Thread(target=lambda: done.append(fedsim.run(experiment)))
    running.start()
    try:
        assert held.wait(120)
        root = Path("runs/tiny-0002")
        deadline = time.monotonic() + 60
        while len(RunDirectory(root).scores()) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(RunDirectory(root).scores()) == 2  # the attacks on the first two rounds
        before = at_rest(root)
        for again in (driver.resume, driver.attack_again, driver.score_again):
            with pytest.raises(ConfigError, match=r"is in use by process \d+ on .*, running since"):
                again(root)
        assert files_of(root) == before
    finally:
        go_on.set()
        running.join(120)

    assert done[0].summary["status"] == "done"
    assert came_to(root) == came_to(whole)
    assert not (root / lock.NAME).exists()


def started(*arguments: str) -> subprocess.Popen[str]:
    """A `fedsim` of its own; its attacks wait for the file `go` if it resumes."""
    return subprocess.Popen(
        [sys.executable, "-m", "fedsim.cli", *arguments],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        | ({"WAIT_FOR": "go"} if "--resume" in arguments else {}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE if "--resume" in arguments else subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_of_two_that_take_over_a_killed_run_one_is_refused_and_nothing_is_lost(
    experiment: Path,
) -> None:
    more = ["rounds=30", "adversary.rounds=[1, 30]"]
    whole = fedsim.run(experiment, overrides=more).directory
    sets = [part for one in more for part in ("--set", one)]
    process = started("run", str(experiment), *sets)
    run = RunDirectory(Path("runs/tiny-0002"))
    deadline = time.monotonic() + 120
    while len(run.rounds() if run.root.exists() else []) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None  # or else nobody is killed
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    recorded, _, _ = (run.root / "rounds.jsonl").read_bytes().rpartition(b"\n")
    observed = {name: data for name, data in files_of(run.root).items() if "observations" in name}

    # the last attack waits, so that neither can be done before the other has come
    both = [started("run", "--resume", str(run.root)) for _ in range(2)]
    deadline = time.monotonic() + 120
    while all(one.poll() is None for one in both) and time.monotonic() < deadline:
        time.sleep(0.05)
    (second,) = [one for one in both if one.poll() is not None]
    (first,) = [one for one in both if one is not second]
    said = " ".join(second.communicate()[1].split())
    Path("go").touch()
    first.communicate(timeout=120)

    assert (first.returncode, second.returncode) == (0, 2)
    assert f"is in use by process {first.pid} on" in said
    assert came_to(run.root) == came_to(whole)
    assert reconstructed(run.root) == reconstructed(whole)
    assert (run.root / "rounds.jsonl").read_bytes().startswith(recorded)
    after = files_of(run.root)
    assert all(after[name] == data for name, data in observed.items() if ".part" not in name)
    taken_over = [one["message"] for one in run.events() if one["kind"] == "lock-taken-over"]
    assert len(taken_over) == 1
    assert taken_over[0].startswith(f"process {process.pid} on ")
    assert not (run.root / lock.NAME).exists()


@pytest.mark.parametrize("days", [400, -400], ids=["forward", "back"])
def test_a_clock_that_jumps_during_a_run_changes_nothing(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    expected = fedsim.run(experiment, overrides=["attacks=[]"]).directory
    clock, moved = time.time, [0.0]

    def trained(*args: Any, **more: Any) -> LocalUpdate:
        moved[0] = days * 86_400.0
        return local_update(*args, **more)

    monkeypatch.setattr("clients.app.local_update", trained)
    monkeypatch.setattr(time, "time", lambda: clock() + moved[0])
    monkeypatch.setattr(
        "flwr.app.message.message.now",
        lambda: datetime.now(UTC) + timedelta(seconds=moved[0]),
    )
    result = fedsim.run(experiment, overrides=["attacks=[]"])

    assert moved[0]
    assert came_to(result.directory) == came_to(expected)
    assert result.events == []
    assert 0 <= result.summary["seconds"]["total"] < 3600


def test_a_deadline_is_not_moved_with_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    tiny = parse_experiment(EXPERIMENT, overrides=["server.reply_timeout_s=0.3"])
    begun = time.monotonic()

    with pytest.raises(RunFailed, match=r"0 of 3 clients answered within 0\.3 s"):
        rounds.find_clients(Nobody(3), tiny)

    assert 0.3 <= time.monotonic() - begun < 60
