"""How much crosses which link, and when: all that is left of what is encrypted.

`traffic.jsonl` has a line for each burst: bytes that crossed a connection in one direction, before
any in the other, without a pause of `PAUSE_S`.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from fedsim.errors import Damaged
from fedsim.files import Record, append_line, each_line, reading
from fedsim.proxy.http import Direction

PAUSE_S = 1.0
"""Seconds without a byte after which a burst is over."""
LARGEST_LOG = 2**28
"""Bytes of `traffic.jsonl`, from which no line is added."""


@dataclass
class Burst:
    """Bytes in one direction.

    Attributes:
        connection: Number of the connection.
        link: Whose it is, as far as it can be told.
        direction: Which way.
        encrypted: Whether they say nothing.
        start: When the first came, in seconds since 1970.
        last: When the last came.
        num_bytes: How many.
    """

    connection: int
    link: str
    direction: Direction
    encrypted: bool
    start: float
    last: float
    num_bytes: int

    def record(self) -> Record:
        """Return it as a line of the log."""
        return {
            "time": datetime.fromtimestamp(self.start, UTC).isoformat(timespec="milliseconds"),
            "seconds": round(self.last - self.start, 3),
            "connection": self.connection,
            "link": self.link,
            "direction": self.direction,
            "bytes": self.num_bytes,
            "encrypted": self.encrypted,
        }


class TrafficLog:
    """Writes bursts as they end.

    Args:
        path: The log. Of one that is there connections are numbered on.
        on_full: Told once, when there is no room for more.
    """

    def __init__(self, path: Path, on_full: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self.on_full = on_full
        self.full = False
        self._open: dict[int, Burst] = {}
        self._before = _num_connections(path)

    def add(
        self,
        connection: int,
        link: str,
        direction: Direction,
        num_bytes: int,
        *,
        when: float,
        encrypted: bool,
    ) -> None:
        """Count bytes that crossed."""
        burst = self._open.get(connection)
        if burst is not None:
            if burst.direction == direction and when - burst.last <= PAUSE_S:
                burst.num_bytes += num_bytes
                burst.last = when
                return
            self._write(burst)
        self._open[connection] = Burst(
            connection, link, direction, encrypted, when, when, num_bytes
        )

    def end(self, connection: int) -> None:
        """Write what a connection that is closed leaves."""
        burst = self._open.pop(connection, None)
        if burst is not None:
            self._write(burst)

    def tidy(self, now: float) -> None:
        """Write bursts that are over by now."""
        for connection in [k for k, one in self._open.items() if now - one.last > PAUSE_S]:
            self.end(connection)

    def close(self) -> None:
        """Write all that is left."""
        for connection in list(self._open):
            self.end(connection)

    def _write(self, burst: Burst) -> None:
        if self.full:
            return
        if self.path.exists() and self.path.stat().st_size > LARGEST_LOG:
            self.full = True
            self.on_full()
            return
        connection = self._before + burst.connection
        append_line(self.path, burst.record() | {"connection": connection})


def _num_connections(path: Path) -> int:
    """Return how many connections an earlier tap saw in this run, as far as its log tells."""
    with contextlib.suppress(Damaged, OSError), reading(path):
        return max((int(one["connection"]) + 1 for one in each_line(path)), default=0)
    return 0


@dataclass(frozen=True, kw_only=True)
class LinkTraffic:
    """What crossed one link in a run.

    Attributes:
        link: Whose.
        encrypted: Whether all of it was.
        connections: How many there were.
        bytes_up: From the node.
        bytes_down: To the node.
        bursts: How often something crossed.
        first: When, ISO 8601 in UTC.
        last: When.
    """

    link: str
    encrypted: bool
    connections: int
    bytes_up: int
    bytes_down: int
    bursts: int
    first: str
    last: str


def read_traffic(root: Path) -> Iterator[Record]:
    """Yield the bursts of a run, in the order in which they ended; none if nobody listened.

    Raises:
        Damaged: The log is not as `TrafficLog` wrote it.
    """
    return each_line(root / "traffic.jsonl")


def by_link(bursts: Iterable[Record]) -> list[LinkTraffic]:
    """Return what crossed each link, in order of its name.

    Raises:
        Damaged: A record is not as `TrafficLog` wrote it.
    """
    links: dict[str, _Sum] = {}
    with reading("traffic.jsonl"):
        for one in bursts:
            links.setdefault(str(one["link"]), _Sum()).add(one)
    return [one.of(link) for link, one in sorted(links.items(), key=_in_order)]


def _in_order(item: tuple[str, object]) -> tuple[int, str]:
    """Put client-2 before client-10."""
    return len(item[0]), item[0]


@dataclass
class _Sum:
    """What crossed one link, burst by burst: a log may be longer than memory."""

    encrypted: bool = True
    connections: set[int] = field(default_factory=set)
    bytes_by: dict[str, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    bursts: int = 0
    first: str = ""
    last: str = ""

    def add(self, burst: Record) -> None:
        """Take in one burst."""
        when = str(burst["time"])
        self.encrypted = self.encrypted and bool(burst["encrypted"])
        self.connections.add(int(burst["connection"]))
        self.bytes_by[burst["direction"]] += int(burst["bytes"])
        self.first = min(self.first or when, when)
        self.last = max(self.last, when)
        self.bursts += 1

    def of(self, link: str) -> LinkTraffic:
        """Return it all, under the name of the link."""
        return LinkTraffic(
            link=link,
            encrypted=self.encrypted,
            connections=len(self.connections),
            bytes_up=self.bytes_by["up"],
            bytes_down=self.bytes_by["down"],
            bursts=self.bursts,
            first=self.first,
            last=self.last,
        )
