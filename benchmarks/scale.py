"""What registered clients and long runs cost.

    python -m benchmarks.scale --output benchmarks/results/scale.json
    python -m benchmarks.scale --markdown benchmarks/results/scale.json

Each row is a process of its own: a federation of so many clients, of which 50 are drawn per round,
in one process; the adversary keeps what it hears of client 0. No attack is run.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.dlg_cifar100 import environment
from fedsim.config import Experiment, parse_experiment
from fedsim.data.load import load_data
from fedsim.engines.in_process import InProcess
from fedsim.records import RunDirectory
from fedsim.stages.prepare import check, write_plan
from server.strategies import FedSGD

DRAWN = 50
ROWS: tuple[dict[str, Any], ...] = (
    {"clients": 100, "rounds": 20},
    {"clients": 10_000, "rounds": 20},
    {"clients": 100_000, "rounds": 20},
    {"clients": 100, "rounds": 200},
)
"""What is measured."""


class Paced(FedSGD):
    """FedSGD that notes when rounds begin, in CPU seconds, and how much memory is held then.

    Args:
        log: A file that gets one line per round.
        learning_rate: Step size.
        sampling: What FedAvg takes.
    """

    def __init__(self, *, log: str, learning_rate: float = 0.1, **sampling: Any) -> None:
        super().__init__(learning_rate=learning_rate, **sampling)
        self.log = Path(log)

    def configure_train(self, *args: Any, **more: Any) -> Any:
        """Note where the run stands."""
        with self.log.open("a") as file:
            file.write(json.dumps([time.process_time(), held_mb()]) + "\n")
        return super().configure_train(*args, **more)


def held_mb() -> float:
    """Return the memory that this process holds now, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def experiment(row: Mapping[str, Any], log: Path) -> Experiment:
    """Return the federation of a row; two examples of 8x8 pixels per client."""
    return parse_experiment(
        f"""
        name = "scale"
        rounds = {row["rounds"]}
        partition = {{ clients = {row["clients"]} }}
        model = {{ name = "mlp" }}
        training = {{ batch_size = 1 }}
        adversary = {{ victims = [0] }}
        [data]
        name = "benchmarks.engine_work:noise"
        options = {{ examples = {2 * row["clients"]}, side = 8, channels = 1 }}
        [server]
        strategy = "benchmarks.scale:Paced"
        options = {{ log = "{log}" }}
        clients_per_round = {DRAWN}
        evaluate_every = {row["rounds"] + 1}
        """
    )


def measure(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a row costs; to be called in a process of its own."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.jsonl"
        small = experiment({**row, "clients": DRAWN, "rounds": 1}, log)
        play(small, Path(folder))  # what is imported and made once, whatever the size
        log.unlink()
        one = experiment(row, log)
        data = load_data(one.data.name, options=one.data.options)
        cpu, held = time.process_time(), held_mb()
        play(one, Path(folder))
        marks = [json.loads(line) for line in log.read_text().splitlines()]
    rounds = [after[0] - before[0] for before, after in itertools.pairwise(marks[1:])]
    half = marks[len(marks) // 2 :]
    return {
        **row,
        "set_up_cpu_s": marks[0][0] - cpu,
        "more_mb": max(mark[1] for mark in marks) - held,
        "data_mb": data.train_inputs.nbytes / 1e6,
        "round_cpu_s": statistics.median(rounds),
        "round_low_s": min(rounds),
        "round_high_s": max(rounds),
        "mb_per_round": (half[-1][1] - half[0][1]) / max(1, len(half) - 1),
    }


def play(one: Experiment, folder: Path) -> None:
    """Train, in a run directory of its own."""
    run = RunDirectory.create(folder, one.name)
    write_plan(check(one), run)
    InProcess(one, run).train()


def markdown(result: Mapping[str, Any]) -> str:
    """Return the table of a result."""
    lines = [
        "| clients | rounds | set-up, CPU s | memory for it, MB | CPU ms per round "
        "(lowest to highest) | MB more per round, second half |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['clients']:,} | {row['rounds']} "
            f"| {row['set_up_cpu_s']:.2f} | {row['more_mb']:.0f} | {1e3 * row['round_cpu_s']:.1f} "
            f"({1e3 * row['round_low_s']:.1f} to {1e3 * row['round_high_s']:.1f}) "
            f"| {row['mb_per_round']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, or print the table of a measurement."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, help="write everything as JSON")
    parser.add_argument("--markdown", type=Path, help="print the table of such a JSON, and end")
    parser.add_argument("--row", type=int, help="measure this row alone, and print it as JSON")
    given = parser.parse_args()
    if given.markdown is not None:
        print(markdown(json.loads(given.markdown.read_text())))
        return
    if given.row is not None:
        print(json.dumps(measure(ROWS[given.row])))
        return
    result: dict[str, Any] = {**environment(), "drawn": DRAWN, "rows": []}
    for place in range(len(ROWS)):
        command = [sys.executable, "-m", "benchmarks.scale", "--row", str(place)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        result["rows"].append(json.loads(done.stdout.splitlines()[-1]))
        if given.output is not None:  # after each, so that nothing measured is lost
            given.output.write_text(json.dumps(result, indent=1) + "\n")
        print(markdown(result).splitlines()[-1], flush=True)
    print(markdown(result))


if __name__ == "__main__":
    main()
