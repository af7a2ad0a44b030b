"""A run as the page shows it, kept up to date by looking at its directory now and then."""

import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from fedsim.config import ScoreConfig
from fedsim.errors import FedsimError
from fedsim.examples import Reader
from fedsim.files import Record, read_toml, reading
from fedsim.quality import SCALES, Scale
from fedsim.records import RunDirectory
from fedsim.report.attack_kinds import attack_kinds
from fedsim.report.reading import attack_label, without_paths
from fedsim.report.wording import nothing_attacked
from fedsim.watch import graph
from fedsim.watch.data import DataFile
from fedsim.watch.listing import Heard, trailing_number
from fedsim.watch.scores import Entry, ScoreBook
from fedsim.watch.stage import covers, headline, stage_of
from fedsim.watch.tail import Line, Tail
from fedsim.watch.traffic import Traffic
from fedsim.watch.values import document, listed, name, number, rounded, table, text, whole
from fedsim.watch.workers import Working, at_work

MOST_EVENTS = 60
"""Newest events that a page shows."""
MOST_POINTS = 1_000
"""Rounds of a curve that are sent to a page that is opened; of more, every second, fourth, ..."""
MINUTE = 60.0
RECENT_S = 10.0
"""Seconds since the last look within which what is found has just come."""
LATEST = 20
"""Rounds from which the speed of training is told."""
WORDLESS = {modality: Reader(modality=modality) for modality in SCALES}
"""Read inputs where no file says what their numbers stand for."""
DOCUMENTS = ("environment.json", "threat.json", "topology.json", "summary.json")


