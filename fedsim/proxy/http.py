"""HTTP/1.1 as an eavesdropper reads it: bytes of strangers, in whatever pieces they come.

Nothing here answers or refuses anybody. What is not HTTP raises `Garbled`; what is too large is
counted and not kept.
"""

from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

Direction = Literal["up", "down"]
"""up: from a node to the SuperLink; down: back."""

LONGEST_HEAD = 64 * 2**10
"""Bytes of a request line or status line with all headers; also of all trailers."""
MOST_HEADERS = 200
BESIDE = 256
"""Bytes that a line of a head takes beside its letters; of short ones there may be many."""
LONGEST_CHUNK_LINE = 1024
_NOTHING = ("", "", "")
MOST_WAITING = 100
"""Requests on one connection that wait for their answers."""


class Garbled(Exception):
    """What came is not HTTP; the message says why."""


class NoRoom(Garbled):
    """More is under way than may be held; what follows on this connection cannot be read."""


class Budget:
    """Bytes that may be held at a time by everybody who shares it.

    Args:
        most: Bytes.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0

    def take(self, number: int) -> bool:
        """Hold so many more, if there is room."""
        if self.held + number > self.most:
            return False
        self.held += number
        return True

    def give(self, number: int) -> None:
        """Hold so many less."""
        self.held -= number


@dataclass(frozen=True)
class HttpMessage:
    """One request, or one answer.

    Attributes:
        start: The three parts of its first line.
        headers: By name in lower case.
        body: What it carries; None if that was too large to keep.
        room: Bytes of the budget that it takes.
    """

    start: tuple[str, str, str]
    headers: dict[str, str]
    body: bytes | None
    room: int = 0

    @property
    def status(self) -> int:
        """Status of an answer."""
        return int(self.start[1])


@dataclass(frozen=True)
class Exchange:
    """A request and the answer to it."""

    request: HttpMessage
    response: HttpMessage

    @property
    def kept(self) -> int:
        """Bytes of the budget that both take."""
        return self.request.room + self.response.room


class Reader:
    """Takes one direction of a connection apart.

    Args:
        direction: up means requests, down means answers.
        largest: Bytes of the largest body that is kept.
        budget: Bytes of all heads and bodies that are kept by everybody.
        asked: Methods of the requests that wait for an answer, of the same connection.
    """

    def __init__(
        self, direction: Direction, *, largest: int, budget: Budget, asked: deque[str]
    ) -> None:
        self.requests = direction == "up"
        self.largest = largest
        self.budget = budget
        self.asked = asked
        self._data = bytearray()
        self._waiting = 0  # of `_data`, as the budget knows it
        self._start = _NOTHING
        self._headers: dict[str, str] = {}
        self._head_room = 0
        self._body = bytearray()
        self._kept = True
        self._left = 0
        self._trailers = 0
        self._answered = False
        self._next = self._head
        self._found: list[HttpMessage] = []
        self.too_large = 0

    def feed(self, data: bytes) -> list[HttpMessage]:
        """Read on; return what is complete now.

        Raises:
            Garbled: This is not HTTP; what follows on this connection cannot be read.
            NoRoom: More is under way, on all connections, than the budget has room for.
        """
        self._data += data
        self.budget.give(self._waiting)
        self._waiting = 0
        while self._next():
            pass
        self._hold(len(self._data))
        self._waiting = len(self._data)
        found, self._found = self._found, []
        return found

    def close(self, *, ended: bool = True) -> list[HttpMessage]:
        """Return what is complete, also by the end of the connection, and let go of all else.

        Args:
            ended: Whether it is its end; else nobody reads on.
        """
        if ended and self._next == self._until_end:
            self._complete()
        self._drop()
        self.budget.give(self._head_room + self._waiting)
        self._head_room = self._waiting = 0
        self._data = bytearray()
        found, self._found = self._found, []
        return found

    def answered(self) -> HttpMessage | None:
        """Return the message under way, without its body: it was answered before it ended.

        None if none is under way, or it was answered before.
        """
        if self._next == self._head or self._answered:
            return None
        self._answered, self._kept = True, False
        self._drop()
        return self._message(None)

    # states: each returns whether it got on with the bytes at hand

    def _head(self) -> bool:
        while self._data.startswith(b"\r\n"):  # an empty line before a request is allowed
            del self._data[:2]
        end = self._data.find(b"\r\n\r\n", 0, LONGEST_HEAD + 4)
        if end < 0:
            if len(self._data) > LONGEST_HEAD:
                raise Garbled(f"a head of more than {LONGEST_HEAD} bytes")
            return False
        lines = bytes(self._data[:end]).decode("latin-1").split("\r\n")
        del self._data[: end + 4]
        self._hold(room := end + BESIDE * len(lines))
        self._head_room = room
        self._start = _first_line(lines[0], request=self.requests)
        self._headers = _headers(lines[1:])
        self._body, self._kept = bytearray(), True
        self._begin_body()
        return True

    def _begin_body(self) -> None:
        if self.requests:
            self.asked.append(self._start[0])
            if len(self.asked) > MOST_WAITING:
                raise Garbled(f"more than {MOST_WAITING} requests without an answer")
        else:
            status = int(self._start[1])
            if status == 101:
                raise Garbled("the connection goes on in another protocol")
            if status < 200:  # the answer proper follows
                self._next = self._head
                self.budget.give(self._message(None).room)
                return
            method = self.asked.popleft() if self.asked else ""
            if method == "HEAD" or status in (204, 304):
                self._complete()
                return
        coding = self._headers.get("transfer-encoding")
        length = self._headers.get("content-length")
        if coding is not None:
            if coding.lower() != "chunked" or length is not None:
                raise Garbled(f"a body of unclear length ({coding[:40]!r})")
            self._next = self._chunk_size
        elif length is not None:
            self._left = _whole_number(length, 10, "content-length")
            self._next = self._sized
        elif self.requests:
            self._complete()
        else:
            self._next = self._until_end

    def _sized(self) -> bool:
        self._take()
        if self._left == 0:
            self._complete()
            return True
        return False

    def _chunk_size(self) -> bool:
        line = self._line(LONGEST_CHUNK_LINE)
        if line is None:
            return False
        self._left = _whole_number(line.split(b";")[0].strip().decode("latin-1"), 16, "chunk")
        self._trailers = 0
        self._next = self._chunk if self._left else self._trailer
        return True

    def _chunk(self) -> bool:
        self._take()
        if self._left:
            return False
        self._next = self._chunk_end
        return True

    def _chunk_end(self) -> bool:
        if len(self._data) < 2:
            return False
        if self._data[:2] != b"\r\n":
            raise Garbled("a chunk longer than it says")
        del self._data[:2]
        self._next = self._chunk_size
        return True

    def _trailer(self) -> bool:
        line = self._line(LONGEST_HEAD)
        if line is None:
            return False
        self._trailers += len(line)
        if self._trailers > LONGEST_HEAD:
            raise Garbled(f"trailers of more than {LONGEST_HEAD} bytes")
        if not line:
            self._complete()
        return True

    def _until_end(self) -> bool:
        self._left = len(self._data)
        self._take()
        return False

    # parts

    def _line(self, longest: int) -> bytes | None:
        end = self._data.find(b"\r\n", 0, longest + 2)
        if end < 0:
            if len(self._data) > longest:
                raise Garbled(f"a line of more than {longest} bytes")
            return None
        line = bytes(self._data[:end])
        del self._data[: end + 2]
        return line

    def _take(self) -> None:
        number = min(self._left, len(self._data))
        self._left -= number
        fits = self._kept and len(self._body) + number + self._left <= self.largest
        if fits and self.budget.take(number):
            self._body += self._data[:number]
        elif self._kept:
            self._drop()
            self._kept = False
            self.too_large += 1
        del self._data[:number]

    def _hold(self, number: int) -> None:
        if not self.budget.take(number):
            raise NoRoom("more is said at a time than there is room for")

    def _drop(self) -> None:
        self.budget.give(len(self._body))
        self._body = bytearray()

    def _complete(self) -> None:
        body = bytes(self._body) if self._kept else None
        if not self._answered:
            self._found.append(self._message(body))
        self._answered = False
        self._body = bytearray()  # its bytes count until who takes the message gives them back
        self._next = self._head

    def _message(self, body: bytes | None) -> HttpMessage:
        """Return the message under way, and with it the room that it takes."""
        room = self._head_room + len(body or b"")
        said = HttpMessage(self._start, self._headers, body, room)
        self._start, self._headers, self._head_room = _NOTHING, {}, 0
        return said


@dataclass
class Conversation:
    """What is said on one connection, both ways.

    Attributes:
        largest: Bytes of the largest body that is kept.
        budget: Bytes of all that is kept; whoever gets an exchange gives what it takes back.
    """

    largest: int
    budget: Budget
    _methods: deque[str] = field(default_factory=deque)
    _requests: deque[HttpMessage] = field(default_factory=deque)
    _done: list[Exchange] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make a reader for each direction."""
        self._readers = {
            direction: Reader(
                direction, largest=self.largest, budget=self.budget, asked=self._methods
            )
            for direction in ("up", "down")
        }

    @property
    def too_large(self) -> int:
        """Bodies that were too large to keep."""
        return sum(reader.too_large for reader in self._readers.values())

    def feed(self, direction: Direction, data: bytes) -> list[Exchange]:
        """Read on; return the requests that are answered now.

        Raises:
            Garbled: This is not HTTP; what follows on this connection cannot be read.
        """
        self._pair(direction, self._readers[direction].feed(data))
        return self._take()

    def close(self, *, ended: bool = True) -> list[Exchange]:
        """Return what is complete, also by the end of the connection, and let go of all else.

        Args:
            ended: Whether it is its end; else nobody listens any more.
        """
        self._pair("up", self._readers["up"].close(ended=ended))
        with suppress(Garbled):  # whatever it was, there is no more of it
            self._pair("down", self._readers["down"].close(ended=ended))
        while self._requests:
            self.budget.give(self._requests.popleft().room)
        return self._take()

    def _take(self) -> list[Exchange]:
        done, self._done = self._done, []
        return done

    def _pair(self, direction: Direction, found: list[HttpMessage]) -> None:
        if direction == "up":
            self._requests.extend(found)
            return
        for place, answer in enumerate(found):
            # an error (413, say) may come before all that it answers has crossed
            asked = self._requests.popleft() if self._requests else self._readers["up"].answered()
            if asked is None:
                for one in found[place:]:
                    self.budget.give(one.room)
                raise Garbled("an answer to nothing")
            self._done.append(Exchange(asked, answer))


