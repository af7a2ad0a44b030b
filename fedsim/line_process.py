"""A process of ours that takes lines from its standard input and answers each with a line."""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, TextIO

from fedsim.catalog import search_path


class LineProcess:
    """The side that asks.

    Args:
        module: Run as `python -m module`.
        arguments: Of its command line.
        on_line: Told of each line it writes, by a thread; of "" when it has ended.
        variables: Of its environment, beside ours.

    Attributes:
        process: The process itself.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        on_line: Callable[[str], None],
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self._on_line = on_line
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as it does
        own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": search_path()}
        self.process = subprocess.Popen(
            # -P: where we are, which may be a run of somebody else, is no place for code
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | own | dict(variables or {}),
            start_new_session=True,  # Ctrl-C is for the parent; it ends this one itself
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        try:
            for line in self.process.stdout or ():
                self._on_line(line)
        finally:
            self._on_line("")

    def say(self, line: str) -> None:
        """Hand over a line; a process that has just died answers by its end."""
        with contextlib.suppress(OSError):  # a broken pipe: its end will be heard
            print(line, file=self.process.stdin, flush=True)

    def last_words(self) -> str:
        """Return how the process ended, and the last line of its error stream."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10.0)
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f"exit code {self.process.poll()}" + (f", {lines[-1]}" if lines else "")

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self._listener.join()
        for stream in (self.process.stdin, self.process.stdout, self._log):
            if stream is not None:
                with contextlib.suppress(OSError):  # a line may wait in a broken pipe
                    stream.close()


def answers_to_parent() -> TextIO:
    """Return where answers go, on the side that answers; it ends with its parent from now on."""
    # whatever else is printed, by compiled code included, must not mix with the answers
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    return answers


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)  # nobody waits for the result any more
