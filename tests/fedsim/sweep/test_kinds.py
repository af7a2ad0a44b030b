"""Sweeps over text and tables: rows, tables and pages on the scale of what clients hold."""

import csv
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedsim.records import RunDirectory
from fedsim.report.sweep_page import finding, headline
from fedsim.schemas.statistics import Interval
from fedsim.schemas.sweep import SweepCell
from fedsim.sweep.cells import Job, cells_of
from fedsim.sweep.config import parse_sweep
from fedsim.sweep.driver import Swept, run_sweep
from fedsim.sweep.job import Outcome
from fedsim.sweep.rows import _attacked, _baseline, _likeness
from fedsim.sweep.tables import data_mean_of, markdown, psnr_of
from tests.fedsim.report.test_page import Page
from tests.fedsim.told import table_run, text_run

TEXT = {"data.name": "python-docs", "model.name": "bert"}
TABLE = {"data.name": "wine", "model.name": "mlp"}


def swept_over(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *cells: dict[str, Any],
    compares: str = "defenses",
) -> Swept:
    """Return a sweep whose jobs find their runs made: of texts or rows, as their data say."""

    def made(
        folder: Path, jobs: Sequence[Job], workers: int, stopping: Callable[[], None]
    ) -> Generator[Outcome, None, None]:
        for job in jobs:
            make: Callable[..., RunDirectory] = table_run
            if job.experiment.data.name == "python-docs":
                make = text_run
            run = make(folder / "runs" / job.digest, attack="plain")
            yield Outcome(
                digest=job.digest,
                status="done",
                run=str(run.root.relative_to(folder)),
                refused={},
                seconds=1.0,
            )

    monkeypatch.setattr("fedsim.sweep.driver.in_processes", made)
    sweep = parse_sweep(
        {
            "name": "kinds",
            "compares": compares,
            "experiment": {"rounds": 2, "partition": {"clients": 3}},
            "cells": list(cells),
            "attackers": {"plain": {"name": "dlg", "time_budget_s": 5}},
        }
    )
    return run_sweep(sweep, folder, workers=1)


def test_a_sweep_over_a_table_is_told_in_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = [{"name": "gaussian-noise", "options": {"scale": 1.0}}]
    swept = swept_over(
        tmp_path / "one",
        monkeypatch,
        {"label": "none", "set": TABLE},
        {"label": "noise", "set": TABLE | {"defenses": noise}},
    )

    row = swept.record.cells[0].attackers["plain"]
    page = Page(swept.page.read_text())
    lines = list(csv.DictReader((swept.folder / "rows.csv").read_text().splitlines()))

    assert (row.modality, row.psnr_db, row.num_recovered) == ("table", None, 2)
    assert row.accuracy is not None
    assert row.accuracy.value == pytest.approx(5 / 6)
    assert swept.record.success_accuracy == 0.9
    assert psnr_of(row).startswith("83.3 (")
    assert data_mean_of(swept.record.cells[0]) == "25\u00a0%"
    assert "| plain, % |" in markdown(swept.record)
    assert float(lines[0]["plain.accuracy.value"]) == pytest.approx(5 / 6)
    assert not [name for name in lines[0] if "psnr" in name or "ssim" in name]
    assert "2 of 2 settings gave rows away to 90 % of features right." in page.text
    assert "Leakage is the median share of features right over private rows; a row" in page.text
    assert any(">median of features right of the strongest attacker, %<" in c for c in page.charts)
    assert "marital status" in page.text
    for said in ("PSNR", "dB", "image"):
        assert said not in page.text


def test_kinds_without_a_common_scale_have_a_picture_each_and_units_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept = swept_over(
        tmp_path / "two", monkeypatch, {"label": "text", "set": TEXT}, {"label": "t", "set": TABLE}
    )

    page = Page(swept.page.read_text())

    assert "The two have no common scale" in page.text
    assert "2 of 2 settings gave examples away to 90 % of tokens at their place or 90 % of" in (
        page.text
    )
    assert (swept.folder / "frontier-rows.png").is_file()
    titles = ("median of tokens at their place of the strongest", "median of features right of the")
    assert [sum(title in chart for chart in page.charts) for title in titles] == [4, 4]
    assert "| plain |" in markdown(swept.record)
    assert "%" in markdown(swept.record).splitlines()[2].split("|")[4]
    assert "80.9 %" in page.text


