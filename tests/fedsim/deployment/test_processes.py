"""Processes that a deployment starts, watches and ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedsim.deployment import processes
from fedsim.deployment.processes import Part
from fedsim.deployment.tied import TIED
from fedsim.errors import RunFailed

PROGRAM = """
import subprocess, sys, threading
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("\\x1b[92mstarted\\x1b[0m", child.pid, flush=True)
threading.Event().wait()
"""


def lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def gone(process: int, within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while lives(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module `program` that starts a child of its own and then waits."""
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def start(folder: Path, module: str = "program") -> Part:
    return processes.start("some", module, [], home=folder, logs=folder)


def child_of(part: Part) -> int:
    processes.wait_until(lambda: "started" in part.log.read_text(), part, timeout_s=30.0)
    return int(part.last_words().split()[-1])


def test_a_part_is_ended_with_everything_that_it_started(program: Path) -> None:
    part = start(program)
    child = child_of(part)

    processes.end([part])

    assert part.ended == -signal.SIGTERM
    assert gone(child)


def test_what_a_part_left_behind_when_it_died_is_ended_too(program: Path) -> None:
    part = start(program)
    child = child_of(part)
    os.kill(part.process.pid, signal.SIGKILL)
    part.process.wait()
    assert lives(child)

    processes.end([part])

    assert gone(child)


def test_code_that_lies_in_the_current_directory_is_not_run(
    program: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path_factory.mktemp("here")
    (here / "program.py").write_text("print('started in a strange place')")
    monkeypatch.chdir(here)
    part = start(program)
    try:
        assert child_of(part)
    finally:
        processes.end([part])


STUBBORN = """
import signal, threading
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("started", 0, flush=True)
threading.Event().wait()
"""


def test_a_part_that_does_not_listen_is_ended_by_force(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "POLITE_S", 0.2)
    (program / "program.py").write_text(STUBBORN)
    part = start(program)
    child_of(part)

    processes.end([part])

    assert part.ended == -signal.SIGKILL


def test_last_words_are_for_people(program: Path) -> None:
    part = start(program)
    child_of(part)
    processes.end([part])

    assert part.last_words().startswith("started ")
    part.log.write_text("")
    assert part.last_words() == "it said nothing"
    part.log.write_text("\n".join(str(number) for number in range(100)))
    assert part.last_words().split() == [str(number) for number in range(92, 100)]


def test_waiting_for_a_part_that_dies_ends_with_its_last_words(program: Path) -> None:
    (program / "program.py").write_text("raise SystemExit('the port is taken')")
    part = start(program)

    with pytest.raises(RunFailed, match="some ended with code 1; it said:\nthe port is taken"):
        processes.wait_until(lambda: False, part, timeout_s=30.0)
    processes.end([part])


def test_waiting_for_a_part_ends_some_time(program: Path) -> None:
    part = start(program)
    try:
        child_of(part)
        with pytest.raises(RunFailed, match=r"some was not ready after 0\.1 s; it said:\nstarted"):
            processes.wait_until(lambda: False, part, timeout_s=0.1)
    finally:
        processes.end([part])


TIED_PROGRAM = """
import threading
from fedsim.deployment.tied import tie
tie()
print("started", 0, flush=True)
threading.Event().wait()
"""
PARENT = """
import pathlib, sys, time
from fedsim.deployment import processes
folder = pathlib.Path(sys.argv[1])
part = processes.start("some", "program", [], home=folder, logs=folder)
processes.wait_until(lambda: "started" in part.log.read_text(), part, timeout_s=30.0)
print(part.process.pid, flush=True)
time.sleep(600)
"""


def test_a_part_ends_when_whoever_started_it_is_killed(program: Path) -> None:
    (program / "program.py").write_text(TIED_PROGRAM)
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(program)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(program), *sys.path])},
    ) as parent:
        assert parent.stdout is not None
        part = int(parent.stdout.readline())
        assert lives(part)

        parent.kill()

    assert gone(part)


def test_a_program_started_by_hand_is_tied_to_nobody(program: Path) -> None:
    (program / "program.py").write_text(TIED_PROGRAM)
    untied = {name: text for name, text in os.environ.items() if name != TIED}
    with subprocess.Popen(
        [sys.executable, "-m", "program"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=untied | {"PYTHONPATH": os.pathsep.join([str(program), *sys.path])},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"started")
        time.sleep(0.3)

        assert process.poll() is None
        process.kill()


def test_free_ports_are_all_different() -> None:
    ports = processes.free_ports(20)

    assert len(set(ports)) == 20
    assert not any(processes.answers(f"127.0.0.1:{port}") for port in ports[:3])


def test_flowers_programs_are_told_nothing_of_proxies_and_tell_nobody_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example")

    told = processes.environment(tmp_path)

    assert not any("proxy" in name.lower() for name in told)
    assert told["FLWR_TELEMETRY_ENABLED"] == "0"
    assert told["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert told["FLWR_HOME"] == str(tmp_path)
