"""What a person sees while a run goes on."""

import io
from types import SimpleNamespace
from typing import cast

from rich.console import Console

from fedsim.config import parse_experiment
from fedsim.driver import Progress
from fedsim.live import render, rows_of
from fedsim.records import RunDirectory
from fedsim.stages.prepare import Plan
from fedsim.threat import threat_of


def progress_of(run: RunDirectory) -> Progress:
    """Return the last moment of a finished run."""
    experiment = parse_experiment(run.config.read_text())
    plan = SimpleNamespace(experiment=experiment, threat=threat_of(experiment))
    return Progress(run, cast(Plan, plan), rounds=run.rounds(), scores=run.scores())


def drawn(progress: Progress) -> str:
    """Return the table as text."""
    console = Console(width=140, file=io.StringIO(), record=True)
    console.print(render(progress))
    return console.export_text()


def test_without_a_server_the_table_shows_consensus_and_traffic_between_peers(
    made_among_peers: RunDirectory,
) -> None:
    progress = progress_of(made_among_peers)

    rows, text = rows_of(progress), drawn(progress)

    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert [row[3] for row in rows] == ["0.500", "1.000", "1.500"]
    assert "d-psgd on ring, curious-neighbour" in text
    assert "cons." in text
    assert "27.0\u00a0kB between peers" in text


def test_with_a_server_it_does_not(made_once: RunDirectory) -> None:
    progress = progress_of(made_once)

    rows, text = rows_of(progress), drawn(progress)

    assert len(rows[0]) == 9
    assert "cons." not in text
    assert "between peers" not in text
