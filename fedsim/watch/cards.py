"""The gallery: private images, and beside each what every attack has made of it so far."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from fedsim.files import Record
from fedsim.records import EVERYBODY
from fedsim.report.gallery import spread_of
from fedsim.watch.listing import trailing_number
from fedsim.watch.scores import Entry
from fedsim.watch.values import document, listed, number, rounded, text, whole
from fedsim.watch.watched import Watched
from fedsim.watch.workers import Working

Order = Literal["newest", "best", "worst"]
ORDERS: tuple[Order, ...] = get_args(Order)

PAGE = 12
"""Cards that are told at once, at most."""
IMAGES = 3
"""Images of one batch that are shown; of more, those from the best to the worst guess."""
MOST_TILES = 12
"""Attacks beside one original."""
MOST_STEPS = 64
"""Frames of one attack."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which cards.

    Attributes:
        order: By what they are sorted.
        victim: Number of the client; None for all.
        round: Number of the round; None for all.
        skip: Observations to leave out at the beginning.
    """

    order: Order = "newest"
    victim: int | None = None
    round: int | None = None
    skip: int = 0


def cards(run: Watched, wanted: Wanted) -> Record:
    """Return a page of cards, how many observations there are, and where the next page begins."""
    with run.lock:
        order = _ordered(run, wanted)
        chosen, place, found = [], wanted.skip, 0
        while place < len(order) and found < PAGE:
            identity = order[place]
            scores = dict(run.book.by_observation.get(identity, {}))
            working = [one for one in run.working if identity in one.observations]
            chosen.append((identity, run.heard.found[identity], scores, working))
            place, found = place + 1, found + 1
        attacks = list(dict.fromkeys([*run.joins, *run.book.attacks]))[:MOST_TILES]
    found_cards: list[Record] = []
    used = 0
    for identity, about, scores, working in chosen:
        found_cards += _cards_of(run, identity, about, scores, working, attacks)
        used += 1
        if len(found_cards) >= PAGE:
            break
    end = wanted.skip + used
    return {
        "cards": found_cards,
        "total": len(order),
        "next": end if end < len(order) else None,
    }


def _ordered(run: Watched, wanted: Wanted) -> list[str]:
    found = run.heard.found
    order = _everything(run, wanted.order)
    if wanted.order == "newest":
        at_work = run.at_work
        order = sorted(order, key=lambda one: one not in at_work)
    if wanted.round is not None:
        order = [one for one in order if found[one][0] == wanted.round]
    if wanted.victim is not None:
        order = [one for one in order if trailing_number(found[one][1]) == wanted.victim]
    return order


def _everything(run: Watched, order: Order) -> list[str]:
    """Return all observations in order; sorted anew only when there are more, or more scores."""
    amount = (len(run.heard.found), 0 if order == "newest" else run.book.num_added)
    before = run.orders.get(order)
    if before is not None and before[0] == amount:
        return before[1]

    def key(identity: str) -> tuple[float, int, str]:
        played, sender = run.heard.found[identity]
        who = trailing_number(sender)
        own = -played if order == "newest" else _rank(run, identity, order)
        return own, -1 if who is None else who, identity

    found = sorted(run.heard.found, key=key)
    run.orders[order] = (amount, found)
    return found


def _rank(run: Watched, identity: str, order: Order) -> float:
    tops = [
        max(one.values) for one in run.book.by_observation.get(identity, {}).values() if one.values
    ]
    if not tops:
        return float("inf")  # what has no guess comes last
    return -max(tops) if order == "best" else max(tops)


def _cards_of(
    run: Watched,
    identity: str,
    about: tuple[int, str],
    scores: dict[str, Entry],
    working: Sequence[Working],
    attacks: Sequence[str],
) -> Iterator[Record]:
    records = {attack: _record(run, identity, attack, entry) for attack, entry in scores.items()}
    played, sender = about
    images = _images(run, identity, records)
    for place, rank in images:
        yield {
            "id": identity,
            "round": played,
            "victim": text(sender, 60),
            "image": place,
            "rank": rank,
            "label": _label(records, place),
            "original": _sealed(run.root, played, sender),
            "tiles": [
                _tile(run.root, identity, attack, place, records.get(attack), working)
                for attack in attacks
            ],
        }


def _sealed(root: Path, played: int, sender: str) -> bool:
    """Whether the private batch is there; that of everybody is made of many."""
    if sender == EVERYBODY:
        return (root / "truth").is_dir()
    return (root / "truth" / f"round-{played:05d}-{sender}.safetensors").is_file()


def _record(run: Watched, identity: str, attack: str, entry: Entry) -> Record:
    """Return a score in full; what is no longer there has no images."""
    line = run.scores_log.line_at(entry.place, entry.length) or {}
    if line.get("observation") != identity or line.get("attack") != attack:
        return {"status": entry.status}
    return line


def _images(run: Watched, identity: str, records: dict[str, Record]) -> list[tuple[int, str]]:
    """Return which images of a batch are shown, each with its rank where there are more."""
    rated: dict[int, float] = {}
    batch = 0
    for record in records.values():
        batch = max(batch, whole(record.get("batch_size")) or 0)
        for image in _scored(record):
            value, place = number(image.get("psnr_db")), whole(image.get("truth"))
            if value is not None and place is not None:
                rated[place] = max(value, rated.get(place, value))
    if not batch:
        heard = document(run.root / "observations" / f"{identity}.json") or {}
        batch = whole(heard.get("num_examples"), 10**6) or 1
    if batch == 1:
        return [(0, "")]
    if not rated:
        return [(place, "") for place in range(min(IMAGES, batch))]
    ranked = spread_of(sorted(rated, key=lambda place: -rated[place]), IMAGES)
    names = {1: ["only guess"], 2: ["best", "worst"], 3: ["best", "median", "worst"]}[len(ranked)]
    return [(place, f"{name} of {batch}") for place, name in zip(ranked, names, strict=True)]


def _scored(record: Record) -> list[dict[str, Any]]:
    return [one for one in listed(record.get("images")) if isinstance(one, dict)]


def _image(record: Record, place: int) -> dict[str, Any]:
    return next((one for one in _scored(record) if one.get("truth") == place), {})


def _label(records: dict[str, Record], place: int) -> int | None:
    labels = (whole(_image(record, place).get("label")) for record in records.values())
    return next((label for label in labels if label is not None), None)


def _tile(
    root: Path,
    identity: str,
    attack: str,
    place: int,
    record: Record | None,
    working: Sequence[Working],
) -> Record:
    """Return what one attack made of one image."""
    if record is None:
        return {"attack": attack, **_under_way(identity, attack, working)}
    image = _image(record, place)
    guess = whole(image.get("guess"))
    return {
        "attack": attack,
        "state": text(record.get("status"), 20),
        "psnr": rounded(number(image.get("psnr_db"))),
        "ssim": rounded(number(image.get("ssim")), 3),
        "recovered": image.get("recovered") is True,
        "guessed": whole(image.get("guessed_label")),
        "labels": rounded(number(record.get("label_accuracy"))),
        "reason": text(record.get("reason")),
        "seconds": rounded(number(record.get("seconds")), 3),
        "guess": guess,
        **({} if guess is None else _film(root, identity, attack)),
    }


def _under_way(identity: str, attack: str, working: Sequence[Working]) -> Record:
    for one in working:
        if one.attack == attack:
            step, images = one.guesses.get(identity, (None, 0))
            shown = {"worker": one.worker, "stamp": str(one.stamp)} if images else {}
            return {"state": "running", "step": step, **shown}
    return {"state": "waiting"}


def _film(root: Path, identity: str, attack: str) -> Record:
    """Return the steps of the frames of an attack, and what changes when they do."""
    path = root / "reconstructions" / f"{identity}--{attack}.json"
    try:
        stamp = path.stat().st_mtime_ns
    except OSError:
        return {"guess": None}
    record = document(path) or {}
    snapshots = [one for one in listed(record.get("snapshots")) if isinstance(one, dict)]
    steps = [whole(one.get("step")) or 0 for one in snapshots[:MOST_STEPS]]
    last = whole(record.get("steps")) or 0
    return {"steps": [*steps, last], "stamp": str(stamp)}
