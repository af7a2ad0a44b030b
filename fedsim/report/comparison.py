"""Several runs side by side, in one page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from fedsim.errors import ConfigError
from fedsim.files import replace_bytes
from fedsim.quality import SCALES, Scale, baseline, measured
from fedsim.records import RunDirectory
from fedsim.report.charts import over_rounds, scatter
from fedsim.report.curves import Panel, Spot
from fedsim.report.page import MOST_LINES
from fedsim.report.pictures import Row
from fedsim.report.rendering import Chart, chart, render
from fedsim.report.run_view import RunView
from fedsim.report.specimens import Specimen
from fedsim.report.wording import count, percent
from fedsim.schemas.document import Modality
from fedsim.schemas.summary import Leakage

COLUMNS = 4
"""Images side by side, per run."""
MOST_LEVELS = 3
"""Data means in one panel, with a line of its own each."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One of the runs.

    Attributes:
        view: The run.
        name: What the page calls it, unlike any other.
        series: Its number, which is also its colour.
    """

    view: RunView
    name: str
    series: int

    def label(self, attack: str) -> str:
        """What charts call one of its attacks: an oracle is always called one."""
        marks = self.view.marks(attack)
        return f"{self.name} ({marks})" if marks else self.name

    @property
    def sheet(self) -> list[Row]:
        """Some of its images."""
        return self.view.sheet(COLUMNS)

    @property
    def specimens(self) -> list[Specimen]:
        """Some of its texts or rows."""
        return self.view.specimens(COLUMNS)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Runs whose leakage is on one scale: what is beside it are others' runs.

    Attributes:
        modality: What their private examples are.
        runs: Which.
    """

    modality: Modality
    runs: Sequence[Compared]

    @property
    def scale(self) -> Scale:
        """On which their leakage is measured."""
        return SCALES[self.modality]


def compare(runs: Sequence[RunDirectory], output: Path) -> Path:
    """Write one page that shows runs side by side; return `output`.

    Each run keeps one colour. Runs that differ in nothing but their seed are also summed up, as
    mean and sample standard deviation over seeds.

    Raises:
        ConfigError: There is no run.
    """
    if not runs:
        raise ConfigError("compare needs at least one run directory")
    compared = [
        Compared(view=RunView(run), name=name, series=series)
        for series, (run, name) in enumerate(zip(runs, _names(runs), strict=True))
    ]
    kinds = _kinds(compared)
    page = render(
        "compare.html.j2",
        runs=compared,
        kinds=kinds,
        headline=_headline(compared),
        curves=_curves(kinds),
        frontiers=[(kind.scale, drawn) for kind in kinds if (drawn := _frontier(kind))],
        distances=_distances(kinds),
        groups=_seed_groups(compared),
        differences=_differences(compared),
        most=MOST_LINES,
    )
    replace_bytes(output, page.encode())
    return output


def _names(runs: Sequence[RunDirectory]) -> list[str]:
    names: list[str] = []
    for run in runs:
        same = sum(name == run.name or name.startswith(f"{run.name} (") for name in names)
        names.append(f"{run.name} ({same + 1})" if same else run.name)
    return names


def _kinds(runs: Sequence[Compared]) -> list[Kind]:
    """Return the runs by what their private examples are, in order of first appearance."""
    found = list(dict.fromkeys(one.view.modality for one in runs))
    return [
        Kind(modality=modality, runs=[one for one in runs if one.view.modality == modality])
        for modality in found
    ]


def _headline(runs: Sequence[Compared]) -> str:
    attacked = [one.view for one in runs if one.view.strongest is not None]
    best = [row for view in attacked if (row := view.strongest) is not None]
    accuracies = [a for view in attacked if (a := view.utility.accuracy) is not None]
    found_in = {one.view.scale.nouns for one in runs}
    nouns = found_in.pop() if len(found_in) == 1 else "examples"
    if not best:
        return f"{count(len(runs), 'run')} side by side; none has attacked {nouns}."
    rates = [row.success_rate or 0.0 for row in best]
    found = (
        f"the strongest attack of each recovered {_range(rates, percent)} of the private {nouns}"
    )
    at = f", at an accuracy of {_range(accuracies, percent)}" if accuracies else ""
    all_of = "" if len(best) == len(runs) else f"{len(best)} of "
    return f"In {all_of}{count(len(runs), 'run')}, {found}{at}."


def _range(values: Sequence[float], say: Callable[[float], str]) -> str:
    low, high = say(min(values)), say(max(values))
    return low if low == high else f"{low} to {high}"


def _curves(kinds: Sequence[Kind]) -> Chart | None:
    runs = sorted((one for kind in kinds for one in kind.runs), key=lambda one: one.series)
    panels = [
        Panel(
            title=f"{attack}: {kind.scale.axis}",
            curves=[one.view.curve(attack, one.series, one.label(attack)) for one in kind.runs],
            rules=_rules(kind, attack),
            height=150,
            most=kind.scale.most,
        )
        for kind in kinds
        for attack in _attacks(kind.runs)
    ]
    panels = [panel for panel in panels if any(at.value is not None for at in panel.points)]
    accuracy = [one.view.measured("accuracy", one.series, one.name) for one in runs]
    panels.append(Panel(title="accuracy", curves=accuracy, height=110, most=1))
    consensus = [one.view.consensus(one.series, one.name) for one in runs]
    panels.append(Panel(title="consensus distance", curves=consensus, height=90))
    panels = [panel for panel in panels if panel.points]
    if not panels:
        return None
    shown = "; ".join(panel.title for panel in panels)
    label = f"Curves over rounds, a colour per run: {shown}. Tables below have the values."
    return chart(partial(over_rounds, panels), label)


