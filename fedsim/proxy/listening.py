"""Beside the relay: a thread that takes what crosses apart, as far as it keeps up.

Forwarding never waits for it, and nothing that it meets can stop either: what cannot be read, or
is too much, is an event of the run.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedsim.catalog import load
from fedsim.config import parse_experiment
from fedsim.files import read_json, replace_json
from fedsim.proxy import WIRE_EAR, taps_links
from fedsim.proxy.http import Budget, Conversation, Direction, Garbled
from fedsim.proxy.rebuild import Rebuilder
from fedsim.proxy.traffic import TrafficLog
from fedsim.records import RunDirectory

LOG = logging.getLogger(__name__)
LARGEST_BODY = 64 * 2**20
"""Bytes of one body of HTTP that is read; Flower sends what is larger in pieces of 5 MB."""
MOST_BEHIND = 2**28
"""Bytes that may wait to be read, and again as many that may be read in part."""
MOST_CONNECTIONS = 1024
"""Connections that are listened to at a time."""
MOST_EVENTS = 20
"""Events of one kind that are recorded; of strangers there may be any number."""
LOOK_S = 0.5
"""Seconds between two looks at what is over."""
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
    encrypted: bool = False
    begun: bool = False


class Tap:
    """Listens for a run; a `fedsim.proxy.relay.Listener`.

    Args:
        place: The run directory, or a folder in which one is made: then the first that appears.
        most_behind: Bytes that may wait to be read.
    """

    def __init__(self, place: Path, *, most_behind: int = MOST_BEHIND) -> None:
        self.place = place
        self.most_behind = most_behind
        self._pieces: queue.SimpleQueue[_Piece | None] = queue.SimpleQueue()
        self._behind = 0
        self._lock = threading.Lock()
        self._missed: set[int] = set()
        self._deaf = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tap", daemon=True)
        self._thread.start()

    # called by the relay

    def opened(self, connection: int, link: str) -> None:
        """Note a connection."""
        if not self._deaf:
            self._pieces.put(_Piece(connection, time.time(), link=link))

    def crossed(self, connection: int, direction: Direction, data: bytes) -> None:
        """Have bytes read, if not too many wait already."""
        if self._deaf:
            return
        with self._lock:
            if self._behind + len(data) > self.most_behind:
                self._missed.add(connection)
                return
            self._behind += len(data)
        self._pieces.put(_Piece(connection, time.time(), direction=direction, data=data))

    def closed(self, connection: int) -> None:
        """Note the end of a connection."""
        if not self._deaf:
            self._pieces.put(_Piece(connection, time.time()))

    def close(self) -> None:
        """Read what waits, write everything down, and end."""
        self._ended.set()
        self._pieces.put(None)
        self._thread.join()

    # the thread

    def _work(self) -> None:
        reading: _Reading | None = None
        try:
            run = self._find_run()
            if run is not None:  # else it ended before there was a run
                reading = _Reading(run)
                self._read(reading)
        except Exception as error:  # relaying goes on, come what may
            LOG.exception("the tap hears nothing any more")
            if reading is not None:
                reading.note("tap-crashed", f"the tap hears nothing any more: {error!r}")
        finally:
            self._deaf = True

    def _read(self, reading: "_Reading") -> None:
        while True:
            try:
                piece = self._pieces.get(timeout=LOOK_S)
            except queue.Empty:
                reading.tidy()
                continue
            if piece is None:
                break
            reading.take(piece)
            with self._lock:
                self._behind -= len(piece.data)
                missed = {one for one in self._missed if one in reading.wires}
                self._missed -= missed
            for connection in missed:
                reading.deafen(connection, "tap-behind", "more crossed than could be read")
        reading.close()

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
        self.traffic = TrafficLog(run.root / "traffic.jsonl")
        self.budget = Budget(MOST_BEHIND)
        self.wires: dict[int, _Wire] = {}
        self.noted: dict[str, int] = {}
        self.rebuild: Rebuilder | None = None
        experiment = parse_experiment(run.config.read_text(), where=str(run.config))
        if taps_links(experiment):
            ear = load(WIRE_EAR)(experiment, run, self._heard)
            self.rebuild = Rebuilder(ear.asked, ear.answered, self.note)
        self._heard(0)

    def _heard(self, server_round: int) -> None:
        replace_json(self.run.root / "heard.json", {"round": server_round})

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
            conversation = None
            if self.rebuild is not None and listened < MOST_CONNECTIONS:
                conversation = Conversation(LARGEST_BODY, self.budget)
            self.wires[piece.connection] = _Wire(piece.link, conversation)
        elif piece.data:
            self._hear(piece)
        else:
            self._end(piece.connection)

    def _hear(self, piece: _Piece) -> None:
        wire = self.wires[piece.connection]
        if not wire.begun:
            wire.begun = True
            if piece.direction == "up" and piece.data.startswith(TLS_HANDSHAKE):
                wire.encrypted, wire.conversation = True, None
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
        except Garbled as error:
            self.deafen(piece.connection, "tap-garbled", f"what crosses is not HTTP: {error}")
            return
        if wire.conversation.too_large > before:
            self.note("tap-too-large", f"{wire.link}: a body is too large to be kept")
        for exchange in exchanges:
            self.budget.give(exchange.kept)
            self.rebuild.hear(exchange)

    def deafen(self, connection: int, kind: str, why: str) -> None:
        """Listen to a connection no more: what follows cannot be made sense of."""
        wire = self.wires.get(connection)
        if wire is not None and wire.conversation is not None:
            wire.conversation.close()
            wire.conversation = None
            self.note(kind, f"{wire.link}: {why}; this connection is relayed unheard")

    def _end(self, connection: int) -> None:
        wire = self.wires.pop(connection, None)
        self._write(lambda: self.traffic.end(connection))
        if wire is None or wire.conversation is None or self.rebuild is None:
            return
        for exchange in wire.conversation.close():
            self.budget.give(exchange.kept)
            self.rebuild.hear(exchange)

    def tidy(self) -> None:
        """Write what is over."""
        self._write(lambda: self.traffic.tidy(time.time()))

    def close(self) -> None:
        """Write all that is left."""
        for connection in list(self.wires):
            self._end(connection)
        self._write(self.traffic.close)


def rounds_heard(run: RunDirectory) -> int:
    """Return the round up to which a tap heard everything; 0 before the first."""
    path = run.root / "heard.json"
    return int(read_json(path)["round"]) if path.is_file() else 0
