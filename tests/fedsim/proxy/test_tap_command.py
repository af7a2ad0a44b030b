"""`fedsim tap` and `python -m fedsim.proxy`: a relay from the command line."""

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fedsim.config import parse_experiment
from fedsim.proxy.traffic import read_traffic
from fedsim.records import RunDirectory
from fedsim.stages.prepare import check, write_plan


@pytest.mark.slow
@pytest.mark.parametrize("program", [["fedsim.cli", "tap"], ["fedsim.proxy"]], ids=" ".join)
def test_it_relays_until_it_is_told_to_end(tmp_path: Path, program: list[str]) -> None:
    run = RunDirectory.create(tmp_path, "tiny")
    write_plan(check(parse_experiment('name = "tiny"')), run)
    with socket.create_server(("127.0.0.1", 0)) as upstream:
        there = f"127.0.0.1:{upstream.getsockname()[1]}"
        places = ["--upstream", there, "--run", str(run.root), "--listen", "client-0@127.0.0.1:0"]
        process = subprocess.Popen(
            [sys.executable, "-m", *program, *places],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "200"},
            stderr=subprocess.PIPE,
        )
        with process:
            late = threading.Timer(60, process.kill)
            late.start()
            assert process.stderr is not None
            said = process.stderr.readline().decode()
            assert said.rstrip().endswith(f"to {there}")
            port = int(said.split(" to ")[0].rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port)) as node:
                node.sendall(b"\x16hello")
                held, _ = upstream.accept()
                assert held.recv(100) == b"\x16hello"
                process.send_signal(signal.SIGTERM)
                assert node.recv(1) == b""
                held.close()
            late.cancel()
        assert process.returncode == 0

    assert [(one["link"], one["bytes"]) for one in read_traffic(run.root)] == [("client-0", 6)]


def test_an_address_that_is_none_is_refused(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from fedsim.cli import app
    from fedsim.errors import ConfigError

    arguments = ["tap", "--upstream", "nowhere", "--run", str(tmp_path)]
    with pytest.raises(ConfigError, match="expected"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
