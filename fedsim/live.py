"""The live table: what a run is doing, round by round, as it happens."""

from statistics import median

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedsim.config import Experiment
from fedsim.driver import Progress
from fedsim.files import Record
from fedsim.quality import SCALES, baseline_values, scale_of, values
from fedsim.report.wording import size
from fedsim.stages.summarize import privacy

MOST_ROWS = 24
"""Rows shown at once; older ones scroll off, and stay in the records."""


class LiveTable:
    """Draws a run's progress in place; a context manager.

    Args:
        console: Where to draw.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = Live(console=console, refresh_per_second=8, transient=False)
        self.last: Progress | None = None

    def __enter__(self) -> "LiveTable":
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.last is not None:
            self.live.update(render(self.last), refresh=True)
        self.live.stop()
        if self.last is not None:
            self.console.print()

    def watch(self, progress: Progress) -> None:
        """Draw where the run stands."""
        self.last = progress
        self.live.update(render(progress))


def render(progress: Progress) -> RenderableType:
    """Return the table of one moment: a row per attacked round, and a line of state."""
    experiment, scores = progress.plan.experiment, list(progress.scores)
    scale = scale_of(scores[0]) if scores else SCALES[progress.plan.task.data.modality]
    table = Table(
        title=f"{experiment.name}, {_among(experiment)}{progress.plan.threat.name}",
        caption=f"{scale.title} in {scale.unit}; guess: that of the data mean",
        caption_justify="left",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    heads = ["round", "acc.", "loss", *(["cons."] if experiment.decentralised else [])]
    for heading in heads:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("attack", overflow="fold")  # gives way before any number does
    for heading in ("victims", "median", "best", "guess", "label"):
        table.add_column(heading, justify="right", no_wrap=True)
    rows = rows_of(progress)
    for row in rows[-MOST_ROWS:]:
        table.add_row(*row)
    newest = progress.rounds[-1]["round"] if progress.rounds else 0
    state = Text(
        f"{progress.stage}: round {newest} of {experiment.rounds}, "
        f"{len(progress.scores)} attacks done, {progress.waiting} waiting"
        f"{_spent(progress.rounds)}{_traffic(progress.rounds)}",
        style="dim",
    )
    return Group(table, state)


def rows_of(progress: Progress) -> list[list[str]]:
    """Return the rows of the table: one per attacked round and attack, in order."""
    peers = progress.plan.experiment.decentralised
    rounds = {record["round"]: record for record in progress.rounds}
    groups: dict[tuple[int, str], list[Record]] = {}
    for score in list(progress.scores):
        groups.setdefault((score["round"], score["attack"]), []).append(score)
    order = {config.title: place for place, config in enumerate(progress.plan.experiment.attacks)}
    rows, shown = [], None
    for (number, attack), scores in sorted(
        groups.items(), key=lambda item: (item[0][0], order.get(item[0][1], 0))
    ):
        record = rounds.get(number, {})
        head = [str(number), _number(record.get("accuracy"), 3), _number(record.get("loss"), 3)]
        head += [_number(record.get("consensus_distance"), 3)] if peers else []
        if number == shown:
            head = [""] * len(head)
        shown = number
        rows.append([*head, attack, *_leakage(scores)])
    return rows


def _among(experiment: Experiment) -> str:
    if not experiment.decentralised:
        return ""
    return f"{experiment.protocol.name} on {experiment.topology.name}, "


def _traffic(rounds: list[Record]) -> str:
    between = sum(record.get("bytes_between", 0) for record in rounds)
    return f"; {size(between)} between peers" if between else ""


def _spent(rounds: list[Record]) -> str:
    account = privacy(rounds)
    if not account:
        return ""
    spent = "not finite" if account["epsilon"] is None else f"{account['epsilon']:.3g}"
    return f"; epsilon {spent} at delta {account['delta']:g}, per {account['privacy_unit']}"


def _leakage(scores: list[Record]) -> list[str]:
    scale = scale_of(scores[0])
    found = [value for score in scores for value in values(score)]
    mean = [value for score in scores for value in baseline_values(score)]
    labels = [score["label_accuracy"] for score in scores if score["label_accuracy"] is not None]
    failed = sum(score["status"] == "failed" for score in scores)
    return [
        f"{len(scores)}" + (f" ({failed} failed)" if failed else ""),
        _number(scale.factor * median(found), 1) if found else "-",
        _number(scale.factor * max(found), 1) if found else "-",
        _number(scale.factor * median(mean), 1) if mean else "-",
        f"{sum(labels) / len(labels):.0%}" if labels else "-",
    ]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
