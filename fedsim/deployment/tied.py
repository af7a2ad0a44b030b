"""The life of a process that we start is tied to that of whoever started it.

It holds the reading end of a pipe, as its standard input, and ends when the other end is gone:
however its parent died, nothing is left behind.
"""

import os
import signal
import sys
import threading

TIED = "FEDSIM_TIED"
"""Set in the environment of a process whose standard input is such a pipe."""
PATIENCE_S = 5.0
"""Seconds that a process has to end by itself."""


def tie() -> None:
    """End this process when its parent is gone, if it is tied to it."""
    if os.environ.get(TIED) == "1":
        threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(PATIENCE_S)
    os._exit(1)
