"""Scores as a page needs them: what each attack got, by round and by victim, as they come in."""

from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from fedsim.files import Record
from fedsim.quality import SCALES, examples, modality_of, scale_of
from fedsim.schemas.document import Modality
from fedsim.watch.tail import Line
from fedsim.watch.values import listed, name, number, rounded, table, text, whole

Key = tuple[str, str]
"""(observation, attack)"""
STATES = ("done", "unfinished", "failed", "unscored")
MOST_ATTACKS = 64
"""Attacks that a page tells apart; scores of further ones are left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What is kept of one score; all else is read again where it is needed.

    Attributes:
        round: Of the observation.
        victim: Who sent it.
        status: Of the attack.
        modality: What private examples are; of texts and rows, what is said of images holds.
        on_images: Whether images were guessed.
        values: How close every guessed image came, on the scale of its modality.
        num_images: Private images behind the update; 0 of one that is not scored.
        num_recovered: Of these.
        labels: Share of labels found, if any were guessed.
        baseline: How close guessing the data mean comes, per image.
        threshold: The value from which an image counts as recovered.
        seconds: What the attack took.
        place: Where its line begins in the log.
        length: Of that line.
    """

    round: int
    victim: str
    status: str
    modality: Modality
    on_images: bool
    values: tuple[float, ...]
    num_images: int
    num_recovered: int
    labels: float | None
    baseline: tuple[float, ...]
    threshold: float | None
    seconds: float
    place: int
    length: int


@dataclass
class Attacked:
    """What one attack got so far."""

    keys: set[Key] = field(default_factory=set)
    rounds: dict[int, set[Key]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATES, 0))
    num_images: int = 0
    num_recovered: int = 0
    on_images: int = 0
    seconds: float = 0.0


class ScoreBook:
    """All scores of a run, the newest of each observation and attack."""

    def __init__(self) -> None:
        self.entries: dict[Key, Entry] = {}
        self.attacks: dict[str, Attacked] = {}
        self.by_observation: dict[str, dict[str, Entry]] = {}
        self.by_victim: dict[str, set[Key]] = {}
        self.best: dict[str, float] = {}
        self.changed: set[tuple[str, int]] = set()
        self.modality: Modality | None = None
        self.others = 0
        self.num_added = 0

    def add(self, line: Line) -> None:
        """Take in one line of the log; one that makes no sense is counted and left out."""
        record = line.record
        observation, attack = name(record.get("observation")), name(record.get("attack"))
        entry = _entry(line)
        crowded = attack not in self.attacks and len(self.attacks) >= MOST_ATTACKS
        if observation is None or attack is None or entry is None or crowded:
            self.others += 1
            return
        key = (observation, attack)
        before = self.entries.get(key)
        if before is not None:
            self._count(key, before, -1)
        self.entries[key] = entry
        self.num_added += 1
        self.modality = entry.modality
        self.by_observation.setdefault(observation, {})[attack] = entry
        self._count(key, entry, 1)
        if before is not None:
            self.by_victim[before.victim].discard(key)
            self._find_best(before.victim)
        self.by_victim.setdefault(entry.victim, set()).add(key)
        if entry.values:
            top = max(entry.values)
            self.best[entry.victim] = max(top, self.best.get(entry.victim, top))

    def _find_best(self, victim: str) -> None:
        values = [one for key in self.by_victim[victim] for one in self.entries[key].values]
        if values:
            self.best[victim] = max(values)
        else:
            self.best.pop(victim, None)

    def _count(self, key: Key, entry: Entry, sign: int) -> None:
        mine = self.attacks.setdefault(key[1], Attacked())
        mine.counts[entry.status] += sign
        mine.num_images += sign * entry.num_images
        mine.num_recovered += sign * entry.num_recovered
        mine.on_images += sign * entry.on_images
        mine.seconds += sign * entry.seconds
        keys = mine.rounds.setdefault(entry.round, set())
        if sign > 0:
            mine.keys.add(key)
            keys.add(key)
        else:
            keys.discard(key)
        self.changed.add((key[1], entry.round))

    def point(self, attack: str, number_of_round: int) -> list[float | int | None]:
        """Return median, worst and best value of a round, attacks, and share of labels found."""
        keys = self.attacks[attack].rounds.get(number_of_round, ())
        entries = [self.entries[key] for key in keys]
        values = [value for entry in entries for value in entry.values]
        labels = [entry.labels for entry in entries if entry.labels is not None]
        spread = (median(values), min(values), max(values)) if values else (None, None, None)
        share = sum(labels) / len(labels) if labels else None
        return [*(rounded(one) for one in spread), len(entries), rounded(share)]

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return what each attack got, all rounds together."""
        return {attack: self._row(attack) for attack in self.attacks}

    def _row(self, attack: str) -> dict[str, Any]:
        mine = self.attacks[attack]
        entries = [self.entries[key] for key in mine.keys]
        values = np.fromiter((v for one in entries for v in one.values), float)
        labels = [one.labels for one in entries if one.labels is not None]
        guesses = np.fromiter((v for one in entries for v in one.baseline), float)
        judged = len(entries) - mine.counts["unscored"]
        on_images = mine.on_images > 0 or mine.counts["failed"] == judged
        thresholds = {one.threshold for one in entries if one.threshold is not None}
        return {
            **mine.counts,
            "images": mine.num_images if on_images else 0,
            "recovered": mine.num_recovered,
            "median": rounded(float(np.median(values))) if len(values) else None,
            "best": rounded(float(values.max())) if len(values) else None,
            "labels": rounded(sum(labels) / len(labels)) if labels else None,
            "baseline": rounded(float(np.median(guesses))) if len(guesses) else None,
            "threshold": min(thresholds, default=None),
            "seconds": rounded(mine.seconds / max(1, len(entries))),
        }


def _entry(line: Line) -> Entry | None:
    record = line.record
    number_of_round, status = whole(record.get("round")), record.get("status")
    if number_of_round is None or status not in STATES or not is_of_some_kind(record):
        return None
    images = scored(record)
    values = [number(one.get(scale_of(record).field)) for one in images]
    counts = status != "unscored"
    if modality_of(record) == "image":
        guesses = table(table(record.get("baselines")).get("data_mean")).get("psnr_db")
        threshold = number(record.get("success_threshold_db"))
    else:
        guesses = table(record.get("baseline_accuracy")).get("data_mean")
        threshold = number(record.get("success_accuracy"))
    return Entry(
        round=number_of_round,
        victim=text(record.get("victim"), 100),
        status=str(status),
        modality=modality_of(record),
        on_images=bool(images),
        values=tuple(value for value in values if value is not None),
        num_images=(whole(record.get("batch_size")) or 0) if counts else 0,
        num_recovered=sum(one.get("recovered") is True for one in images) if counts else 0,
        labels=number(record.get("label_accuracy")),
        baseline=tuple(v for one in listed(guesses) if (v := number(one)) is not None),
        threshold=threshold,
        seconds=number(record.get("seconds")) or 0.0,
        place=line.place,
        length=line.length,
    )


def is_of_some_kind(record: Record) -> bool:
    """Whether a score tells of images, texts or rows; those of earlier versions do of images."""
    kind = record.get("modality", "image")
    return isinstance(kind, str) and kind in SCALES


def scored(record: Record) -> list[Record]:
    """Return what a score says of each private example, as far as it makes sense."""
    if not is_of_some_kind(record):
        return []
    return [one for one in listed(examples(record)) if isinstance(one, dict)]
