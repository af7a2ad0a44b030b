"""Jobs on a Ray cluster."""

import gc
import warnings
from pathlib import Path

import pytest

from fedsim.sweep.cells import cells_of, jobs_of
from fedsim.sweep.config import parse_sweep
from fedsim.sweep.workers import on_ray


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray leaves handles of its own processes to the collector
def test_a_cluster_runs_the_jobs_and_a_bad_one_fails_alone(tmp_path: Path) -> None:
    sweep = parse_sweep(
        {
            "name": "tiny",
            "experiment": {"rounds": 1, "model": {"name": "mlp"}, "partition": {"clients": 2}},
            "cells": [
                {"label": "good"},
                {"label": "too large", "set": {"training.batch_size": 100_000}},
            ],
            "attackers": {"plain": {"name": "linear", "time_budget_s": 5}},
        }
    )
    jobs = jobs_of(cells_of(sweep))

    with warnings.catch_warnings(action="ignore"):
        ended = {one.digest: one for one in on_ray(tmp_path, jobs, 2, "local")}
        gc.collect()

    good, bad = (ended[job.digest] for job in jobs)
    assert good.status == "done"
    assert (tmp_path / good.run / "summary.json").is_file()
    assert bad.status == "failed"
    assert bad.reason is not None
    assert "training.batch_size must be at most" in bad.reason
