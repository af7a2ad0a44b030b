"""Serve the page on an address of this machine, until somebody ends it."""

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import uvicorn

from fedsim.errors import ConfigError
from fedsim.watch.app import build_app
from fedsim.watch.feed import Feed

PORT = 8321
"""Where the page is, unless told otherwise."""
TRIES = 20
"""Ports after it that are tried when it is taken."""
LOOPBACK = "127.0.0.1"


class Server(uvicorn.Server):
    """Ends the streams of pages first: they would never end by themselves."""

    def __init__(self, config: uvicorn.Config, feed: Feed) -> None:
        super().__init__(config)
        self.feed = feed

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End, streams first."""
        await self.feed.close()
        await super().shutdown(sockets)


def serve(
    path: Path,
    *,
    host: str = LOOPBACK,
    port: int | None = None,
    names: Sequence[str] = (),
    announce: Callable[[str], None],
) -> None:
    """Serve the page of a run until Ctrl-C or SIGTERM.

    Args:
        path: A run directory, one that is not there yet, or a folder of runs, of which the newest
            is shown.
        host: Address to listen on.
        port: None for `PORT`, or the next that is free; 0 for any.
        names: Further names under which the page may be asked for.
        announce: Told its address, once it is there.

    Raises:
        ConfigError: Nothing can be watched there, or the address cannot be had.
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(f"'{path}' is a file; give a run directory, or a folder of runs")
    if not path.exists() and not path.absolute().parent.is_dir():
        raise ConfigError(f"there is no '{path}', nor a folder that it could appear in")
    with contextlib.closing(listen(host, port)) as listener:
        app, feed = build_app(path, names=[*names, host])
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            timeout_graceful_shutdown=2,
        )
        announce(address_of(listener))
        with contextlib.suppress(KeyboardInterrupt):  # the way to end it
            Server(config, feed).run(sockets=[listener])


def listen(host: str, port: int | None) -> socket.socket:
    """Return a socket that listens; see `serve` for its arguments and errors."""
    ports = [port] if port is not None else range(PORT, PORT + TRIES + 1)
    for one in ports:
        try:
            family, kind, protocol, _, place = socket.getaddrinfo(
                host, one, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listener = socket.socket(family, kind, protocol)
        except OSError as error:
            raise ConfigError(f"cannot listen on '{host}': {error.strerror or error}") from error
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
            listener.listen(128)
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE:
                continue
            reason = error.strerror or error
            raise ConfigError(f"cannot listen on '{host}', port {one}: {reason}") from error
        return listener
    taken = f"port {port} is" if port is not None else f"ports {PORT} to {PORT + TRIES} are"
    raise ConfigError(f"{taken} taken; choose another with --port, 0 for any that is free")


def address_of(listener: socket.socket) -> str:
    """Return the address to open in a browser on this machine."""
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        host = LOOPBACK
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def exposed(host: str) -> bool:
    """Whether others than this machine may reach an address."""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"