def _attacks(runs: Sequence[Compared]) -> list[str]:
    """Return the attacks on examples of all runs, each once, in order of first appearance."""
    return list(dict.fromkeys(name for one in runs for _, name in one.view.curve_names))


def _rules(kind: Kind, attack: str | None = None) -> dict[str, float]:
    """Return the data mean of runs as levels: one for each run in which it is another.

    Where there are many, it is the least and the highest.

    Args:
        kind: Of which runs.
        attack: Of which images: those that this one attacked; None for the strongest of each run.
    """
    scale = kind.scale
    levels: dict[str, list[tuple[str, float]]] = {}
    for one in kind.runs:
        rows = [one.view.strongest] if attack is None else one.view.leakage
        for row in rows:
            mean = None if row is None else baseline(row)
            if row is None or mean is None or attack not in (None, row.attack):
                continue
            if row.success_rate is not None:
                found = levels.setdefault(scale.written(mean), [])
                found.append((one.name, scale.factor * mean))
    means = {said: fmean(value for _, value in found) for said, found in levels.items()}
    if len(means) > MOST_LEVELS:
        low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
        return {f"least data mean {low}": means[low], f"highest data mean {high}": means[high]}
    if len(means) == 1:
        return {f"data mean {said}": level for said, level in means.items()}
    return {f"data mean {said}, {_names_in(levels[said])}": level for said, level in means.items()}


def _names_in(found: Sequence[tuple[str, float]]) -> str:
    return found[0][0] if len(found) == 1 else count(len(found), "run")


def _frontier(kind: Kind) -> Chart | None:
    spots = [
        Spot(
            x=100 * one.view.utility.accuracy,
            y=kind.scale.factor * got.median,
            series=one.series,
            name=one.label(row.attack),
            kind=row.attack,
        )
        for one in kind.runs
        for row in one.view.leakage
        if one.view.utility.accuracy is not None and (got := measured(row)) is not None
    ]
    if not spots:
        return None
    what = _median_of(kind.scale)
    label = (
        f"{what[:1].upper()}{what[1:]} against accuracy, a point per run and attack: "
        "the table above in a picture"
    )
    titles = ("accuracy, %", f"{what}, {kind.scale.unit}")
    return chart(partial(scatter, spots, titles=titles), label)


def _median_of(scale: Scale) -> str:
    return f"median{' of' * bool(scale.part)} {scale.title}"


def _distances(kinds: Sequence[Kind]) -> Chart | None:
    """Return leakage by distance from the adversary, for runs without a server."""
    panels = []
    for kind in kinds:
        drawn = [
            (one, one.view.peers.by_distance(one.series, one.name))
            for one in kind.runs
            if one.view.peers is not None
        ]
        drawn = [
            (one, curve) for one, curve in drawn if any(at.value is not None for at in curve.points)
        ]
        if drawn:
            there = Kind(modality=kind.modality, runs=[one for one, _ in drawn])
            panels.append(
                Panel(
                    title=kind.scale.axis,
                    curves=[curve for _, curve in drawn],
                    height=210,
                    rules=_rules(there),
                    most=kind.scale.most,
                )
            )
    if not panels:
        return None
    what = "PSNR" if all(panel.most is None for panel in panels) else "likeness"
    label = (
        f"Median {what} by links from the adversary, a colour per run; their pages have the values"
    )
    return chart(partial(over_rounds, panels, along="links from the adversary"), label)


# seeds


@dataclass(frozen=True, kw_only=True)
class OverSeeds:
    """Mean and sample standard deviation over seeds.

    Attributes:
        mean: None if no run has a value.
        std: None for fewer than two values.
    """

    mean: float | None
    std: float | None


@dataclass(frozen=True, kw_only=True)
class SeedGroup:
    """Runs that differ in nothing but their seed.

    Attributes:
        names: Their names.
        scale: On which their leakage is measured.
        accuracy: Of the final models.
        attacks: Per attack: median likeness and success rate of each run, over seeds.
    """

    names: Sequence[str]
    scale: Scale
    accuracy: OverSeeds
    attacks: Sequence[tuple[str, OverSeeds, OverSeeds]]


def over_seeds(values: Sequence[float | None]) -> OverSeeds:
    """Return mean and sample standard deviation of what is known."""
    known = [value for value in values if value is not None]
    return OverSeeds(
        mean=fmean(known) if known else None, std=stdev(known) if len(known) > 1 else None
    )


def _seed_groups(runs: Sequence[Compared]) -> list[SeedGroup]:
    groups: dict[str, list[Compared]] = {}
    for one in runs:
        rest = {key: value for key, value in one.view.settings.items() if key != "seed"}
        groups.setdefault(repr(rest), []).append(one)
    return [
        _seed_group(group)
        for group in groups.values()
        if len({one.view.settings["seed"] for one in group}) > 1
    ]


def _seed_group(group: Sequence[Compared]) -> SeedGroup:
    def rows(attack: str) -> list[Leakage]:
        return [row for one in group for row in one.view.leakage if row.attack == attack]

    return SeedGroup(
        names=[one.name for one in group],
        scale=group[0].view.scale,
        accuracy=over_seeds([one.view.utility.accuracy for one in group]),
        attacks=[
            (
                attack,
                over_seeds(
                    [got.median if (got := measured(row)) else None for row in rows(attack)]
                ),
                over_seeds([row.success_rate for row in rows(attack)]),
            )
            for attack in _attacks(group)
        ],
    )


def _differences(runs: Sequence[Compared]) -> list[tuple[str, list[Any]]]:
    """Return the settings in which the runs differ: (key, value of each run; None if absent)."""
    keys = dict.fromkeys(key for one in runs for key in one.view.settings)
    table = [(key, [one.view.settings.get(key) for one in runs]) for key in keys]
    return [(key, values) for key, values in table if any(v != values[0] for v in values)]
