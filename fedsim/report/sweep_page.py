"""The page of a sweep: what each defense costs, and what three attackers still get out of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.files import replace_bytes
from fedsim.quality import SCALES, Scale, measured
from fedsim.report import adversaries_page
from fedsim.report.charts import png
from fedsim.report.frontier import MOST_DB, Mark, draw, frontier_of
from fedsim.report.gallery import ranked, same_image, spread_of
from fedsim.report.palette import LIGHT
from fedsim.report.pictures import Row
from fedsim.report.rendering import WIDE, Chart, chart, render
from fedsim.report.run_view import RunView
from fedsim.report.specimens import Specimen, specimen
from fedsim.report.sweep_limits import limits_of
from fedsim.report.wording import count, duration, percent
from fedsim.schemas.document import Modality
from fedsim.schemas.statistics import Interval
from fedsim.schemas.sweep import AttackerRow, SweepCell, SweepSeed
from fedsim.sweep.config import UNTOLD
from fedsim.sweep.rows import Measured
from fedsim.sweep.statistics import resampled
from fedsim.sweep.tables import data_mean, data_mean_of, modalities

if TYPE_CHECKING:  # the driver builds the page
    from fedsim.sweep.driver import Swept

COLUMNS = 4
"""Images side by side, per cell."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One cell on the page.

    Attributes:
        row: Its numbers.
        lacking: What is not there of it; empty for a whole one.
        findings: What each attacker came to, a sentence each.
        sheet: Some of its images.
        specimens: In place of it, some of its texts or rows.
        features: Of its rows.
        modality: What its examples are.
    """

    row: SweepCell
    lacking: str
    findings: Sequence[str]
    sheet: Sequence[Row] = ()
    specimens: Sequence[Specimen] = ()
    features: Sequence[str] = ()
    modality: Modality = "image"


def build(swept: "Swept") -> Path:
    """Write `sweep.html` and its picture; return the page."""
    if swept.sweep.compares == "adversaries":
        return adversaries_page.build(swept)
    record = swept.record
    roles = list(record.cells[0].attackers)
    limits = limits_of(record)
    shown = [
        Shown(
            row=row,
            lacking=lacking(row, [one for one in record.seeds if one.number == row.number]),
            findings=[
                finding(role, one, limits[one.modality]) for role, one in row.attackers.items()
            ],
            **_gallery(roles, swept.measured[row.number]),
        )
        for row in record.cells
    ]
    kinds = modalities(record.cells)
    page = render(
        "sweep.html.j2",
        sweep=record,
        attackers=swept.sweep.attackers.by_role(),
        roles=roles,
        untold=UNTOLD,
        cells=shown,
        images=_how_many_images(record.cells),
        kinds=kinds,
        scales=[SCALES[kind] for kind in kinds],
        limits=limits,
        data_mean_of=data_mean_of,
        data_mean=data_mean,
        SCALES=SCALES,
        most_db=MOST_DB,
        headline=headline(record.cells, *(limits[kind] for kind in kinds)),
        frontiers=[
            (SCALES[kind], drawn) for kind in kinds if (drawn := _frontier(swept, kind)) is not None
        ],
        published=any(_has_published(row) for row in record.cells),
        private=any(row.epsilon is not None for row in record.cells),
        rounds=_rounds(record.cells),
        patience=_patience(swept),
    )
    replace_bytes(swept.page, page.encode())
    return swept.page


def lacking(row: SweepCell, seeds: Sequence[SweepSeed]) -> str:
    """Return what is not there of a cell, and of which of its seeds; empty for a whole one."""
    if row.status == "done":
        return ""
    ended = "failed" if row.status == "failed" else "missing"
    if not any(one.run or one.utility_run for one in seeds):
        return "failed" if ended == "failed" else "not run"
    gone = {
        "attacks and utility": [one.seed for one in seeds if not one.run and not one.utility_run],
        "attacks": [one.seed for one in seeds if not one.run and one.utility_run],
        "utility": [one.seed for one in seeds if one.run and not one.utility_run],
    }
    parts = [
        what if len(which) == len(seeds) else f"{what} of {_seeds(which)}"
        for what, which in gone.items()
        if which
    ]
    return f"{ended}: {', '.join(parts)}"


def _seeds(which: Sequence[int]) -> str:
    return f"seed{'' if len(which) == 1 else 's'} {', '.join(map(str, which))}"


def _how_many_images(cells: Sequence[SweepCell]) -> str:
    """Return the number of examples that each attacker attacked in a cell, or its range."""
    numbers = {one.num_images for row in cells for one in row.attackers.values()} - {0}
    if not numbers:
        return "0"
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def headline(cells: Sequence[SweepCell], *limits: float) -> str:
    """Return the finding of a sweep in one sentence; limits: of each kind of its examples."""
    judged = [row for row in cells if any(one.num_images for one in row.attackers.values())]
    if not judged:
        return "No attack of this sweep has been scored yet."
    whole = [row for row in judged if not _broken(row)]
    tried = [row for row in whole if _guessed(row)]
    best = max(
        (row for row in tried if row.accuracy is not None),
        key=lambda row: row.accuracy.value if row.accuracy else 0.0,
        default=None,
    )
    broken, settings = len(judged) - len(whole), count(len(judged), "setting")
    scales = [SCALES[kind] for kind in modalities(cells)]
    nouns = scales[0].nouns if len(scales) == 1 else "examples"
    what = f"{broken} of {settings} gave {nouns} away"
    if len(judged) < len(cells):
        scored = f"{len(judged)} {'has' if len(judged) == 1 else 'have'} scores"
        what = f"Of {len(cells)} settings {scored}, and {broken} gave {nouns} away"
    said = [scale.limit_in_full(limit) for scale, limit in zip(scales, limits, strict=True)]
    start = f"{what} to {' or '.join(said)}"
    if len(tried) < len(whole):
        start += f" (in {len(whole) - len(tried)} every attack failed, which says nothing)"
    if best is None or best.accuracy is None or len(scales) > 1:  # no common measure of use
        return f"{start}."
    kept = f"the most useful of the others is {best.label}, at {percent(best.accuracy.value)}"
    against = ""
    if best.baseline_accuracy is not None:
        against = f" against {percent(best.baseline_accuracy)} undefended"
    return f"{start}; {kept} accuracy{against}."


def _broken(row: SweepCell) -> bool:
    return any(one.num_recovered for one in row.attackers.values())


def _guessed(row: SweepCell) -> bool:
    """Whether any attack came to a guess."""
    return any(one.failed < one.victims for one in row.attackers.values())


def finding(role: str, one: AttackerRow, limit: float) -> str:
    """Return what one attacker came to: worded by what was measured, never as safety."""
    who = f"{role} ({one.attack})"
    if one.refused is not None:
        return f"{who} cannot attack this: {one.refused}"
    if not one.num_images:
        return f"{who} was not run"
    scale = SCALES[one.modality]
    to, private = scale.limit_in_full(limit), count(one.num_images, scale.noun)
    within = f"within {duration(one.time_budget_s)} per update"
    if one.failed == one.victims:
        return f"every attack of {who} failed, which says nothing about safety"
    if one.num_recovered:
        return f"broken by {who}: {one.num_recovered} of {private} to {to} {within}"
    return f"not broken by {who} {within}: none of {private} to {to}"


def _has_published(row: SweepCell) -> bool:
    return row.published.accuracy is not None or row.published.defends is not None


def _rounds(cells: Sequence[SweepCell]) -> str:
    """Say how many rounds of training are behind the accuracies."""
    rounds = [number for row in cells for number in row.utility_rounds]
    if not rounds:
        return "no training was evaluated"
    low, high = min(rounds), max(rounds)
    return count(high, "round") if low == high else f"{low} to {high} rounds"


def _patience(swept: "Swept") -> str:
    """Say when the training that measures utility ends."""
    server = next(iter(swept.cells[0].utility.values())).experiment.server
    if server.patience is None:
        return ""
    every = count(server.evaluate_every, "round")
    return (
        f"; a training ends early once {count(server.patience, 'evaluation')} in a row, one after "
        f"every {every}, brought no better accuracy, but not before it has learned something"
    )


# the frontier


def _frontier(swept: "Swept", kind: Modality) -> Chart | None:
    """Return what cells of one kind of examples leak, against utility; write its picture."""
    scale = SCALES[kind]
    cells = [
        (row, row.accuracy, measured(row.attackers[row.strongest]))
        for row in swept.record.cells
        if row.strongest is not None
        and row.accuracy is not None
        and row.attackers[row.strongest].modality == kind
    ]
    marks = [
        Mark(
            name=f"{row.number} {row.label}",
            short=str(row.number),
            family=row.family,
            x=_ends(accuracy, 100.0),
            y=_ends(leaked, scale.factor),
        )
        for row, accuracy, leaked in cells
        if leaked is not None
    ]
    if not marks:
        return None
    rows = [row for row, _, _ in cells]
    utilities = np.stack([_resampled_accuracy(swept, row) for row in rows], axis=1)
    leakages = np.stack([_resampled_leakage(swept, row) for row in rows], axis=1) * scale.factor
    frontier = frontier_of(100 * utilities, leakages, swept.record.confidence)
    known = [value for row in rows if (value := data_mean(row)[1]) is not None]
    limit = limits_of(swept.record)[kind]
    rules = {f"counts as recovered, {scale.limit(limit)}": scale.factor * limit}
    if known:
        mean = float(np.median(known))
        rules[f"data mean {scale.written(mean)}"] = scale.factor * mean
    titles = ("accuracy, %", f"{_median_of(scale)} of the strongest attacker, {scale.unit}")
    most = MOST_DB if kind == "image" else float("inf")
    drawing = partial(draw, marks, frontier, rules, titles=titles, most=most)
    first = kind == modalities(swept.record.cells)[0]
    name = "frontier.png" if first else f"frontier-{scale.nouns}.png"
    replace_bytes(swept.folder / name, png(drawing(width=WIDE, colours=LIGHT)))
    label = (
        "Leakage against utility, a mark per setting with its interval, and the least leakage at "
        "each accuracy as a line with its band. The table below has the values."
    )
    return chart(drawing, label)


def _median_of(scale: Scale) -> str:
    return f"median{' of' * bool(scale.part)} {scale.title}"


def _ends(interval: Interval | None, scale: float = 1.0) -> tuple[float, float, float]:
    if interval is None:
        return (0.0, 0.0, 0.0)
    low = interval.value if interval.low is None else interval.low
    high = interval.value if interval.high is None else interval.high
    return scale * interval.value, scale * low, scale * high


def _resampled_accuracy(swept: "Swept", row: SweepCell) -> NDArray[np.float64]:
    found = [one.accuracy for one in swept.measured[row.number] if one.accuracy is not None]
    return np.concatenate([[np.mean(found)], resampled(found, np.mean, row.number)])


def _resampled_leakage(swept: "Swept", row: SweepCell) -> NDArray[np.float64]:
    """Return the leakage of the strongest attacker, measured and resampled."""
    runs = [one.attacked.get(row.strongest or "") for one in swept.measured[row.number]]
    found = [value for one in runs if one is not None for value in one.values]
    return np.concatenate([[np.median(found)], resampled(found, np.median, row.number)])


# the gallery


def _gallery(roles: Sequence[str], runs: Sequence[Measured]) -> dict[str, Any]:
    """Return some originals of the first seed, and what each attacker made of them."""
    run = next((one.leakage for one in runs if one.leakage is not None), None)
    if run is None:
        return {}
    view = RunView(run)
    plain: dict[str, Any] = {"modality": view.modality, "features": view.features}
    by_role = {role: found for role in roles if (found := ranked(view.scores, role))}
    if not by_role:
        return plain
    best = max(by_role, key=lambda role: by_role[role][len(by_role[role]) // 2].value or 0.0)
    columns = spread_of(by_role[best], COLUMNS)
    if view.modality != "image":
        specimens = [
            specimen(view.images, [(role, same_image(view.scores, role, one)) for role in roles])
            for one in columns
        ]
        return plain | {"specimens": specimens}
    rows = [Row(label="Original", tiles=[view.original(pair) for pair in columns])]
    for role in roles:
        guesses = [view.guess(same_image(view.scores, role, pair)) for pair in columns]
        rows.append(Row(label=role, tiles=guesses))
    return plain | {"sheet": rows}
