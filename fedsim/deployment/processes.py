"""Processes that we start, watch, and end with everything they started."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsim.catalog import search_path
from fedsim.deployment.tied import TIED
from fedsim.errors import RunFailed

LAST_LINES = 8
"""Lines of a log that an error message quotes."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
POLITE_S = 5.0
"""Seconds that processes have to end by themselves."""


@dataclass(frozen=True)
class Part:
    """One process of a deployment.

    Attributes:
        name: How people call it: `superlink`, `supernode-3`, ...
        process: It.
        log: What it says.
    """

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def ended(self) -> int | None:
        """Its exit code, if it ended."""
        return self.process.poll()

    def last_words(self) -> str:
        """Return the last lines that it said."""
        said = _COLOUR.sub("", self.log.read_text(errors="replace")).strip().splitlines()
        return "\n".join(said[-LAST_LINES:]) or "it said nothing"


def start(name: str, module: str, arguments: Sequence[str], *, home: Path, logs: Path) -> Part:
    """Start one of our programs as a process whose life is tied to ours.

    Args:
        name: How people call it.
        module: Python module of the program.
        arguments: Its options.
        home: Folder for what Flower keeps.
        logs: Folder for what it says; a program started again goes on with the same log.
    """
    log = logs / f"{name}.log"
    with log.open("ab") as file:
        process = subprocess.Popen(
            # -P: where we are, which may be a run of somebody else, is no place for code
            [sys.executable, "-P", "-m", module, *arguments],
            env=environment(home) | {TIED: "1"},
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # its whole family is ended together; Ctrl-C is for us alone
        )
    return Part(name, process, log)


def end(parts: Iterable[Part]) -> None:
    """End processes and everything they started, all at once: politely, then by force."""
    parts = list(parts)
    for polite, patience_s in ((signal.SIGTERM, POLITE_S), (signal.SIGKILL, POLITE_S)):
        for part in parts:
            # also where it ended by itself: what it started may be left
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(part.process.pid, polite)
        deadline = time.monotonic() + patience_s
        for part in parts:
            with contextlib.suppress(subprocess.TimeoutExpired):
                part.process.wait(max(0.0, deadline - time.monotonic()))
    for part in parts:
        if part.process.stdin is not None:
            part.process.stdin.close()


def wait_until(
    ready: Callable[[], bool], part: Part, *, timeout_s: float, poll_s: float = 0.05
) -> None:
    """Wait until a process does what it should.

    Raises:
        RunFailed: It ended, or took too long; the message quotes its last lines.
    """
    deadline = time.monotonic() + timeout_s
    while part.ended is None:
        if ready():
            return
        if time.monotonic() > deadline:
            raise RunFailed(
                f"{part.name} was not ready after {timeout_s:g} s; it said:\n{part.last_words()}"
            )
        time.sleep(poll_s)
    raise RunFailed(f"{part.name} ended with code {part.ended}; it said:\n{part.last_words()}")


def answers(address: str) -> bool:
    """Whether somebody takes connections at `HOST:PORT`."""
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1.0):
        return True
    return False


def free_ports(number: int) -> list[int]:
    """Return ports of the loopback address that nobody uses now, all different."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def environment(home: Path) -> dict[str, str]:
    """Return the environment of Flower's programs: a home of their own, no telemetry, no proxy."""
    proxies = ("http_proxy", "https_proxy", "all_proxy")  # httpx would send loopback through them
    kept = {name: value for name, value in os.environ.items() if name.lower() not in proxies}
    return kept | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": search_path(),
    }