def _first_line(line: str, *, request: bool) -> tuple[str, str, str]:
    parts = line.split(" ", 2)
    version = parts[-1] if request else parts[0]
    if len(parts) < (3 if request else 2) or version not in ("HTTP/1.1", "HTTP/1.0"):
        raise Garbled(f"no first line of HTTP/1.1: {line[:60]!r}")
    if not request and not (len(parts[1]) == 3 and parts[1].isdecimal() and parts[1].isascii()):
        raise Garbled(f"no status: {parts[1][:20]!r}")
    return (parts[0], parts[1], parts[2] if len(parts) > 2 else "")


def _headers(lines: list[str]) -> dict[str, str]:
    if len(lines) > MOST_HEADERS:
        raise Garbled(f"more than {MOST_HEADERS} headers")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise Garbled(f"no header: {line[:60]!r}")
        name, value = name.lower(), value.strip()
        if name == "content-length" and headers.get(name, value) != value:
            raise Garbled("two lengths of one body")
        if name == "transfer-encoding" and name in headers:
            value = f"{headers[name]}, {value}"
        headers[name] = value
    return headers


def _whole_number(text: str, base: int, what: str) -> int:
    digits = "0123456789abcdefABCDEF"[: 10 if base == 10 else None]
    if not text or len(text) > 16 or any(one not in digits for one in text):
        raise Garbled(f"no {what}: {text[:20]!r}")
    return int(text, base)
