"""What it costs the training that somebody listens, and attacks what was heard.

    python -m benchmarks.eavesdropping --output benchmarks/results/eavesdropping.json
    python -m benchmarks.eavesdropping --markdown benchmarks/results/eavesdropping.json

Clients train in a thread that keeps to the first core; whatever else there is (attack worker,
scoring, the thread that follows the run) keeps to the others. Runs in which the adversary listens
in every round take turns with runs in which it hears the last round alone: what is heard is
attacked and scored later, so rounds of one run can't be compared. A third kind of run hears as
little, and a stranger, who trains the same model, keeps the other cores busy: what that costs is
the machine's, whose cores share caches and memory. Where the rest goes is told by profiles, of one
run of each of the first two kinds, of the thread that trains and of the one that follows the run.
"""

import argparse
import contextlib
import cProfile
import json
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.bare import BATCH, CLIENTS, RATE
from benchmarks.dlg_cifar100 import environment
from benchmarks.performance import eavesdropping_tables
from fedsim import driver
from fedsim.config import Experiment, parse_experiment
from fedsim.driver import run
from fedsim.engines.in_process import InProcess
from fedsim.pool import AttackPool

ROWS: tuple[dict[str, Any], ...] = (
    {"model": "lenet", "heard": 1, "rounds": 12, "turns": 4},
    {"model": "mlp", "heard": 1, "rounds": 20, "turns": 5},
    {"model": "cnn", "heard": 1, "rounds": 4, "turns": 3},
)
"""Models, of how many of the 50 clients the adversary keeps updates in a round, and how many runs
there are of each kind."""
RATIOS = {"ratio": ("heard", "deaf"), "stranger": ("beside", "deaf")}
"""What is compared."""
PROFILED = 40
"""Rounds of a profile: the first attack takes seconds to start."""
SHOWN = 14
"""Functions that a profile shows."""


class Pinned(InProcess):
    """The engine in one process; the thread that trains has a core to itself."""

    def open_pool(self) -> AttackPool:
        """Start the attack workers, where no client trains; what is started later inherits that."""
        self.first, *others = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, others or [self.first])
        return super().open_pool()

    def train(self) -> None:
        """Run all rounds on the core that nobody else uses."""
        os.sched_setaffinity(0, [self.first])
        super().train()


def experiment(row: Mapping[str, Any], folder: Path, heard_in: list[int]) -> Experiment:
    """Return a federation in which so many clients are heard, in these rounds."""
    rounds = row["rounds"] + 2
    return parse_experiment(
        f"""
        name = "eavesdropping"
        rounds = {rounds}
        partition = {{ clients = {CLIENTS} }}
        data = {{ name = "benchmarks.engine_work:noise" }}
        model = {{ name = "benchmarks.engine_work:{row["model"]}" }}
        training = {{ algorithm = "fedavg", batch_size = {BATCH}, learning_rate = {RATE} }}
        adversary = {{ victims = {list(range(row["heard"]))}, rounds = {heard_in} }}
        engine = {{ name = "{__name__}:Pinned", attack_workers = 1 }}
        output = {{ directory = "{folder}" }}
        [server]
        evaluate_every = {rounds + 1}
        strategy = "benchmarks.engine_work:Clocked"
        options = {{ clock = "{folder / "clock.jsonl"}" }}
        [[attacks]]
        name = "inverting-gradients"
        time_budget_s = 0.5
        """
    )