class Watched:
    """One run directory, which may not hold anything yet.

    What a page needs is split into sections, and curves into points; each knows the version in
    which it changed last, so that a page is sent what is new to it, whenever it asks.

    Args:
        root: The directory.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.version = 1
        self.lock = threading.RLock()
        self.sections: dict[str, tuple[int, Any]] = {}
        self.heard = Heard(root / "observations")
        self.data, self.reader = DataFile(root), Reader()
        self.events_log, self.rounds_log = Tail(root / "events.jsonl"), Tail(root / "rounds.jsonl")
        self.scores_log = Tail(root / "scores.jsonl")
        self.traffic_log, self.traffic = Tail(root / "traffic.jsonl"), Traffic()
        self.events: deque[Record] = deque(maxlen=MOST_EVENTS)
        self.num_events = 0
        self.config: Record = {}
        self.documents: dict[str, Record | None] = {}
        self.stamps: dict[str, int] = {}
        self.working: list[Working] = []
        self.arrived: deque[tuple[float, int]] = deque()
        self.caught_up = False
        self.looked_at = float("-inf")
        self.era = 0
        self.kinds: dict[str, str] = {}
        self.joins: dict[str, int] = {}
        self.kinds_of: object = None
        self.drawn: object = None
        self._forget_rounds()
        self._forget_scores()

    def _forget_rounds(self) -> None:
        self.rounds: dict[int, tuple[int, list[float | int | None]]] = {}
        self.seconds: deque[float] = deque(maxlen=LATEST)
        self.rejected: dict[int, int] = {}
        self.any_used = False
        self.newest: Record = {}

    def _forget_scores(self) -> None:
        self.orders: dict[str, tuple[tuple[int, int], list[str]]] = {}
        self.book = ScoreBook()
        self.points: dict[tuple[str, int], tuple[int, list[float | int | None]]] = {}

    # looking

    def look(self) -> bool:
        """Take in what is new in the directory; return whether there is more than was read."""
        with self.lock:
            self.version += 1
            if time.monotonic() - self.looked_at > RECENT_S:  # nobody looked on
                self.caught_up = False
            self._read_documents()
            more = self._read_rounds() | self._read_scores() | self._read_events()
            more |= self._read_traffic()
            self.heard.look()
            self.reader = self.data.look() or WORDLESS[self.book.modality or "image"]
            now = time.time()
            self.working = at_work(self.root, self.book.entries.keys(), now)
            self._describe(now, more=more)
            self.looked_at = time.monotonic()
            if not more:
                self.caught_up = True
            return more

    def _read_documents(self) -> None:
        for file in ("config.toml", *DOCUMENTS):
            path = self.root / file
            try:
                stamp = path.stat().st_mtime_ns
            except OSError:
                self.stamps.pop(file, None)
                self.documents.pop(file, None)
                continue
            if self.stamps.get(file) == stamp:
                continue
            self.stamps[file] = stamp
            if file == "config.toml":
                self._read_config(path)
            else:
                self.documents[file] = document(path)

    def _read_config(self, path: Path) -> None:
        try:
            self.config = read_toml(path)
        except (OSError, FedsimError):
            self.config = {}

    def _read_rounds(self) -> bool:
        growth = self.rounds_log.look()
        if growth.anew:
            self._forget_rounds()
            self._begin_anew()
        for line in growth.lines:
            self._add_round(line)
        return growth.more

    def _add_round(self, line: Line) -> None:
        record = line.record
        played = whole(record.get("round"))
        if played is None:
            return
        told = (number(one) for one in listed(record.get("peer_accuracy")))
        peers = [one for one in told if one is not None]
        keys = ("accuracy", "loss", "consensus_distance", "epsilon")
        values = [rounded(number(record.get(key))) for key in keys]
        spread = [rounded(min(peers)), rounded(max(peers))] if peers else [None, None]
        self.rounds[played] = (self.version, [*values, *spread])
        if (seconds := number(record.get("seconds"))) is not None and played:
            self.seconds.append(seconds)
        if rejected := whole(record.get("rejected")):
            self.rejected[played] = rejected
        self.any_used |= bool(record.get("clients"))
        if played >= (whole(self.newest.get("round")) or 0):
            self.newest = record

    def _read_scores(self) -> bool:
        growth = self.scores_log.look()
        if growth.anew:
            self._forget_scores()
            self._begin_anew()
            self.caught_up = False
        before = len(self.book.entries)
        for line in growth.lines:
            self.book.add(line)
        for attack, played in self.book.changed:
            self.points[attack, played] = (self.version, self.book.point(attack, played))
        self.book.changed.clear()
        if self.caught_up and len(self.book.entries) > before:
            self.arrived.append((time.monotonic(), len(self.book.entries) - before))
        return growth.more

    def _begin_anew(self) -> None:
        """Have every page forget its curves: a log was written anew."""
        self.era = self.version
        self._put("era", self.era)

    def _read_events(self) -> bool:
        growth = self.events_log.look()
        if growth.anew:
            self.events.clear()
            self.num_events = 0
        for line in growth.lines:
            record = line.record
            self.num_events += 1
            self.events.append(
                {
                    "time": text(record.get("time"), 40),
                    "kind": text(record.get("kind"), 60),
                    "message": without_paths(text(record.get("message"))),
                }
            )
        return growth.more

    def _read_traffic(self) -> bool:
        growth = self.traffic_log.look()
        if growth.anew:
            self.traffic = Traffic()
        for line in growth.lines:
            self.traffic.add(line)
        if growth.lines or growth.anew:
            self._put("traffic", self.traffic.section())
        return growth.more

    @property
    def scale(self) -> Scale:
        """How close guesses came is measured on it."""
        return SCALES[self.reader.modality]

    @property
    def tolerance(self) -> float:
        """By how much of its range a number of a table may be off, before a score says it."""
        told = number(table(self.config.get("score")).get("tolerance"))
        return ScoreConfig().tolerance if told is None or not 0 <= told <= 1 else told

    def score(self, observation: str, attack: str, entry: Entry) -> Record:
        """Return a score in full; what is no longer there has no images."""
        line = self.scores_log.line_at(entry.place, entry.length) or {}
        if line.get("observation") != observation or line.get("attack") != attack:
            return {"status": entry.status}
        return line

    @property
    def at_work(self) -> set[str]:
        """Observations on which a worker is at the moment."""
        return {
            one
            for work in self.working
            for one in work.observations
            if (one, work.attack) not in self.book.entries
        }

    # sections

    def _put(self, section: str, value: object) -> None:
        if section not in self.sections or self.sections[section][1] != value:
            self.sections[section] = (self.version, value)

    def _describe(self, now: float, *, more: bool) -> None:
        self._put("run", self._run())
        self._put("events", {"total": self.num_events, "newest": list(self.events)[::-1]})
        if not self.caught_up or "attacks" not in self.sections or self._scores_changed():
            self._put("attacks", self.book.rows())
            self._put("best", self._best())
        state = self._state(now, more=more)
        self._put("state", state)
        threat = self.documents.get("threat.json")
        rows = self.sections["attacks"][1]
        stage, asked = str(state["stage"]), bool(self.joins)
        why = "" if rows else self._why_nothing(ended=not more, asked=asked)
        said = headline(
            rows, self.kinds, threat, stage, scale=self.scale, asked=asked, why_nothing=why
        )
        self._put("headline", said)
        self._put("stamp", [len(self.heard.found), self.book.num_added, self.era])
        self._draw()

    def _why_nothing(self, *, ended: bool, asked: bool) -> str:
        return nothing_attacked(
            [{"rejected": sum(self.rejected.values()), "clients": self.any_used}],
            ended=ended,
            asked=asked,
            heard=bool(self.heard.found) or any((self.root / "views").glob("*.json")),
            encrypted=self.traffic.all_encrypted,
        )

    def _scores_changed(self) -> bool:
        return any(version == self.version for version, _ in self.points.values())

    def _run(self) -> Record:
        attacks = [one for one in listed(self.config.get("attacks")) if isinstance(one, dict)]
        threat = self.documents.get("threat.json")
        stamps = (self.stamps.get("config.toml"), self.stamps.get("threat.json"))
        if self.kinds_of != stamps:
            self.kinds_of = stamps
            self.kinds = self._attack_kinds(threat)
        self.joins = {
            label: whole(one.get("join_rounds", 1)) or 1
            for one in attacks
            if isinstance(one.get("name"), str) and isinstance(label := attack_label(one), str)
        }
        protocol, topology = (
            text(table(self.config.get(part)).get("name"), 60) for part in ("protocol", "topology")
        )
        environment = self.documents.get("environment.json") or {}
        return {
            "id": text(self.root.resolve().name, 120),
            "name": text(self.config.get("name"), 120),
            "description": text(self.config.get("description")),
            "rounds": whole(self.config.get("rounds")) or 0,
            "clients": self._num_clients(),
            "peers": f"{protocol} on {topology}" if self._among_peers else "",
            "defense": " + ".join(self._defenses()),
            "threat": text((threat or {}).get("name"), 120),
            "summary": text((threat or {}).get("summary")),
            "oracle": (threat or {}).get("oracle") is True,
            "attacks": [[one, self.kinds.get(one, "")] for one in self.joins if name(one)],
            "started": text(environment.get("started"), 40),
            "scale": {"modality": self.reader.modality, **asdict(self.scale)},
        }

    def _attack_kinds(self, threat: Record | None) -> dict[str, str]:
        """Return what sets attacks apart, in words."""
        if not self.config:
            return {}
        try:
            with reading(self.root / "config.toml"):
                kinds = attack_kinds(RunDirectory(self.root), threat)
        except (OSError, FedsimError):
            return {}
        return {label: kind.words for label, kind in kinds.items()}

    def _defenses(self) -> list[str]:
        named = [one for one in listed(self.config.get("defenses")) if isinstance(one, dict)]
        return [text(one.get("label") or one.get("name"), 60) for one in named]

    @property
    def _among_peers(self) -> bool:
        return "topology.json" in self.documents

    def _num_clients(self) -> int:
        return whole(table(self.config.get("partition")).get("clients"), 10**6) or 0

    def _state(self, now: float, *, more: bool) -> Record:
        total = whole(self.config.get("rounds")) or 0
        played = max(self.rounds, default=0)
        done = len(self.book.entries)
        expected = sum(self.heard.expected(join) for join in self.joins.values())
        running = sum(
            (one, work.attack) not in self.book.entries
            for work in self.working
            for one in work.observations
        )
        summary = self.documents.get("summary.json") or {}
        covered = covers(summary, rounds=played, scores=done, others=self.book.others)
        stage = stage_of(
            self.root,
            summary,
            started=bool(self.config),
            trained=bool(total) and played >= total,
            covered=more or covered,  # of what is not read yet nothing is known
            working=bool(self.working),
            now=now,
        )
        pace = median(self.seconds) if self.seconds else None
        left = number((total - played) * pace) if pace is not None and stage.live else None
        return {
            **stage.record,
            "round": played if self.rounds else None,
            "seconds_per_round": rounded(pace, 3),
            "left_s": None if left is None else round(left),
            "total_s": rounded(number(table(summary.get("seconds")).get("total"))),
            "heard": len(self.heard.found),
            "done": done,
            "running": running if stage.live else 0,
            "waiting": max(0, expected - done - running),
            "per_minute": self._per_minute() if stage.live else None,
            "active": self._active(),
            "reading": more,
            "left_out": self.book.others,
            "working": [self._work(one) for one in self.working] if stage.live else [],
        }

    def _work(self, one: Working) -> Record:
        victims = [self.heard.found.get(each, (0, each)) for each in one.observations]
        return {
            "worker": one.worker,
            "attack": one.attack,
            "round": max(played for played, _ in victims),
            "victims": [text(sender, 60) for _, sender in victims][:6],
            "num_victims": len(victims),
            "started": one.started,
            "step": max((step for step, _ in one.guesses.values()), default=None),
            "stamp": str(one.stamp),
        }

    def _active(self) -> list[int]:
        told = (whole(one) for one in listed(self.newest.get("clients"))[: graph.MOST_NODES])
        return [one for one in told if one is not None]

    def _per_minute(self) -> int | None:
        since = time.monotonic() - MINUTE
        while self.arrived and self.arrived[0][0] < since:
            self.arrived.popleft()
        return sum(amount for _, amount in self.arrived) or None

    def _best(self) -> dict[str, float | None]:
        numbers = {trailing_number(victim): value for victim, value in self.book.best.items()}
        return {
            str(client): rounded(value)
            for client, value in sorted(
                ((one, value) for one, value in numbers.items() if one is not None)
            )[: graph.MOST_NODES]
        }

    def _draw(self) -> None:
        """Draw the federation, when something that it depends on has changed."""
        topology, threat = self.documents.get("topology.json"), self.documents.get("threat.json")
        varies = bool(topology and topology.get("varies"))
        played = whole(self.newest.get("round")) if varies else None
        files = ("config.toml", "threat.json", "topology.json")
        basis = (*(self.stamps.get(file) for file in files), played if played else None)
        if not self.config or self.drawn == basis:
            return
        self.drawn = basis
        scope = graph.scope_of(self.config)
        if topology is None:
            self._put("graph", graph.star(self._num_clients(), threat, scope))
            return
        newest = [self.newest] if played else []
        before = self.sections.get("graph")
        stay = before[1].get("nodes") if before and before[1] else None
        drawn = graph.among_peers(topology, threat or {}, newest, scope, first=not stay)
        self._put("graph", drawn and {"nodes": stay, **drawn})

    # telling

    def since(self, version: int) -> Record:
        """Return what changed after a version; 0 is before everything."""
        with self.lock:
            era = self.sections.get("era", (0, 0))[0]
            if version < era:
                version = 0
            found: Record = {"version": self.version, "full": version == 0}
            found |= {key: one for key, (at, one) in self.sections.items() if at > version}
            rounds = {at: row for at, (changed, row) in self.rounds.items() if changed > version}
            points: dict[str, list[list[Any]]] = {}
            for (attack, played), (changed, row) in sorted(self.points.items()):
                if changed > version:
                    points.setdefault(attack, []).append([played, *row])
        if version == 0:
            kept = thinned(rounds)
            rounds = {at: row for at, row in rounds.items() if at in kept}
            points = {attack: _thinned_rows(rows) for attack, rows in points.items()}
        found["rounds"] = [[at, *row] for at, row in sorted(rounds.items())]
        found["points"] = points
        return found


def thinned(rounds: Mapping[int, object]) -> set[int]:
    """Return at most `MOST_POINTS` rounds, every second, fourth, ..., and the last."""
    order, step = sorted(rounds), 1
    while len(order) / step > MOST_POINTS:
        step *= 2
    return set(order[::step]) | set(order[-1:])


def _thinned_rows(rows: list[list[Any]]) -> list[list[Any]]:
    kept = thinned({row[0]: None for row in rows})
    return [row for row in rows if row[0] in kept]
