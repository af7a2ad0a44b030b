"""One process at a time works on a run directory."""

import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fedsim import lock
from fedsim.errors import ConfigError
from fedsim.lock import NAME, locked

HOLDS = """
import sys, time
from pathlib import Path
from fedsim.lock import locked
with locked(Path(sys.argv[1]), "holding it"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_who_comes_second_is_told_who_is_there_and_nothing_is_left_in_the_end(
    tmp_path: Path,
) -> None:
    with locked(tmp_path, "running"):
        assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) == 0o600
        said = rf"is in use by process {os.getpid()} on .*, running since .*; wait until"
        with pytest.raises(ConfigError, match=said), locked(tmp_path, "scoring it"):
            pytest.fail("two hold the lock")

    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path, "again") as left_by:
        assert left_by is None


def test_a_lock_is_given_back_by_who_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path, "failing"):
        raise ZeroDivisionError

    with locked(tmp_path, "again") as left_by:
        assert left_by is None


def test_the_lock_of_a_killed_process_is_taken_over_by_name(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match=f"process {holder.pid} "), locked(tmp_path, "second"):
        pytest.fail("two hold the lock")

    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()

    with locked(tmp_path, "third") as left_by:
        assert str(left_by).startswith(f"process {holder.pid} on ")
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\0",
        b"[]",
        b'{"pid": "x"}',
        b'{"pid": 1e999}',
        b'{"pid": NaN}',
        b"{" * 5000,
        b"[" * 5000,
    ],
)
def test_a_note_that_cannot_be_read_keeps_nobody_out(tmp_path: Path, text: bytes) -> None:
    (tmp_path / NAME).write_bytes(text)

    with locked(tmp_path, "running") as left_by:
        assert left_by is None


def test_a_lock_is_no_way_to_a_file_elsewhere(tmp_path: Path) -> None:
    elsewhere = tmp_path / "precious"
    elsewhere.write_text("data")
    run = tmp_path / "run"
    run.mkdir()
    (run / NAME).symlink_to(elsewhere)

    with pytest.raises(ConfigError, match="cannot lock"), locked(run, "running"):
        pytest.fail("a link was followed")

    assert elsewhere.read_text() == "data"


def killed_pid() -> int:
    """Return the number of a process that is gone."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    return gone.pid


def test_who_comes_before_the_owner_has_signed_waits_for_its_name(tmp_path: Path) -> None:
    path = tmp_path / NAME
    note = {"host": socket.gethostname(), "since": "now", "doing": "running"}
    path.write_text(json.dumps({**note, "pid": killed_pid()}))

    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        signs = threading.Timer(0.3, lambda: path.write_text(json.dumps({**note, "pid": 1})))
        signs.start()
        with pytest.raises(ConfigError, match="in use by process 1 on"), locked(tmp_path, "second"):
            pytest.fail("two hold the lock")
        signs.join()


@pytest.mark.parametrize("killed", [True, False])
def test_an_owner_that_never_signs_keeps_others_out_without_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    monkeypatch.setattr(lock, "_NOTE_WITHIN_S", 0.05)
    path = tmp_path / NAME
    note = {"host": socket.gethostname(), "since": "now", "doing": "running", "pid": killed_pid()}
    path.write_text(json.dumps(note) if killed else "")

    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with (
            pytest.raises(ConfigError, match="in use by another process; wait"),
            locked(tmp_path, "second"),
        ):
            pytest.fail("two hold the lock")


def test_a_note_from_another_machine_is_believed(tmp_path: Path) -> None:
    path = tmp_path / NAME
    note = {"host": "elsewhere", "since": "now", "doing": "running", "pid": killed_pid()}
    path.write_text(json.dumps(note))

    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="on elsewhere, running"), locked(tmp_path, "second"):
            pytest.fail("two hold the lock")


def test_a_pipe_in_the_place_of_a_lock_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / NAME)

    with pytest.raises(ConfigError, match="it is no plain file"), locked(tmp_path, "running"):
        pytest.fail("a pipe was locked")