def test_a_finding_on_texts_is_worded_in_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept = swept_over(tmp_path / "three", monkeypatch, {"label": "text", "set": TEXT})
    row = swept.record.cells[0].attackers["plain"]

    assert finding("plain", row, 0.9).replace("\u00a0", " ") == (
        "broken by plain (dlg): 2 of 8 texts to 90 % of tokens at their place within 5.0 s per "
        "update"
    )
    assert "gave texts away to 90" in headline(swept.record.cells, 0.9)


def test_who_sees_whose_texts_is_drawn_and_read_in_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = ({"label": "server", "set": TEXT}, {"label": "tap", "set": TEXT | {"rounds": 3}})
    swept = swept_over(tmp_path / "who", monkeypatch, *cells, compares="adversaries")

    page = Page(swept.page.read_text())

    assert page.open == []
    assert "Every setting gave 2 of the same 8 texts away to 90 % of tokens at their" in page.text
    assert any(">tokens at their place of the text, %<" in chart for chart in page.charts)
    assert "2 of 880.9 %" in page.text
    assert "client 1, round 2" in page.text
    assert {one["class"] for one in page.all("mark")} == {"hit", "near"}
    reach = swept.record.cells[0].reach
    assert reach is not None
    assert (reach.whole.psnr_db, reach.whole.modality) == (None, "text")
    for said in ("PSNR", "dB", "image"):
        assert said not in page.text


def test_what_has_no_common_scale_is_not_drawn_on_one_axis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = ({"label": "text", "set": TEXT}, {"label": "table", "set": TABLE})
    swept = swept_over(tmp_path / "which", monkeypatch, *cells, compares="adversaries")

    page = Page(swept.page.read_text())

    assert "no common scale: it cannot be drawn on one axis" in page.text
    assert not page.charts


def test_a_missed_text_with_nothing_public_to_guess_it_from_counts_as_nothing_right(
    tmp_path: Path,
) -> None:
    run = text_run(tmp_path, attack="plain")
    first, *others = run.scores()
    missed = first["texts"][0] | {"guess": None, "accuracy": None, "recovered": False}
    first |= {"baseline_accuracy": {}, "texts": [missed, first["texts"][1]]}
    failed = others[0] | {"baseline_accuracy": {}, "texts": [], "status": "failed"}
    run.rewrite_log("scores", [first, failed])

    found = _attacked(run)["plain"]

    assert found.values == [0.0, 1.0, 0.0, 0.0]
    assert found.guessed == [1.0]
    assert found.data_mean == []
    assert _likeness("text", found.values, found.guessed, [found], 0.95)["best_accuracy"] == 1.0


def test_the_accuracy_without_a_defense_is_that_on_the_same_data() -> None:
    noise = [{"name": "gaussian-noise", "options": {"scale": 1.0}}]
    settings: list[dict[str, Any]] = [{}, TABLE, TABLE | {"defenses": noise}]
    sweep = {
        "name": "kinds",
        "cells": [{"label": f"{place}", "set": one} for place, one in enumerate(settings)],
        "attackers": {"plain": {"name": "dlg"}},
    }
    cells = cells_of(parse_sweep(sweep))
    rows = [
        SweepCell(
            number=cell.number,
            label=cell.label,
            family=cell.family,
            levels={},
            defense=cell.defense,
            status="done",
            seeds=[0],
            accuracy=Interval(value=accuracy),
        )
        for cell, accuracy in zip(cells, (0.9, 0.4, 0.3), strict=True)
    ]

    assert _baseline(cells[2], cells, rows) == 0.4
