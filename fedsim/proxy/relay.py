"""Hands bytes on between nodes and SuperLink, as they came, and shows them to a listener."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fedsim.errors import ConfigError
from fedsim.proxy.http import Direction

PIECE = 2**16
"""Bytes that are handed on at once."""


class Listener(Protocol):
    """Is shown everything, must return at once, and never raise."""

    def opened(self, connection: int, link: str) -> None:
        """A connection was made."""

    def crossed(self, connection: int, direction: Direction, data: bytes) -> None:
        """Bytes are about to be handed on."""

    def closed(self, connection: int) -> None:
        """A connection is over."""


@dataclass(frozen=True)
class Endpoint:
    """Where nodes reach the relay.

    Attributes:
        host: Address to listen at.
        port: Port; 0 means any that is free.
        name: Whose link it is; empty means that of whoever calls.
    """

    host: str
    port: int
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> "Endpoint":
        """Read `[NAME@]HOST:PORT`.

        Raises:
            ConfigError: It has another form.
        """
        name, _, address = text.rpartition("@")
        host, colon, port = address.rpartition(":")
        if not colon or not host or not port.isdecimal() or int(port) > 65535:
            raise ConfigError(f"expected [NAME@]HOST:PORT, got '{text}'")
        return cls(host.strip("[]"), int(port), name)


class Relay:
    """Stands between nodes and SuperLink.

    Args:
        endpoints: Where nodes reach it.
        upstream: Where it reaches the SuperLink.
        listener: Is shown what crosses.
    """

    def __init__(
        self, endpoints: Sequence[Endpoint], upstream: Endpoint, listener: Listener
    ) -> None:
        self.endpoints = endpoints
        self.upstream = upstream
        self.listener = listener
        self.ports: list[int] = []
        self._number = 0
        self._talks: set[asyncio.Task[None]] = set()

    async def run(self, ended: asyncio.Event, ready: Callable[[], None] = lambda: None) -> None:
        """Relay until `ended` is set.

        Raises:
            ConfigError: It cannot listen at an address.
        """
        async with contextlib.AsyncExitStack() as stack:
            for endpoint in self.endpoints:
                try:
                    server = await asyncio.start_server(
                        self._taker(endpoint), endpoint.host, endpoint.port, limit=PIECE
                    )
                except OSError as error:
                    raise ConfigError(
                        f"cannot listen at {endpoint.host}:{endpoint.port}: "
                        f"{error.strerror or error}"
                    ) from error
                stack.callback(server.close)
                self.ports.append(server.sockets[0].getsockname()[1])
            ready()
            await ended.wait()
        for talk in self._talks:
            talk.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)

    def _taker(
        self, endpoint: Endpoint
    ) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
        def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.get_running_loop().create_task(self._talk(endpoint, reader, writer))
            self._talks.add(task)
            task.add_done_callback(self._talks.discard)

        return take

    async def _talk(
        self, endpoint: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        number, self._number = self._number, self._number + 1
        caller = writer.get_extra_info("peername")
        self.listener.opened(number, endpoint.name or (str(caller[0]) if caller else "unknown"))
        try:
            with contextlib.suppress(OSError):  # a connection that breaks is no fault of ours
                there = await asyncio.open_connection(
                    self.upstream.host, self.upstream.port, limit=PIECE
                )
                try:
                    await self._both(number, (reader, writer), there)
                finally:
                    there[1].close()
        finally:
            writer.close()
            self.listener.closed(number)

    async def _both(
        self,
        number: int,
        here: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        there: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        pumps = [
            asyncio.ensure_future(self._pump(number, "up", here[0], there[1])),
            asyncio.ensure_future(self._pump(number, "down", there[0], here[1])),
        ]
        try:
            # an end of one direction is handed on; a connection that broke ends both
            await asyncio.gather(*pumps)
        finally:
            for pump in pumps:
                pump.cancel()

    async def _pump(
        self,
        number: int,
        direction: Direction,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
    ) -> None:
        while data := await source.read(PIECE):
            self.listener.crossed(number, direction, data)
            sink.write(data)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()
