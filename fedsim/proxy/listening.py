"""Beside the relay: a thread that takes what crosses apart, as far as it keeps up.

Forwarding never waits for it, and nothing that it meets can stop either: what cannot be read, or
is too much, is an event of the run.
"""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from fedsim.catalog import load
from fedsim.config import parse_experiment
from fedsim.files import read_json, reading, replace_json
from fedsim.proxy import WIRE_EAR, taps_links
from fedsim.proxy.http import Budget, Conversation, Direction, Exchange, Garbled, NoRoom
from fedsim.proxy.rebuild import Rebuilder
from fedsim.proxy.traffic import TrafficLog
from fedsim.records import RunDirectory

LOG = logging.getLogger(__name__)
LARGEST_BODY = 64 * 2**20
"""Bytes of one body of HTTP that is read; Flower sends what is larger in pieces of 5 MB."""
MOST_BEHIND = 2**28
"""Bytes that may wait to be read, and again as many that may be read in part."""
BESIDE = 512
"""Bytes that a piece takes beside what crossed; of bytes one by one there may be very many."""
MOST_CONNECTIONS = 1024
"""Connections that are listened to at a time."""
MOST_EVENTS = 20
"""Events of one kind that are recorded; of strangers there may be any number."""
LOOK_S = 0.5
"""Seconds between two looks at what is over, at least."""
TLS_HANDSHAKE = b"\x16"
"""How a connection begins that is encrypted."""


@dataclass(frozen=True)
class _Piece:
    """Something that happened: opened (`link`), crossed (`data`), or closed (neither)."""

    connection: int
    when: float
    link: str = ""
    direction: Direction = "up"
    data: bytes = b""


@dataclass
class _Wire:
    """A connection."""

    link: str
    conversation: Conversation | None
    crowded: bool = False
    encrypted: bool = False
    begun: bool = False


class Tap:
    """Listens for a run; a `fedsim.proxy.relay.Listener`.

    Args:
        place: The run directory, or a folder in which one is made: then the first that appears.
        most_behind: Bytes that may wait to be read, with `BESIDE` for each piece.
    """

    def __init__(self, place: Path, *, most_behind: int = MOST_BEHIND) -> None:
        self.place = place
        self.most_behind = most_behind
        self._pieces: queue.SimpleQueue[_Piece | None] = queue.SimpleQueue()
        self._behind = 0
        self._lock = threading.Lock()
        self._missed: set[int] = set()
        self._known: set[int] = set()
        self._shut_out = False
        self._deaf = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tap", daemon=True)
        self._thread.start()

    # called by the relay

    def opened(self, connection: int, link: str) -> None:
        """Note a connection, if not too much waits already."""
        opening = _Piece(connection, time.time(), link=link)
        with self._lock:
            if self._deaf:
                return
            if self._put(opening, 2 * BESIDE):  # room for its end as well
                self._known.add(connection)
            else:
                self._shut_out = True

    def crossed(self, connection: int, direction: Direction, data: bytes) -> None:
        """Have bytes read, if not too many wait already."""
        piece = _Piece(connection, time.time(), direction=direction, data=data)
        with self._lock:
            if connection in self._known and not self._put(piece, BESIDE + len(data)):
                self._missed.add(connection)

    def closed(self, connection: int) -> None:
        """Note the end of a connection."""
        with self._lock:
            if connection in self._known:
                self._known.discard(connection)
                self._put(_Piece(connection, time.time()), 0)

    def _put(self, piece: _Piece, room: int) -> bool:
        if self._behind + room > self.most_behind:
            return False
        self._behind += room
        self._pieces.put(piece)
        return True

    def close(self) -> None:
        """Read what waits, write everything down, and end."""
        self._ended.set()
        self._pieces.put(None)
        self._thread.join()

    # the thread

    def _work(self) -> None:
        run: RunDirectory | None = None
        try:
            run = self._find_run()
            if run is not None:  # else it ended before there was a run
                self._read(_Reading(run))
        except Exception as error:  # relaying goes on, come what may
            LOG.exception("the tap hears nothing any more")
            if run is not None:
                with contextlib.suppress(OSError):
                    run.append_event("tap-crashed", f"the tap hears nothing any more: {error!r}")
        finally:
            with self._lock:
                self._deaf = True
                self._known.clear()
                while not self._pieces.empty():
                    self._pieces.get()

    def _read(self, reading: "_Reading") -> None:
        tidied = time.monotonic()
        while True:
            try:
                piece = self._pieces.get(timeout=LOOK_S)
            except queue.Empty:
                reading.tidy(time.time())
                continue
            if piece is None:
                break
            self._miss(reading)
            reading.take(piece)
            with self._lock:
                self._behind -= BESIDE + len(piece.data)
            if time.monotonic() - tidied >= LOOK_S:
                tidied = time.monotonic()
                reading.tidy(piece.when)  # what waits is of later
        self._miss(reading)
        reading.close()

    def _miss(self, reading: "_Reading") -> None:
        """Stop listening where something was missed."""
        with self._lock:
            missed = {one for one in self._missed if one in reading.wires}
            self._missed -= missed
            shut_out, self._shut_out = self._shut_out, False
        for connection in missed:
            reading.deafen(connection, "tap-behind", "more crossed than could be read")
        if shut_out:
            why = "more crossed than could be read; a connection is relayed unheard and uncounted"
            reading.note("tap-behind", why)

    def _find_run(self) -> RunDirectory | None:
        """Wait for the run directory; what crosses meanwhile waits, too."""
        before = set(_runs_in(self.place))
        while True:
            if (self.place / "config.toml").is_file():
                return RunDirectory.open(self.place)
            for found in sorted(set(_runs_in(self.place)) - before):
                return RunDirectory.open(found)
            if self._ended.wait(LOOK_S):
                return None


