"""A server of the page, in a thread of the test."""

import threading
import time
from pathlib import Path

import uvicorn

from fedsim.watch.app import build_app
from fedsim.watch.server import LOOPBACK, Server, address_of, listen


class Serving:
    """Serves a run until it is stopped; may be started again at the same port.

    Args:
        path: As `fedsim watch` takes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.port = 0
        self.start()

    def start(self) -> None:
        """Begin to listen, at the port that it had before."""
        self.listener = listen(LOOPBACK, self.port)
        self.port = self.listener.getsockname()[1]
        self.address = address_of(self.listener)
        app, feed = build_app(self.path)
        config = uvicorn.Config(app, log_level="error", ws="none", timeout_graceful_shutdown=10)
        self.server = Server(config, feed)
        self.thread = threading.Thread(
            target=self.server.run, kwargs={"sockets": [self.listener]}, daemon=True
        )
        self.thread.start()
        until = time.monotonic() + 40
        while not self.server.started and time.monotonic() < until:
            time.sleep(0.02)

    def stop(self) -> float:
        """End it, and return how many seconds that took."""
        began = time.monotonic()
        self.server.should_exit = True
        self.thread.join(30)
        self.listener.close()
        assert not self.thread.is_alive()
        return time.monotonic() - began
