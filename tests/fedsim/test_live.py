"""What a person sees while a run goes on."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from rich.console import Console

from fedsim.config import parse_experiment
from fedsim.driver import Progress
from fedsim.live import render, rows_of
from fedsim.records import RunDirectory
from fedsim.stages.prepare import Plan
from fedsim.threat import threat_of
from tests.fedsim.told import table_run, text_run


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


def test_texts_and_rows_are_counted_in_percent(tmp_path: Path) -> None:
    texts, rows = (progress_of(make(tmp_path)) for make in (text_run, table_run))

    assert "tokens at their place in %; guess: that of the data mean" in drawn(texts)
    assert [row[4:8] for row in rows_of(texts)] == [
        ["2", "95.0", "100.0", "25.0"],
        ["2", "66.8", "80.0", "25.0"],
    ]
    assert "features right in %" in drawn(rows)
    assert rows_of(rows)[0][4:8] == ["2", "91.7", "100.0", "25.0"]


def test_before_the_first_score_the_data_say_what_will_be_counted(tmp_path: Path) -> None:
    progress = progress_of(text_run(tmp_path))
    progress.scores.clear()
    progress.plan.task = SimpleNamespace(data=SimpleNamespace(modality="text"))  # type: ignore[misc, assignment]

    assert "tokens at their place in %" in drawn(progress)