def _runs_in(place: Path) -> list[Path]:
    return [one.parent for one in place.glob("*/config.toml")]


class _Reading:
    """What is understood of the traffic of one run, and where it goes."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.traffic = TrafficLog(run.root / "traffic.jsonl", self._full)
        self.budget = Budget(MOST_BEHIND)
        self.wires: dict[int, _Wire] = {}
        self.noted: dict[str, int] = {}
        self.round = 0
        self.encrypted: bool | None = None
        self.rebuild: Rebuilder | None = None
        experiment = parse_experiment(run.config_text(), where=str(run.config))
        if taps_links(experiment):
            ear = load(WIRE_EAR)(experiment, run, self._heard)
            self.rebuild = Rebuilder(ear.asked, ear.answered, self.note)
        self._heard(0)

    def _heard(self, server_round: int) -> None:
        self.round = server_round
        said = {"round": server_round, "encrypted": self.encrypted is True}
        replace_json(self.run.root / "heard.json", said)

    def _full(self) -> None:
        self.note("tap-full", f"{self.traffic.path.name} is full: no more bursts are recorded")

    def note(self, kind: str, message: str) -> None:
        """Record an event, unless there were many of its kind."""
        self.noted[kind] = self.noted.get(kind, 0) + 1
        if self.noted[kind] == MOST_EVENTS:
            message += "; more of this kind are not recorded"
        if self.noted[kind] <= MOST_EVENTS:
            self._write(lambda: self.run.append_event(kind, message))

    def _write(self, write: Callable[[], object]) -> None:
        """Write, and go on without if that fails: a full disk ends the run elsewhere."""
        try:
            write()
        except OSError as error:
            if not self.noted.get("tap-lost"):
                self.note("tap-lost", f"traffic cannot be recorded: {error.strerror or error}")

    def take(self, piece: _Piece) -> None:
        """Take in what happened."""
        if piece.link:
            listened = sum(wire.conversation is not None for wire in self.wires.values())
            conversation, crowded = None, listened >= MOST_CONNECTIONS
            if self.rebuild is not None and not crowded:
                conversation = Conversation(LARGEST_BODY, self.budget)
            self.wires[piece.connection] = _Wire(piece.link, conversation, crowded)
        elif piece.data:
            self._hear(piece)
        else:
            self._end(piece.connection)

    def _hear(self, piece: _Piece) -> None:
        wire = self.wires[piece.connection]
        if not wire.begun:
            self._begin(wire, piece)
        self._write(
            lambda: self.traffic.add(
                piece.connection,
                wire.link,
                piece.direction,
                len(piece.data),
                when=piece.when,
                encrypted=wire.encrypted,
            )
        )
        if wire.conversation is None or self.rebuild is None:
            return
        before = wire.conversation.too_large
        try:
            exchanges = wire.conversation.feed(piece.direction, piece.data)
        except NoRoom as error:
            self.deafen(piece.connection, "tap-too-large", str(error))
            return
        except Garbled as error:
            self.deafen(piece.connection, "tap-garbled", f"what crosses is not HTTP: {error}")
            return
        if wire.conversation.too_large > before:
            self.note("tap-too-large", f"{wire.link}: a body is too large to be kept")
        self._take_apart(exchanges)

    def _begin(self, wire: _Wire, piece: _Piece) -> None:
        """Tell by the first bytes of a connection whether there is anything to hear."""
        wire.begun = True
        if piece.direction == "up" and piece.data.startswith(TLS_HANDSHAKE):
            wire.encrypted, wire.conversation = True, None
        elif wire.crowded:
            self.note("tap-crowded", f"{wire.link}: one connection too many is relayed unheard")
        everything = wire.encrypted and self.encrypted is not False
        if everything != self.encrypted:
            self.encrypted = everything
            self._write(lambda: self._heard(self.round))

    def _take_apart(self, exchanges: Iterable[Exchange]) -> None:
        for exchange in exchanges:
            self.budget.give(exchange.kept)
            if self.rebuild is not None:
                self.rebuild.hear(exchange)

    def deafen(self, connection: int, kind: str, why: str) -> None:
        """Listen to a connection no more: what follows cannot be made sense of."""
        wire = self.wires.get(connection)
        if wire is not None and wire.conversation is not None:
            self._take_apart(wire.conversation.close(ended=False))
            wire.conversation = None
            self.note(kind, f"{wire.link}: {why}; this connection is relayed unheard")

    def _end(self, connection: int) -> None:
        wire = self.wires.pop(connection, None)
        self._write(lambda: self.traffic.end(connection))
        if wire is not None and wire.conversation is not None:
            self._take_apart(wire.conversation.close())

    def tidy(self, now: float) -> None:
        """Write what is over by now."""
        self._write(lambda: self.traffic.tidy(now))

    def close(self) -> None:
        """Write all that is left."""
        for connection in list(self.wires):
            self._end(connection)
        self._write(self.traffic.close)


def rounds_heard(run: RunDirectory) -> int:
    """Return the round up to which a tap heard everything; 0 before the first.

    Raises:
        Damaged: What it left is not as it writes it.
    """
    path = run.root / "heard.json"
    with reading(path):
        return int(read_json(path)["round"]) if path.is_file() else 0


def only_encrypted(run: RunDirectory) -> bool:
    """Whether all that crossed where a tap listens was encrypted: it will hear no round."""
    path = run.root / "heard.json"
    return path.is_file() and read_json(path).get("encrypted") is True
