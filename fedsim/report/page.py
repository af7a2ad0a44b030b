"""The report of one run."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from PIL import Image

from attacks.threats import Capability
from fedsim.files import Record, replace_bytes
from fedsim.quality import SCALES, baseline_values, examples, threshold, values
from fedsim.records import RunDirectory
from fedsim.report import calibration, charts
from fedsim.report.gallery import Pair, best_median_worst, ranked, spread_of
from fedsim.report.palette import LIGHT
from fedsim.report.peers_view import GRAPH
from fedsim.report.pictures import Row, Tile, contact_sheet, png
from fedsim.report.rendering import WIDE, Chart, chart, render
from fedsim.report.run_view import RunView
from fedsim.report.specimens import Specimen, Step, specimen, steps_of
from fedsim.schemas.summary import Leakage
from fedsim.threat import MEANING

MOST_COLUMNS = 8
"""Images side by side; texts or rows below each other."""
MOST_STEPS = 12
"""Lines of a text on its way."""
MOST_LINES = 300
"""Lines of a long table; what is beyond is counted, and stands in the records."""


def build(run: RunDirectory) -> Path:
    """Write `report.html` and `pictures/*.png` from whatever a run holds so far; return the page.

    The page stands alone: images and drawings are in it, it runs no script and loads nothing. It
    names no person, machine or folder.
    """
    view = RunView(run)
    sections = [_section(view, row) for row in view.leakage]
    _write_pictures(view, sections)
    page = render(
        "report.html.j2",
        view=view,
        curves=_curves(view),
        sheet=view.sheet(MOST_COLUMNS),
        specimens=view.specimens(MOST_COLUMNS),
        sections=sections,
        calibration=_calibration(view),
        withheld=_withheld(view),
        trouble=_trouble(view.scores),
        lines=[_line(score) for score in view.scores[:MOST_LINES]],
        most=MOST_LINES,
    )
    replace_bytes(run.report, page.encode())
    return run.report


@dataclass(frozen=True, kw_only=True)
class Section:
    """One attack on the page.

    Attributes:
        row: What it got.
        cases: Its best, median and worst guess at images: (name, original, guess).
        film: How its median guess came about.
        specimens: In place of cases, its best, median and worst guess at texts or rows.
        steps: In place of a film, how its median guess at a text came about.
        about: Whose example film and steps are of.
    """

    row: Leakage
    cases: Sequence[tuple[str, Tile, Tile]] = ()
    film: Row | None = None
    specimens: Sequence[Specimen] = ()
    steps: Sequence[Step] = ()
    about: str = ""


def _section(view: RunView, row: Leakage) -> Section:
    cases = best_median_worst(ranked(view.scores, row.attack))
    if view.modality != "image":
        return _told(view, row, cases)
    film = None
    for name, pair in cases:
        if film is None or name == "median":
            film = _film(view, pair)
    return Section(
        row=row,
        cases=[(name, view.original(pair), view.guess(pair)) for name, pair in cases],
        film=film,
        about=film.label if film else "",
    )


def _told(view: RunView, row: Leakage, cases: Sequence[tuple[str, Pair]]) -> Section:
    """Return the section of an attack on texts or rows."""
    specimens = [specimen(view.images, [("Guess", pair)], name) for name, pair in cases]
    steps: list[Step] = []
    middle = 1 if len(cases) > 2 else 0
    if cases and view.modality == "text":
        steps = steps_of(view.images, cases[middle][1], MOST_STEPS)
    return Section(
        row=row,
        specimens=specimens,
        steps=steps,
        about=specimens[middle].where if specimens else "",
    )


def _calibration(view: RunView) -> tuple[Chart, list[tuple[str, list[calibration.Bin]]]] | None:
    """Return a chart of how sure attacks on a table are and how right, with its numbers."""
    found = {
        view.name_of(row.attack): (series, bins)
        for series, row in enumerate(view.leakage)
        if (bins := calibration.bins_of(view.scores, row.attack))
    }
    if not found:
        return None
    label = (
        "Share of features that are right against how sure the attack is of them. Attacks: "
        f"{', '.join(found)}. The table has the values."
    )
    drawn = chart(partial(calibration.draw, found), label, wide=calibration.WIDTH)
    return drawn, [(name, bins) for name, (_, bins) in found.items()]


def _film(view: RunView, pair: Pair) -> Row | None:
    frames = view.images.film(pair, MOST_COLUMNS - 2)
    guess = view.images.guess(pair)
    if not frames or guess is None:
        return None
    if torch.equal(frames[-1][1], guess):
        frames.pop()
    tiles = [Tile(image=image, caption=f"step {step}") for step, image in frames]
    end = Tile(image=guess, caption=f"end, {view.scale.written(pair.value)}", strong=True)
    label = f"{pair.score['victim']}, round {pair.score['round']}"
    return Row(label=label, tiles=[*tiles, end, view.original(pair)])


def _curves(view: RunView) -> Chart | None:
    panels = view.panels()
    if not panels:
        return None
    shown = "; ".join(panel.title for panel in panels)
    names = [name for _, name in view.curve_names]
    attacks = ", ".join(names + [curve.label for curve in view.label_curves()])
    label = (
        f"Curves over rounds: {shown}. Attacks: {attacks or 'none'}. A table below has the values."
    )
    return chart(partial(charts.over_rounds, panels), label)


def _withheld(view: RunView) -> list[Record]:
    """Return what the adversary was not granted; empty if its grants are not recorded."""
    if view.threat is None:
        return []
    granted = {grant["capability"] for grant in view.threat["grants"]}
    return [
        {"capability": str(capability), "meaning": MEANING[capability]}
        for capability in Capability
        if capability not in granted
    ]


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Attacks that ended in the same way, for the same reason.

    Attributes:
        attack: Its label.
        status: How they ended.
        reason: Why, if it is known.
        rounds: Their rounds, each once.
        updates: Their number.
    """

    attack: str
    status: str
    reason: str | None
    rounds: Sequence[int]
    updates: int


