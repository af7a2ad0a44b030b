"""Relay, and listen, until ended."""

import asyncio
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from fedsim.proxy.listening import Tap
from fedsim.proxy.relay import Endpoint, Relay


def tap(
    listen: Sequence[str], upstream: str, run: Path, *, say: Callable[[str], object] = print
) -> None:
    """Stand between nodes and a SuperLink until a signal ends it.

    Args:
        listen: `[NAME@]HOST:PORT` of each place where nodes reach it.
        upstream: `HOST:PORT` of the SuperLink.
        run: The run directory, or a folder in which one is made.
        say: Told in one line where it listens.

    Raises:
        ConfigError: An address has another form, or cannot be listened at.
    """
    endpoints, there = [Endpoint.parse(one) for one in listen], Endpoint.parse(upstream)
    listener = Tap(run)
    relay = Relay(endpoints, there, listener)

    def ready() -> None:
        pairs = zip(endpoints, relay.ports, strict=True)
        places = ", ".join(f"{e.host}:{port}" for e, port in pairs)
        say(f"relaying {places} to {there.host}:{there.port}")

    async def work() -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        await relay.run(ended, ready)

    try:
        asyncio.run(work())
    finally:
        listener.close()
