"""The server of the page: where it listens, and how it ends."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from fedsim.errors import ConfigError
from fedsim.watch import server
from fedsim.watch.server import exposed, listen, serve
from tests.fedsim.watch.serving import Serving
from tests.fedsim.watch.synthetic import Made


@pytest.fixture
def made(tmp_path: Path) -> Made:
    made = Made(tmp_path / "run", rounds=10, clients=4)
    made.begin()
    made.play(1)
    return made


def taken() -> socket.socket:
    found = socket.socket()
    found.bind(("127.0.0.1", 0))
    found.listen()
    return found


def test_the_next_port_is_taken_when_the_usual_one_is_not_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with taken() as other:
        port = other.getsockname()[1]
        monkeypatch.setattr(server, "PORT", port)

        with listen("127.0.0.1", None) as found:
            assert port < found.getsockname()[1] <= port + server.TRIES


def test_a_port_that_was_asked_for_and_is_taken_is_an_error(made: Made) -> None:
    with taken() as other:
        port = other.getsockname()[1]

        with pytest.raises(ConfigError, match=f"port {port} is taken; choose another with --port"):
            serve(made.run.root, port=port, announce=print)


def test_an_address_that_is_not_this_machines_is_an_error(made: Made) -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on '203\.0\.113\.7'"):
        serve(made.run.root, host="203.0.113.7", port=0, announce=print)


def test_what_can_never_be_a_run_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()

    with pytest.raises(ConfigError, match="is a file; give a run directory"):
        serve(file, announce=print)
    with pytest.raises(ConfigError, match="nor a folder that it could appear in"):
        serve(tmp_path / "no" / "run", announce=print)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("page", True)],  # noqa: S104
)
def test_an_address_that_others_may_reach_is_told_as_one(host: str, expected: bool) -> None:
    assert exposed(host) is expected


def test_it_ends_at_once_though_a_page_is_open(made: Made) -> None:
    serving = Serving(made.run.root)
    with urlopen(f"{serving.address}/events") as stream:  # noqa: S310 - it never ends by itself
        assert stream.readline() == b"retry: 1000\n"
        while not stream.readline().startswith(b"data: "):
            pass

        assert serving.stop() < 8  # a stream that goes on would hold it for 10

    serving.start()  # at the same port, at once
    with urlopen(f"{serving.address}/health") as answer:  # noqa: S310
        assert answer.read() == b"ok"
    serving.stop()


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM])
def test_the_command_says_where_it_is_and_ends_without_a_complaint(
    made: Made, kill: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fedsim.cli", "watch", str(made.run.root), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        with urlopen(f"{address}/events", timeout=60) as stream:  # noqa: S310
            stream.readline()
            time.sleep(0.5)
            process.send_signal(kill)
            out, complaint = process.communicate(timeout=60)
    finally:
        process.kill()

    assert address.startswith("http://127.0.0.1:")
    assert (process.returncode, out, complaint) == (0, "", "")
