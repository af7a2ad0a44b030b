"""A headless Chromium of this machine, driven through its own protocol; nothing is downloaded."""

import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
START_S = 60.0
ANSWER_S = 60.0


def find_browser() -> str | None:
    """Return the program of a browser, if this machine has one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """One page of a browser.

    Args:
        socket: Speaks the DevTools protocol with this page.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.number = 0
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Send a command and return its answer; events that come before it are taken in."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        until = time.monotonic() + ANSWER_S
        while True:
            message = json.loads(self.socket.recv(timeout=until - time.monotonic()))
            if message.get("id") == self.number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                found: dict[str, Any] = message["result"]
                return found
            self._take_in(message)

    def _take_in(self, event: dict[str, Any]) -> None:
        told = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(told["exceptionDetails"])[:500])
        if event.get("method") == "Runtime.consoleAPICalled" and told["type"] in (
            "error",
            "warning",
        ):
            self.errors.append(json.dumps(told["args"])[:500])
        if event.get("method") == "Log.entryAdded" and told["entry"]["level"] in (
            "error",
            "warning",
        ):
            self.errors.append(f"{told['entry']['text']} {told['entry'].get('url', '')}"[:500])

    def evaluate(self, expression: str) -> Any:  # whatever the script returns
        """Return the value of an expression in the page."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"])[:800])
        return found["result"].get("value")

    def wait_for(self, expression: str, timeout_s: float = 45.0) -> Any:
        """Wait until an expression is true in the page, and return its value."""
        until = time.monotonic() + timeout_s
        while True:
            found = self.evaluate(expression)
            if found:
                return found
            if time.monotonic() > until:
                text = self.evaluate("document.body.innerText.slice(0, 1500)")
                raise AssertionError(f"never true: {expression}\n{text}\n{self.errors}")
            time.sleep(0.1)

    def open(self, address: str) -> None:
        """Go to a page, and wait until it is there."""
        self.call("Page.navigate", url=address)
        self.wait_for(f"location.href.startsWith({address!r}) && document.readyState !== 'loading'")

    def look(self, width: int, height: int = 900, *, dark: bool = False, scale: float = 1) -> None:
        """Make the window so large, in CSS pixels, and its reader fond of dark or light colours."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Write what is seen, or all of the page, as PNG."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(b64decode(found["data"]))


@contextlib.contextmanager
def open_tab(program: str) -> Iterator[Tab]:
    """Start a browser with one empty page, and end it afterwards."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        command = [
            program,
            "--headless=new",
            "--no-sandbox",  # containers run as root; the pages are our own
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--no-default-browser-check",
            "--disable-background-networking",
            "--disable-component-update",
            "--hide-scrollbars",
            "--remote-debugging-port=0",
            f"--user-data-dir={home}",
            "about:blank",
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            with connect(_page_of(Path(home), process), max_size=2**27) as socket:
                yield Tab(socket)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10.0)
            process.kill()
            process.wait()


def _page_of(home: Path, process: subprocess.Popen[bytes]) -> str:
    """Return the address at which the browser's page takes commands."""
    told = home / "DevToolsActivePort"
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        if told.is_file() and (lines := told.read_text().splitlines()):
            with (
                contextlib.suppress(OSError),
                urlopen(f"http://127.0.0.1:{lines[0]}/json") as answer,
            ):
                pages = [one for one in json.load(answer) if one["type"] == "page"]
                if pages:
                    return str(pages[0]["webSocketDebuggerUrl"])
        time.sleep(0.1)
    raise RuntimeError(f"the browser did not start (exit code {process.poll()})")
