"""Bytes are handed on as they came, whatever they are."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from fedsim.errors import ConfigError
from fedsim.proxy.http import Direction
from fedsim.proxy.relay import PIECE, Endpoint, Relay

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Notes:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.links: dict[int, str] = {}
        self.heard: dict[tuple[int, str], bytes] = {}
        self.over: list[int] = []

    def opened(self, connection: int, link: str) -> None:
        self.links[connection] = link

    def crossed(self, connection: int, direction: Direction, data: bytes) -> None:
        key = (connection, direction)
        self.heard[key] = self.heard.get(key, b"") + data

    def closed(self, connection: int) -> None:
        self.over.append(connection)


@contextlib.asynccontextmanager
async def relayed(talk: Talk, *names: str) -> AsyncIterator[tuple[list[int], Notes]]:
    """A relay before a server that talks so; gives its ports, and who listens."""
    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    upstream = Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])
    notes, ended, ready = Notes(), asyncio.Event(), asyncio.Event()
    relay = Relay([Endpoint("127.0.0.1", 0, name) for name in names or ("",)], upstream, notes)
    task = asyncio.create_task(relay.run(ended, ready.set))
    await ready.wait()
    try:
        yield relay.ports, notes
    finally:
        ended.set()
        await task
        server.close()


async def settle(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not done():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("size", [1, PIECE, 3_000_000])
def test_every_byte_crosses_both_ways_unchanged_and_is_heard(size: int) -> None:
    up, down = random.Random(1).randbytes(size), random.Random(2).randbytes(size)
    got = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await reader.read(-1))  # until the node says no more
        writer.write(down)
        writer.close()

    async def work() -> None:
        async with relayed(talk) as ((port,), notes):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(up)
            writer.write_eof()
            assert await reader.read(-1) == down
            writer.close()
            await settle(lambda: notes.over == [0])
            assert got == [up]
            assert notes.heard == {(0, "up"): up, (0, "down"): down}

    asyncio.run(work())


def test_links_are_told_apart_by_where_they_come_in_or_by_who_calls() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def work() -> None:
        async with relayed(talk, "client-0", "") as (ports, notes):
            for port in ports:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                assert await reader.read(-1) == b""
                writer.close()
            await settle(lambda: len(notes.over) == 2)
            assert notes.links == {0: "client-0", 1: "127.0.0.1"}

    asyncio.run(work())


def test_a_superlink_that_is_not_there_is_a_connection_that_ends() -> None:
    async def work() -> None:
        notes, ended, ready = Notes(), asyncio.Event(), asyncio.Event()
        relay = Relay([Endpoint("127.0.0.1", 0)], Endpoint("127.0.0.1", 1), notes)
        task = asyncio.create_task(relay.run(ended, ready.set))
        await ready.wait()
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.ports[0])
        assert await reader.read(-1) == b""
        writer.close()
        ended.set()
        await task
        assert notes.over == [0]

    asyncio.run(work())


def test_open_connections_end_with_the_relay() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)
        writer.close()

    async def work() -> bytes:
        async with relayed(talk) as ((port,), notes):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"x")
            await settle(lambda: bool(notes.heard))
        assert notes.over == [0]
        left = await reader.read(-1)
        writer.close()
        return left

    assert asyncio.run(work()) == b""


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("127.0.0.1:80", Endpoint("127.0.0.1", 80)),
        ("client-3@localhost:0", Endpoint("localhost", 0, "client-3")),
        ("[::1]:80", Endpoint("::1", 80)),
    ],
)
def test_an_address_is_read(text: str, wanted: Endpoint) -> None:
    assert Endpoint.parse(text) == wanted


@pytest.mark.parametrize("text", ["", "localhost", ":80", "x:", "x:-1", "x:70000", "x:8o"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected \[NAME@\]HOST:PORT"):
        Endpoint.parse(text)


def test_an_address_that_is_taken_is_told() -> None:
    async def work() -> None:
        taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = taken.sockets[0].getsockname()[1]
        relay = Relay([Endpoint("127.0.0.1", port)], Endpoint("127.0.0.1", 1), Notes())
        try:
            with pytest.raises(ConfigError, match=f"cannot listen at 127.0.0.1:{port}: .*in use"):
                await relay.run(asyncio.Event())
        finally:
            taken.close()

    asyncio.run(work())
