"""Flower's stock simulation runtime, for compatibility: the same apps as `flwr run .` starts.

A SuperLink of our own on a free port of the loopback address, with a home folder of its own, so
that nothing of it stays behind; `flwr run` submits an app that names our two components.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import tomli_w

from fedsim.catalog import CLIENT_APP
from fedsim.config import Experiment
from fedsim.deployment.processes import environment, free_ports
from fedsim.engines.ending import Ending
from fedsim.errors import RunFailed
from fedsim.pool import AttackPool, ProcessPool
from fedsim.records import RunDirectory
from fedsim.wire import run_config

SERVER_APP = "fedsim.engines.flwr_app:server_app"
START_S = 60.0
"""Seconds that the SuperLink may take to answer."""


class FlowerSimulation:
    """Flower's own simulation runtime, started for this run alone; slower, for compatibility."""

    def __init__(self, experiment: Experiment, run: RunDirectory) -> None:
        self.experiment = experiment
        self.run = run

    def open_pool(self) -> AttackPool:
        """Start the processes that run attacks."""
        return ProcessPool(self.run, self.experiment.engine.attack_workers)

    def train(self) -> None:
        """Run all rounds.

        Raises:
            RunFailed: Flower's runtime did not start, or the ServerApp failed.
        """
        with tempfile.TemporaryDirectory(prefix="fedsim-flwr-") as folder:
            home = Path(folder)
            (port,) = free_ports(1)
            ending = Ending(self.run, home)
            self._write_app(home / "app", ending)
            _write_home(home, port)
            with _superlink(home, port) as log:
                output = self._submit(home)
                self._check(ending, output, log)

    def close(self) -> None:
        """Nothing is left open."""

    def _write_app(self, folder: Path, ending: Ending) -> None:
        folder.mkdir()
        app = {
            "publisher": "fedsim",
            "components": {"serverapp": SERVER_APP, "clientapp": CLIENT_APP},
            "config": run_config(self.experiment, self.run) | ending.config,
        }
        project = {"name": "fedsim-run", "version": "1.0.0", "dependencies": []}
        text = tomli_w.dumps({"project": project, "tool": {"flwr": {"app": app}}})
        (folder / "pyproject.toml").write_text(text)

    def _submit(self, home: Path) -> str:
        engine = self.experiment.engine
        # the pool is as many actors as fit: ask for the share that leaves room for `workers`
        share = max(1, (os.cpu_count() or 1) // engine.workers)
        federation = (
            f"num-supernodes={self.experiment.partition.clients} "
            f"client-resources-num-cpus={share} "
            f"client-resources-num-gpus={engine.client_gpus} "
            "init-args-log-to-driver=false"
        )
        command = [_tool("flwr"), "run", str(home / "app"), "fedsim", "--stream"]
        done = subprocess.run(
            [*command, "--federation-config", federation],
            env=_environment(home),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.stdout

    def _check(self, ending: Ending, output: str, log: Path) -> None:
        if ending.good:
            return
        if ending.reason:
            raise RunFailed(ending.reason)
        rounds = self.run.rounds()
        reached = rounds[-1]["round"] if rounds else 0
        said = _reason(output.strip() or log.read_text(errors="replace").strip())
        raise RunFailed(
            f"Flower's runtime ended after round {reached} of {self.experiment.rounds}; "
            f"it said: {said}"
        )


def _reason(output: str) -> str:
    """Return the first error in the output of a program (tracebacks begin with the cause)."""
    lines = output.splitlines() or ["nothing"]
    errors = (line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line))
    return next(errors, lines[-1])


def _write_home(home: Path, port: int) -> None:
    superlink = {"default": "fedsim", "fedsim": {"address": f"127.0.0.1:{port}", "insecure": True}}
    (home / "config.toml").write_text(tomli_w.dumps({"superlink": superlink}))


def _environment(home: Path) -> dict[str, str]:
    return environment(home) | {
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "RAY_ADDRESS": "local",  # or it would join whatever cluster this machine has, or had
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


@contextlib.contextmanager
def _superlink(home: Path, port: int) -> Iterator[Path]:
    log = home / "superlink.log"
    command = [_tool("flower-superlink"), "--insecure", "--simulation"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=_environment(home),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # its whole family is ended together
        )
    try:
        _wait_until_ready(process, port, log)
        yield log
    finally:
        _end_family(process)


def _wait_until_ready(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1.0).close()
            return
        time.sleep(0.1)
    said = log.read_text(errors="replace").strip().splitlines()
    raise RunFailed(f"Flower's SuperLink did not start: {said[-1] if said else 'it said nothing'}")


def _end_family(process: "subprocess.Popen[bytes]") -> None:
    for polite, patience_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, polite)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)


def _tool(name: str) -> str:
    """Return the path of one of Flower's commands, beside the interpreter that runs us."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name