def clocked(row: Mapping[str, Any], heard_in: list[int]) -> list[dict[str, float]]:
    """Run it, and return what each round cost."""
    with tempfile.TemporaryDirectory() as folder:
        cores = os.sched_getaffinity(0)
        try:
            run(experiment(row, Path(folder), heard_in))
        finally:
            os.sched_setaffinity(0, cores)
        lines = (Path(folder) / "clock.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@contextlib.contextmanager
def stranger(model: str) -> Iterator[None]:
    """Keep all cores but the first busy with training meanwhile."""
    others = sorted(os.sched_getaffinity(0))[1:]
    work = f"while True: bare_round({model!r})"
    code = f"import torch\ntorch.set_num_threads(1)\nfrom benchmarks.engine_work import *\n{work}"
    busy = [subprocess.Popen([sys.executable, "-c", code]) for _ in others]
    try:
        for one, core in zip(busy, others, strict=True):
            os.sched_setaffinity(one.pid, [core])
        yield
    finally:
        for one in busy:
            one.kill()
            one.wait()


def measure(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what rounds cost with an ear, without one, and beside a stranger; in turns."""
    every = list(range(1, row["rounds"] + 3))
    turns = []
    for _ in range(row["turns"]):
        runs = {"heard": clocked(row, every), "deaf": clocked(row, every[-1:])}
        with stranger(row["model"]):
            runs["beside"] = clocked(row, every[-1:])
        turns.append({kind: rows[1:-1] for kind, rows in runs.items()})
    found: dict[str, Any] = dict(row)
    for clock in ("wall_s", "cpu_s"):
        means = [
            {kind: statistics.fmean(one[clock] for one in rows) for kind, rows in turn.items()}
            for turn in turns
        ]
        found[clock] = {kind: statistics.median(turn[kind] for turn in means) for kind in means[0]}
        for name, (kind, other) in RATIOS.items():
            ratios = [turn[kind] / turn[other] for turn in means]
            found[clock][name] = statistics.median(ratios)
            found[clock][f"{name}_low"], found[clock][f"{name}_high"] = min(ratios), max(ratios)
    return found


def profiled(row: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return where two threads' time goes, while clients train, that deaf rounds do not take."""
    rounds = PROFILED
    every = list(range(1, rounds + 3))
    taken: dict[str, dict[str, dict[str, float]]] = {"training": {}, "following the run": {}}
    for kind, heard_in in (("heard", every), ("deaf", every[-1:])):
        trains, follows = cProfile.Profile(), cProfile.Profile()
        with (
            mock.patch.object(Pinned, "train", _profiled(trains, Pinned.train)),
            mock.patch.object(driver._Beside, "_look", _following(follows)),
        ):
            clocked({**row, "rounds": rounds}, heard_in)
        for thread, profile in zip(taken, (trains, follows), strict=True):
            stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
            for (file, _, name), (_, _, _, total, _) in stats.items():
                times = taken[thread].setdefault(f"{Path(file).stem}.{name}", {})
                times[kind] = times.get(kind, 0.0) + total
    updates = len(every) * row["heard"]
    return {thread: _most(functions, updates) for thread, functions in taken.items()}


def _profiled(profile: cProfile.Profile, work: Callable[..., None]) -> Callable[..., None]:
    def profiled(*arguments: object, **more: object) -> None:
        profile.enable()
        try:
            work(*arguments, **more)
        finally:
            profile.disable()

    return profiled


def _following(profile: cProfile.Profile) -> Callable[..., None]:
    look = driver._Beside._look
    profiled = _profiled(profile, look)

    def following(beside: driver._Beside, **more: bool) -> None:
        (look if more["trained"] else profiled)(beside, **more)

    return following


def _most(functions: Mapping[str, Mapping[str, float]], updates: int) -> list[dict[str, Any]]:
    rows = [
        {
            "function": name,
            "ms_more_per_update": 1e3
            * (times.get("heard", 0.0) - times.get("deaf", 0.0))
            / updates,
        }
        for name, times in functions.items()
    ]
    rows.sort(key=lambda one: -float(str(one["ms_more_per_update"])))
    return rows[:SHOWN]


def main() -> None:
    """Measure, or print the tables of a measurement."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, help="write everything as JSON, after each row")
    parser.add_argument("--profile", action="store_true", help="alone; rows in the output stay")
    parser.add_argument("--markdown", type=Path, help="print the tables of such a JSON, and end")
    given = parser.parse_args()
    if given.markdown is not None:
        print(eavesdropping_tables(json.loads(given.markdown.read_text())))
        return
    torch.set_num_threads(1)
    found: dict[str, Any] = {**environment(), "cores": len(os.sched_getaffinity(0)), "rows": []}
    if given.profile and given.output is not None:
        found["rows"] = json.loads(given.output.read_text())["rows"]
    for row in () if given.profile else ROWS:
        found["rows"].append(measure(row))
        if given.output is not None:
            given.output.write_text(json.dumps(found, indent=1) + "\n")
        print(found["rows"][-1], file=sys.stderr, flush=True)
    found["profiled"] = f"{ROWS[1]['model']}, {ROWS[1]['heard']} of 50 heard"
    found["profile"] = profiled(ROWS[1])
    if given.output is not None:
        given.output.write_text(json.dumps(found, indent=1) + "\n")
    print(eavesdropping_tables(found))


if __name__ == "__main__":
    main()
