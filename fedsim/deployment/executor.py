"""`python -m fedsim.deployment.executor`: plays the ClientApp of one SuperNode, or of several.

Flower starts a process for every message, which imports PyTorch anew each time. This one imports
it and our ClientApp once, and forks a process per SuperNode; each of them takes one message after
another over the SuperNode's Runtime API (Flower's `--isolation process`). It runs the ClientApp of
this installation, whatever app a SuperLink names: no server can bring code to a node.

A process that dies over a message is replaced at once, and its successor answers that message with
an error: the round goes on without that client.
"""

import argparse
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
from flwr.clientapp import ClientApp

from fedsim.catalog import PARTICIPANT, load
from fedsim.deployment import DEPLOYED_CLIENT_APP
from fedsim.deployment.flower_private import (
    CRASHED,
    TaskSource,
    message_from_bytes,
    message_to_bytes,
)
from fedsim.deployment.flower_waits import BUSY_S
from fedsim.deployment.tied import tie
from fedsim.engines.local import answer, failure

LOG = logging.getLogger(__name__)
HEARTBEAT_S = 10.0
"""Seconds between two signs of life while a message is worked on; Flower gives up after 60."""
RESTART_S = 0.2
"""Seconds before a process that died is replaced, so that one that cannot start does not spin."""


def serve(source: TaskSource, app: ClientApp, memo: Path) -> None:
    """Answer messages until ended.

    Args:
        source: Where they come from.
        app: What answers them.
        memo: A file that tells a successor what this process was at, if it dies.
    """
    _answer_for_predecessor(source, memo)
    while True:
        asked = time.monotonic()
        try:
            token = source.acquire()
        except httpx.TransportError:  # the SuperNode is not there yet, or is started anew
            time.sleep(BUSY_S)
            continue
        if token is None:
            # our SuperNodes let a request wait; one of Flower's own answers at once
            time.sleep(max(0.0, asked + BUSY_S - time.monotonic()))
            continue
        try:
            _answer(source, app, token, memo)
        except (httpx.HTTPError, RuntimeError) as error:
            LOG.warning("an answer could not be given: %s", error)
        memo.unlink(missing_ok=True)  # but not when this process dies of another error


def _answer(source: TaskSource, app: ClientApp, token: str, memo: Path) -> None:
    _write(memo, token, b"")
    task = source.take(token)
    with _heartbeat(source):
        reply = answer(app, task.message, task.context)
        if reply.has_error():
            LOG.warning("the ClientApp answered with an error: %s", reply.error.reason)
        _write(memo, token, message_to_bytes(reply))
        source.give(reply, task.context)


def _answer_for_predecessor(source: TaskSource, memo: Path) -> None:
    """Say what a predecessor was about to say when it died, or that it died before it knew."""
    if not memo.is_file():
        return
    token, _, said = memo.read_bytes().partition(b"\n")
    memo.unlink()
    try:
        if said:
            source.show(token.decode())
            reply = message_from_bytes(said)
        else:
            asked = source.ask_again(token.decode())
            reply = failure(asked, CRASHED, "the process of the ClientApp died")
        source.give(reply, None)
    except (httpx.HTTPError, RuntimeError) as error:  # it may be another SuperNode by now
        LOG.warning("a predecessor's answer could not be given: %s", error)


def _write(memo: Path, token: str, said: bytes) -> None:
    draft = memo.with_suffix(".new")
    try:
        draft.write_bytes(token.encode() + b"\n" + said)
        draft.replace(memo)
    except OSError as error:  # a full disk: better an answer without a note than none
        LOG.warning("a successor could not be told: %s", error)


@contextmanager
def _heartbeat(source: TaskSource) -> Iterator[None]:
    over = threading.Event()

    def beat() -> None:
        while not over.wait(HEARTBEAT_S):
            source.beat()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Crew:
    """Forks a process per SuperNode, and replaces those that die.

    Args:
        work: What the process of a SuperNode does, by its number.
        size: Number of SuperNodes.
    """

    def __init__(self, work: Callable[[int], None], size: int) -> None:
        self.work = work
        self.number_of: dict[int, int] = {}
        for number in range(size):
            self._fork(number)

    def _fork(self, number: int) -> None:
        child = os.fork()
        if child:
            self.number_of[child] = number
            return
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            tie()
            self.work(number)
        except KeyboardInterrupt:
            os._exit(130)
        except BaseException as error:  # the stack of the parent lies below: never return to it
            LOG.exception("the process of node %d failed", number, exc_info=error)
        os._exit(1)

    def watch(self) -> None:
        """Replace whoever dies, until ended."""
        while self.number_of:
            child, status = os.wait()
            number = self.number_of.pop(child)
            code = os.waitstatus_to_exitcode(status)
            LOG.warning("the process of node %d ended with code %d, and is replaced", number, code)
            time.sleep(RESTART_S)
            self._fork(number)

    def end(self) -> None:
        """End all processes."""
        for child in self.number_of:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def warm_up(text: str) -> None:
    """Load data and model before there are processes that would each do so.

    Not where clients train on a GPU: it must not be touched before they are forked.
    """
    if json.loads(text)["engine"]["device"] == "cpu":
        load(PARTICIPANT)(text, 0)


def main() -> None:
    """Read the options and do it."""
    parser = argparse.ArgumentParser(description="Play the ClientApps of SuperNodes.")
    parser.add_argument(
        "--supernode",
        action="append",
        required=True,
        help="HOST:PORT of a SuperNode's Runtime API; may be repeated",
    )
    parser.add_argument("--superexec-auth-secret-file", type=Path, required=True)
    parser.add_argument(
        "--experiment",
        type=Path,
        help="JSON of the experiment to come: its data and model are loaded once for all nodes",
    )
    parser.add_argument("--memory", type=Path, required=True, help="a folder for notes")
    options = parser.parse_args()
    secret = options.superexec_auth_secret_file.read_bytes()
    options.memory.mkdir(mode=0o700, parents=True, exist_ok=True)
    app: ClientApp = load(DEPLOYED_CLIENT_APP)
    if options.experiment is not None:
        warm_up(options.experiment.read_text())

    def work(number: int) -> None:
        source = TaskSource(options.supernode[number], secret)
        serve(source, app, options.memory / f"task-{number}")

    def end(*_: object) -> None:
        crew.end()
        os._exit(0)

    crew = Crew(work, len(options.supernode))
    signal.signal(signal.SIGTERM, end)
    tie()
    crew.watch()


if __name__ == "__main__":
    main()
