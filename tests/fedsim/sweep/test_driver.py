"""A sweep from its file to its page; the runs are small, and only slow tests start processes."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedsim.errors import ConfigError, RunFailed
from fedsim.files import read_json
from fedsim.records import RunDirectory
from fedsim.schemas.sweep import SweepRecord
from fedsim.sweep.cells import Job
from fedsim.sweep.config import Sweep, parse_sweep
from fedsim.sweep.driver import SweepProgress, Swept, run_sweep
from fedsim.sweep.job import Outcome, run_job

FAILS = {"label": "too large", "set": {"training.batch_size": 100_000}}


def tiny(**more: Any) -> Sweep:
    noise = [{"name": "gaussian-noise", "options": {"scale": 1.0}}]
    values = {
        "name": "tiny",
        "experiment": {
            "rounds": 1,
            "model": {"name": "mlp", "options": {"hidden": [16]}},
            "partition": {"clients": 3},
            "adversary": {"victims": [0, 1]},
        },
        "cells": [{"label": "none"}, {"label": "noise", "set": {"defenses": noise}}],
        "attackers": {"plain": {"name": "linear", "time_budget_s": 5}},
        "utility": {"set": {"rounds": 3, "training.batch_size": 8}, "note": "Three rounds."},
    }
    return parse_sweep(values | more)


def here(
    folder: Path, jobs: Sequence[Job], workers: int, stopping: Callable[[], None]
) -> Generator[Outcome, None, None]:
    """Run jobs in this process, in place of others."""
    for job in jobs:
        yield run_job(folder, job.digest, job.experiment)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.sweep.driver.in_processes", here)


@pytest.fixture(scope="module")
def swept_once(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """A finished sweep of three cells, one of which cannot be run."""
    folder = tmp_path_factory.mktemp("sweeps") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedsim.sweep.driver.in_processes", here)
        return run_sweep(tiny(cells=[*tiny().cells, FAILS]), folder, workers=1)


@pytest.fixture
def folder(swept_once: Swept, tmp_path: Path) -> Path:
    """A copy of its folder."""
    return Path(shutil.copytree(swept_once.folder, tmp_path / "tiny"))


def test_each_cell_is_a_row_with_utility_and_leakage(swept_once: Swept) -> None:
    none, noise, _ = swept_once.record.cells

    assert none.status == noise.status == "done"
    assert none.attackers["plain"].num_recovered == 2  # one image per gradient, first layer linear
    assert none.attackers["plain"].psnr_db is not None
    assert none.attackers["plain"].psnr_db.value > 60  # dB: only rounding is left
    assert noise.attackers["plain"].num_recovered == 0
    assert none.utility_rounds == noise.utility_rounds == [3]
    assert none.accuracy is not None
    assert noise.baseline_accuracy == none.accuracy.value
    assert noise.bytes_up is not None
    assert none.bytes_up is not None
    assert 4 * 1_210 <= noise.bytes_up < 4 * 1_210 + 2_000  # parameters, and how they are framed
    assert none.bytes_up < 0.5 * noise.bytes_up  # packed as well: most of it is zero
    assert none.strongest == "plain"


def test_a_cell_that_fails_is_a_row_with_its_reason_and_ends_nothing(swept_once: Swept) -> None:
    row = swept_once.record.cells[2]

    assert row.status == "failed"
    assert row.reason is not None
    assert "training.batch_size must be at most" in row.reason
    assert swept_once.record.status == "done"


def test_the_folder_holds_rows_seeds_record_page_and_runs(swept_once: Swept) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = swept_once.folder

    rows = list(csv.DictReader((folder / "rows.csv").read_text().splitlines()))
    seeds = list(csv.DictReader((folder / "seeds.csv").read_text().splitlines()))
    table = parquet.read_table(folder / "rows.parquet").to_pylist()

    assert [row["label"] for row in rows] == ["none", "noise", "too large"]
    assert float(rows[0]["plain.psnr_db.value"]) == table[0]["plain.psnr_db.value"]
    assert table[2]["accuracy.value"] is None
    assert rows[0].keys() == table[0].keys()
    assert [row["seed"] for row in seeds] == ["0", "0", "0"]
    SweepRecord.model_validate(read_json(folder / "sweep.json"))
    assert (folder / "frontier.png").stat().st_size > 10_000
    for row in seeds[:2]:
        RunDirectory.open(folder / row["run"])
        RunDirectory.open(folder / row["utility_run"])
    page = (folder / "sweep.html").read_text()
    assert "not broken by plain (linear) within 5.0" in page.replace("Not", "not")
    assert "Three rounds." in page
    assert "safe" not in page.replace("safety", "")


def test_a_second_call_repeats_nothing_but_what_failed(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.glob("jobs/*.json")}
    seen: list[tuple[int, int]] = []

    def watch(progress: SweepProgress) -> None:
        seen.append((progress.ended, progress.total))

    run_sweep(tiny(), folder, workers=1, watch=watch)

    assert seen == [(4, 4)]
    assert {path: path.read_bytes() for path in folder.glob("jobs/*.json")} == before


@pytest.mark.usefixtures("in_this_process")
def test_a_run_that_was_cut_short_is_gone_on_with_and_ends_with_the_same_bits(
    folder: Path,
) -> None:
    first = run_sweep(tiny(), folder, workers=1)
    job = first.cells[1].utility[0]
    run = first.measured[2][0].utility
    assert run is not None
    whole = read_json(run.summary)
    (folder / "jobs" / f"{job.digest}.json").unlink()
    run.rewrite_log("rounds", run.rounds()[:-1])  # as if it was killed before the last record
    run.summary.unlink()

    second = run_sweep(tiny(), folder, workers=1)

    again = second.measured[2][0].utility
    assert again is not None
    assert again.root == run.root
    assert read_json(again.summary)["weights_sha256"] == whole["weights_sha256"]
    assert second.record.cells[1].accuracy == first.record.cells[1].accuracy


def test_a_folder_of_another_sweep_or_of_something_else_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="belongs to the sweep 'tiny'"):
        run_sweep(tiny(name="other"), folder, workers=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    with pytest.raises(ConfigError, match="something other than a sweep"):
        run_sweep(tiny(), tmp_path / "mine", workers=1)


def test_an_attack_that_does_not_exist_ends_the_sweep_before_it_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'idlg'"):
        run_sweep(tiny(attackers={"plain": {"name": "iddlg"}}), tmp_path / "x", workers=1)
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_a_process_that_dies_is_a_failed_cell_and_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deadly.py").write_text("import os\ndef data(root): os._exit(7)")
    monkeypatch.syspath_prepend(str(tmp_path))
    dies = {"label": "dies", "set": {"data.name": "deadly:data"}}

    swept = run_sweep(
        tiny(cells=[dies, {"label": "none"}], utility=None), tmp_path / "x", workers=1
    )

    dead, alive = swept.record.cells
    assert dead.status == "failed"
    assert dead.reason == "its process ended with exit code 7"
    assert alive.status == "done"


@pytest.mark.usefixtures("in_this_process")
def test_an_attacker_that_cannot_attack_a_cell_leaves_the_others_at_work(tmp_path: Path) -> None:
    fedavg = {"algorithm": "fedavg", "max_local_steps": 2}
    cells = [{"label": "steps", "set": {"training": fedavg}}]
    attackers = {"plain": {"name": "r-gap"}, "auto": {"name": "surrogate", "time_budget_s": 3}}

    swept = run_sweep(
        tiny(cells=cells, attackers=attackers, utility=None), tmp_path / "x", workers=1
    )

    row = swept.record.cells[0]
    assert row.status == "done"
    assert row.attackers["plain"].refused is not None
    assert "cannot work here" in row.attackers["plain"].refused
    assert row.attackers["auto"].refused is None
    assert row.attackers["auto"].victims == 2


@pytest.mark.usefixtures("in_this_process")
def test_a_sweep_in_which_every_job_fails_has_failed(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"every job .* training\.batch_size must be at most"):
        run_sweep(tiny(cells=[FAILS], utility=None), tmp_path / "x", workers=1)
    assert (tmp_path / "x" / "sweep.html").is_file()


def test_whoever_watches_hears_at_once_that_a_sweep_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[bool] = []

    def interrupted(
        folder: Path, jobs: Sequence[Job], workers: int, stopping: Callable[[], None]
    ) -> Generator[Outcome, None, None]:
        stopping()
        assert heard[-1]
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr("fedsim.sweep.driver.in_processes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(tiny(), tmp_path / "x", workers=1, watch=lambda told: heard.append(told.stopping))

    assert heard == [False, True]
    assert read_json(tmp_path / "x" / "sweep.json")["status"] == "interrupted"


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(
        """
name = "tiny"
seeds = [0, 1, 2]
[experiment]
rounds = 2
model = { name = "mlp", options = { hidden = [16] } }
partition = { clients = 2 }
[attackers]
plain = { name = "linear", time_budget_s = 5 }
"""
    )
    command = [sys.executable, "-m", "fedsim.cli", "sweep", str(file), "--workers", "1"]
    folder = tmp_path / "sweeps" / "tiny"
    environment = {"PYTHONPATH": str(Path(__file__).parents[3]), "PATH": "/usr/bin:/bin"}
    first = subprocess.Popen(command, cwd=tmp_path, env=environment)
    for _ in range(1_000):
        if list(folder.glob("jobs/*.json")):
            break
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = {path: path.read_bytes() for path in folder.glob("jobs/*.json")}

    done = subprocess.run(
        [*command, "--json"], cwd=tmp_path, env=environment, capture_output=True, check=True
    )

    assert kept
    assert all(path.read_bytes() == content for path, content in kept.items())
    record = json.loads(done.stdout)
    assert record["status"] == "done"
    assert record["cells"][0]["seeds"] == [0, 1, 2]
