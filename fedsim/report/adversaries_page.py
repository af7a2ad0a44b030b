"""The page of a sweep over adversaries: who can see whose images, where, when, and how well."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from fedsim.files import replace_bytes
from fedsim.quality import SCALES, Scale, baseline_values, examples
from fedsim.report import strips
from fedsim.report.charts import png
from fedsim.report.gallery import Pair, spread_of
from fedsim.report.palette import LIGHT
from fedsim.report.peers_view import WAYS
from fedsim.report.pictures import Row, Tile, contact_sheet
from fedsim.report.pictures import png as as_png
from fedsim.report.rendering import WIDE, Chart, Draw, chart, render
from fedsim.report.run_view import RunView
from fedsim.report.specimens import Line, Specimen, guessed_line, private_line
from fedsim.report.sweep_limits import limits_of
from fedsim.report.wording import count
from fedsim.schemas.document import Modality
from fedsim.schemas.sweep import SweepCell, SweepRecord
from fedsim.sweep.reached import Sight, Update, sights, wanted_by_any
from fedsim.sweep.rows import Measured
from fedsim.sweep.tables import modalities

if TYPE_CHECKING:  # the driver builds the page
    from fedsim.sweep.driver import Swept

COLUMNS = 10
"""Images side by side, the same for all settings."""
MOST_DB = 60.0
"""A PSNR above this is drawn here: an image is long recognised."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One cell on the page.

    Attributes:
        row: Its numbers.
        seen: What its adversary got of each update.
        runs: Its runs.
    """

    row: SweepCell
    seen: Sequence[Sight]
    runs: Sequence[Measured]

    @property
    def run(self) -> Measured | None:
        """The attacked run of its first seed, if there is one."""
        return next((one for one in self.runs if one.leakage is not None), None)


def build(swept: "Swept") -> Path:
    """Write `sweep.html`, `images.png` and, of images, `gallery.png`; return the page."""
    record = swept.record
    kinds = modalities(record.cells)
    limits = limits_of(record)
    wanted, _ = wanted_by_any(swept.measured)
    settings = [
        Setting(
            row=row,
            seen=sights(row, swept.measured[row.number], wanted),
            runs=swept.measured[row.number],
        )
        for row in record.cells
    ]
    shown = [one for one in settings if one.row.reach is not None]
    views = {
        one.row.number: RunView(one.run.leakage) for one in shown if one.run and one.run.leakage
    }
    gallery = _gallery(shown, wanted, views) if kinds == ["image"] else []
    alone = len(kinds) == 1
    drawing = _strips(shown, kinds[0], limits[kinds[0]]) if shown and alone else None
    page = render(
        "adversaries.html.j2",
        sweep=record,
        attackers=swept.sweep.attackers.by_role(),
        cells=record.cells,
        shown=[one.row for one in shown],
        ways=WAYS,
        headline=headline(record),
        images=sum(wanted.values()),
        victims=len({client for _, _, client in wanted}),
        rounds=_keys(shown, "rounds"),
        distances=_keys(shown, "distances"),
        chart=None if drawing is None else _chart(drawing, SCALES[kinds[0]]),
        gallery=gallery,
        specimens=[] if gallery or not alone else _specimens(shown, wanted, views),
        features=next((view.features for view in views.values()), []) if alone else [],
        kinds=kinds,
        scales=[SCALES[kind] for kind in kinds],
        limits=limits,
        SCALES=SCALES,
        utility_rounds=_utility_rounds(record.cells),
        most_db=MOST_DB,
    )
    if drawing is not None:
        replace_bytes(swept.folder / "images.png", png(drawing(width=WIDE, colours=LIGHT)))
    if gallery:
        title = "The same private images in every setting"
        sheet = contact_sheet(title, f"{record.name}: {record.description}", gallery)
        replace_bytes(swept.folder / "gallery.png", as_png(sheet))
    replace_bytes(swept.page, page.encode())
    return swept.page


def headline(record: SweepRecord) -> str:
    """Return the finding of the sweep in one sentence."""
    rows = [row for row in record.cells if row.reach is not None]
    found = [(row.reach.whole, row.label) for row in rows if row.reach is not None]
    if not found or not any(part.num_attacked for part, _ in found):
        return "No attack of this sweep has been scored yet."
    whole = max(part.num_images for part, _ in found)
    most, least = (
        max(part.num_recovered for part, _ in found),
        min(p.num_recovered for p, _ in found),
    )
    limits, scales = limits_of(record), {kind: SCALES[kind] for kind in modalities(record.cells)}
    limit = " or ".join(scale.limit_in_full(limits[kind]) for kind, scale in scales.items())
    same = count(whole, next(iter(scales.values())).noun if len(scales) == 1 else "example")
    if most == least:
        return f"Every setting gave {most} of the same {same} away to {limit}."

    def named(number: int) -> str:
        names = [label for part, label in found if part.num_recovered == number]
        if len(names) == 1:
            return names[0]
        return f"{names[0]} and {count(len(names) - 1, 'other')}"

    return (
        f"Of the same {same}, {most} came back to {limit} where most did "
        f"({named(most)}), and {least} where fewest did ({named(least)})."
    )


def _keys(shown: Sequence[Setting], part: str) -> list[str]:
    """Return the rounds, or distances, of any setting, in order."""
    keys = {key for one in shown for key in getattr(one.row.reach, part)}
    return sorted(keys, key=int)


def _utility_rounds(cells: Sequence[SweepCell]) -> str:
    rounds = [number for row in cells for number in row.utility_rounds]
    if not rounds:
        return "no training was evaluated"
    low, high = min(rounds), max(rounds)
    return count(high, "round") if low == high else f"{low} to {high} rounds"


# pictures


def _strips(shown: Sequence[Setting], kind: Modality, limit: float) -> Draw:
    """Return what draws every example as a dot."""
    scale = SCALES[kind]
    most = MOST_DB if kind == "image" else float("inf")
    means = [
        value
        for one in shown
        for sight in one.seen
        if sight.score is not None
        for value in baseline_values(sight.score)
    ]
    rules = {f"recovered, {scale.limit(limit)}": scale.factor * limit}
    if means:
        mean = median(means)
        rules = {f"data mean {scale.written(mean)}": scale.factor * mean, **rules}
    rows = []
    for one in shown:
        dots = [
            (min(scale.factor * value, most), WAYS[sight.how or "heard"])
            for sight in one.seen
            for value in sight.values
        ]
        missed = sum(sight.num_images for sight in one.seen) - len(dots)
        label = f"{one.row.number}  {one.row.label}"
        rows.append(strips.Strip(label=label, dots=dots, missed=missed))
    return partial(
        strips.draw,
        rows,
        rules,
        kinds=list(WAYS.values()),
        titles=(f"{scale.title} of the {scale.noun}, {scale.unit}", "not got"),
    )


def _chart(drawing: Draw, scale: Scale) -> Chart:
    return chart(
        drawing,
        f"A row per setting, a dot per private {scale.noun}: its {scale.title}, coloured by how "
        "the adversary got hold of the update. The tables have the numbers.",
    )


def _shown_updates(wanted: Mapping[Update, int]) -> list[Update]:
    """Return some updates of the first seed."""
    seeds = sorted({seed for seed, _, _ in wanted})
    return _columns([update for update in wanted if update[0] == seeds[0]]) if seeds else []


def _specimens(
    shown: Sequence[Setting], wanted: Mapping[Update, int], views: Mapping[int, RunView]
) -> list[Specimen]:
    """Return private texts or rows, and below each what every setting made of it."""
    found = []
    for update in _shown_updates(wanted):
        private: Line | None = None
        lines = []
        for one in shown:
            view = views.get(one.row.number)
            if view is None:
                continue
            sight = next((sight for sight in one.seen if sight.update == update), None)
            pair = None if sight is None or sight.how is None else _pair(sight)
            label = f"{one.row.number} {one.row.label}"
            lines.append(guessed_line(view.images, label, pair, absent="not got"))
            if pair is not None and (private is None or not private.pieces):
                private = private_line(view.images, [Pair(score=pair.score, image=None)])
        if private is not None:
            where = f"client {update[2]}, round {update[1]}"
            found.append(Specimen(where=where, lines=[private, *lines]))
    return found


def _pair(sight: Sight) -> Pair | None:
    """Return the first example of an update and the guess at it; None if nobody attacked it."""
    if sight.score is None:
        return None
    private = examples(sight.score)
    return Pair(score=sight.score, image=private[0] if private else None)


def _gallery(
    shown: Sequence[Setting], wanted: Mapping[Update, int], views: Mapping[int, RunView]
) -> list[Row]:
    """Return original images, and below each what every setting made of it."""
    columns = _shown_updates(wanted)
    if not columns or not views:
        return []
    rows = [Row(label="Original", tiles=[_original(shown, views, one) for one in columns])]
    for one in shown:
        by_update = {sight.update: sight for sight in one.seen}
        view = views.get(one.row.number)
        if view is not None:
            tiles = [_tile(view, by_update.get(update)) for update in columns]
            rows.append(Row(label=f"{one.row.number} {one.row.label}", tiles=tiles))
    return rows


def _columns(updates: Sequence[Update]) -> list[Update]:
    """Return some updates: every client, spread over rounds, the first round among them."""
    rounds = sorted({number for _, number, _ in updates})
    clients = sorted({client for _, _, client in updates})
    some = spread_of(rounds, max(1, COLUMNS // max(1, len(clients)))) if clients else []
    ordered = [one for number in some for one in updates if one[1] == number]
    return ordered if len(ordered) <= COLUMNS else spread_of(ordered, COLUMNS)


def _original(shown: Sequence[Setting], views: Mapping[int, RunView], update: Update) -> Tile:
    _, number, client = update
    score = {"round": number, "victim": f"client-{client}"}
    caption = f"client {client}, round {number}"
    for one in shown:
        view = views.get(one.row.number)
        image = view.images.original(score, 0) if view is not None else None
        if image is not None:
            return Tile(image=image, caption=caption)
    return Tile(image=None, caption=caption)


def _tile(view: RunView, sight: Sight | None) -> Tile:
    pair = None if sight is None or sight.how is None else _pair(sight)
    if sight is None or sight.how is None or pair is None:
        return Tile(image=None, caption="not got")
    tile = view.guess(pair)
    return Tile(
        image=tile.image,
        caption=tile.caption,
        strong=tile.strong,
        detail=f"{WAYS[sight.how]}; {tile.detail}",
    )