def _trouble(scores: Sequence[Record]) -> list[Trouble]:
    """Return what did not end well, most frequent first."""
    groups: dict[tuple[str, str, str | None], list[int]] = {}
    for score in scores:
        if score["status"] != "done":
            key = (score["attack"], score["status"], score["reason"])
            groups.setdefault(key, []).append(score["round"])
    found = [
        Trouble(
            attack=attack,
            status=status,
            reason=reason,
            rounds=sorted(set(rounds)),
            updates=len(rounds),
        )
        for (attack, status, reason), rounds in groups.items()
    ]
    return sorted(found, key=lambda one: (-one.updates, one.attack, one.status, one.reason or ""))


def _line(score: Record) -> Record:
    """Return one line of the table of all scores: medians over the examples of one update."""
    line: Record = dict(score)
    line["value"] = _median(values(score))
    for metric in ("ssim", "rouge_l"):
        line[metric] = _median([one.get(metric) for one in examples(score)])
    line["exact"] = sum(one.get("exact", False) for one in examples(score))
    for name in ("random_guess", "data_mean", "nearest_public"):
        line[name] = _median(baseline_values(score, name))
    return line


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _write_pictures(view: RunView, sections: Sequence[Section]) -> None:
    folder = view.run.pictures
    for old in folder.glob("*.png"):
        old.unlink()
    if view.strongest is not None and (rows := view.sheet(MOST_COLUMNS)):
        replace_bytes(folder / "gallery.png", png(_sheet(view, view.strongest, rows)))
    for section in sections:
        attack = section.row.attack
        if section.cases:
            pairs = spread_of(ranked(view.scores, attack), MOST_COLUMNS)
            rows = [
                Row(label="Original", tiles=[view.original(pair) for pair in pairs]),
                Row(label=attack, tiles=[view.guess(pair) for pair in pairs]),
            ]
            sheet = _sheet(view, section.row, rows)
            replace_bytes(folder / f"gallery-{attack}.png", png(sheet))
        if section.film is not None:
            film = contact_sheet(f"{attack}, step by step", _about(view), [section.film])
            replace_bytes(folder / f"steps-{attack}.png", png(film))
    if view.peers is not None:
        figure = view.peers.draw(width=GRAPH, colours=LIGHT)
        replace_bytes(folder / "graph.png", charts.png(figure))
    if panels := view.panels():
        figure = charts.over_rounds(panels, width=WIDE, colours=LIGHT)
        replace_bytes(folder / "curve.png", charts.png(figure))


def _sheet(view: RunView, row: Leakage, rows: Sequence[Row]) -> Image.Image:
    subtitle = (
        f"{_about(view)}; best to worst by {row.attack}, "
        f"dark figures from {SCALES[row.modality].limit(threshold(row))}"
    )
    return contact_sheet(f"What {view.adversary.rstrip(',')} recovered", subtitle, rows)


def _about(view: RunView) -> str:
    kept = view.settings
    size = kept["training.batch_size"]
    return f"{kept['data.name']}, {kept['model.name']}, batches of {size}, seed {kept['seed']}"
