"""The gallery: private images, texts or rows, and beside each what every attack made of it so far.

What is said of images holds for texts and rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from fedsim.examples import Reader
from fedsim.files import Record
from fedsim.quality import modality_of, scale_of
from fedsim.records import EVERYBODY
from fedsim.report.gallery import spread_of
from fedsim.watch.listing import trailing_number
from fedsim.watch.scores import Entry, is_of_some_kind, scored
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
ROUGE = ("rouge1", "rouge2", "rouge_l")
"""What is told of a text beside its accuracy."""


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
    records = {attack: run.score(identity, attack, entry) for attack, entry in scores.items()}
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
            "class": _class(run.reader, _label(records, place)),
            "original": _sealed(run.root, played, sender),
            "tiles": [
                _tile(run, identity, attack, place, records.get(attack), working)
                for attack in attacks
            ],
        }


def _sealed(root: Path, played: int, sender: str) -> bool:
    """Whether the private batch is there; that of everybody is made of many."""
    if sender == EVERYBODY:
        return (root / "truth").is_dir()
    return (root / "truth" / f"round-{played:05d}-{sender}.safetensors").is_file()


def _images(run: Watched, identity: str, records: dict[str, Record]) -> list[tuple[int, str]]:
    """Return which images of a batch are shown, each with its rank where there are more."""
    rated: dict[int, float] = {}
    batch = 0
    for record in records.values():
        batch = max(batch, whole(record.get("batch_size")) or 0)
        for image in scored(record):
            value, place = _value(record, image), whole(image.get("truth"))
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


def _value(record: Record, image: Record) -> float | None:
    return number(image.get(scale_of(record).field)) if is_of_some_kind(record) else None


def _image(record: Record, place: int) -> Record:
    return next((one for one in scored(record) if one.get("truth") == place), {})


def _label(records: dict[str, Record], place: int) -> int | None:
    labels = (whole(_image(record, place).get("label")) for record in records.values())
    return next((label for label in labels if label is not None), None)


def _class(reader: Reader, label: int | None) -> str:
    """Return the name of the class of a text or a row; classes of images have numbers here."""
    if label is None or reader.modality == "image" or label >= len(reader.class_names):
        return ""
    return text(reader.class_names[label], 40).strip()


def _tile(
    run: Watched,
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
    is_text = is_of_some_kind(record) and modality_of(record) == "text"
    return {
        "attack": attack,
        "state": text(record.get("status"), 20),
        "value": rounded(_value(record, image)),
        "rouge": [rounded(number(image.get(key)), 3) for key in ROUGE] if is_text else [],
        "recovered": image.get("recovered") is True,
        "guessed": whole(image.get("guessed_label")),
        "guessed_class": _class(run.reader, whole(image.get("guessed_label"))),
        "labels": rounded(number(record.get("label_accuracy"))),
        "reason": text(record.get("reason")),
        "seconds": rounded(number(record.get("seconds")), 3),
        "guess": guess,
        **({} if guess is None else _film(run.root, identity, attack)),
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
