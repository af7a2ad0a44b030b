"""What a federation costs beside the training that it is for, engine by engine.

    python -m benchmarks.engines --output benchmarks/results/engines.json
    python -m benchmarks.engines --markdown benchmarks/results/engines.json

Fifty clients take five steps of SGD on batches of ten. The overhead of a simulation is its CPU
seconds, over all its processes, divided by those of the same steps in a plain loop that runs in
turn with the rounds. Then rounds without any training, which cost what the messages cost.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from benchmarks.bare import BATCH, CLIENTS, RATE, STEPS
from benchmarks.dlg_cifar100 import environment
from benchmarks.engine_work import (
    MODELS,
    ClockedFlower,
    echo_app,
    flower_app,
    model_of,
    payload,
)
from fedsim.components import find
from fedsim.config import Experiment, parse_experiment
from fedsim.engines import ENGINES
from fedsim.engines.in_process import InProcessGrid
from fedsim.records import RunDirectory
from fedsim.stages.prepare import check, write_plan
from fedsim.wire import to_record

GOALS = {
    "local": {"lenet": 1.10, "mlp": 1.25, "cnn": 1.10},
    "flower-on-grid": {"lenet": 1.3, "mlp": 1.8, "cnn": 1.3},
    "ray": {"lenet": 1.25, "mlp": 1.25, "cnn": 1.25},
}
"""Highest overhead that we want, by engine and model."""
ENGINES_TIMED = ("local", "local-deaf", "local-all", "flower-on-grid", "ray", "flwr")
EMPTY = ((50, 1024, 0.010), (1000, 1024, 0.150), (50, 6_500_000, 0.060))
"""Clients, bytes each way, and the seconds that an empty round may take."""
NAMES = {"local": "in-process", "local-deaf": "in-process", "local-all": "in-process"}
"""What experiments call an engine, where that is another name."""
TAPPED = {"local-deaf": "[]", "local-all": '"all"'}
"""Clients whose updates the adversary keeps; of others it is client 0, one of fifty."""


def experiment(
    engine: str, model: str, *, rounds: int, clock: Path, workers: int = 2
) -> Experiment:
    """Return the training that is timed; no attack is run."""
    name = NAMES.get(engine, engine)
    root = 0 if name == "in-process" else os.getpid()
    return parse_experiment(
        f"""
        name = "engines"
        rounds = {rounds}
        partition = {{ clients = {CLIENTS} }}
        data = {{ name = "benchmarks.engine_work:noise" }}
        model = {{ name = "benchmarks.engine_work:{model}" }}
        training = {{ algorithm = "fedavg", batch_size = {BATCH}, learning_rate = {RATE} }}
        adversary = {{ victims = {TAPPED.get(engine, "[0]")} }}
        engine = {{ name = "{name}", workers = {workers} }}
        [server]
        evaluate_every = {rounds + 1}
        strategy = "benchmarks.engine_work:Clocked"
        options = {{ clock = "{clock}", bare = "{model}", root = {root} }}
        """
    )


def rounds_of(engine: str, model: str, *, rounds: int, workers: int = 2) -> list[dict[str, float]]:
    """Return what each round cost, the first left out: it loads and makes what the others use."""
    with tempfile.TemporaryDirectory() as folder:
        clock = Path(folder) / "clock.jsonl"
        one = experiment(engine, model, rounds=rounds + 2, clock=clock, workers=workers)
        run = RunDirectory.create(Path(folder), one.name)
        write_plan(check(one), run)
        playing = find("engine", one.engine.name, ENGINES)(one, run)
        try:
            playing.train()
        finally:
            playing.close()
        return [json.loads(line) for line in clock.read_text().splitlines()][1:]


def rounds_of_flower(model: str, *, rounds: int) -> list[dict[str, float]]:
    """Return the same of a ClientApp and a strategy of Flower's own on our Grid."""
    with tempfile.TemporaryDirectory() as folder:
        clock = Path(folder) / "clock.jsonl"
        grid = grid_of(CLIENTS, flower_app, Path(folder))
        strategy = ClockedFlower(clock=str(clock), bare=model, fraction_evaluate=0.0)
        strategy.start(
            grid=grid,
            initial_arrays=to_record(model_of(model).state_dict()),
            num_rounds=rounds + 2,
            train_config=ConfigRecord({"model": model}),
        )
        return [json.loads(line) for line in clock.read_text().splitlines()][1:]


def grid_of(clients: int, app: ClientApp, folder: Path) -> InProcessGrid:
    """Return our Grid around a ClientApp."""
    one = parse_experiment(
        f"""
        name = "grid"
        partition = {{ clients = {clients} }}
        """
    )
    return InProcessGrid(one, RunDirectory(folder), app)


def overhead(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the overhead over all rounds, and how far single rounds are from it."""
    each = [row["cpu_s"] / row["bare_cpu_s"] for row in rows]
    return {
        "overhead": sum(row["cpu_s"] for row in rows) / sum(row["bare_cpu_s"] for row in rows),
        "median": statistics.median(each),
        "low": min(each),
        "high": max(each),
        "cpu_s": statistics.median(row["cpu_s"] for row in rows),
        "bare_cpu_s": statistics.median(row["bare_cpu_s"] for row in rows),
        "wall_s": statistics.median(row["wall_s"] for row in rows),
        "rounds": len(rows),
    }


def empty_rounds(clients: int, size: int, *, repeats: int) -> dict[str, float]:
    """Return what it costs to bring an array to clients that send it back, and no more."""
    with tempfile.TemporaryDirectory() as folder:
        grid = grid_of(clients, echo_app, Path(folder))
        arrays = payload(size)
        walls, cpus = [], []
        for _ in range(repeats + 1):
            wall, cpu = time.perf_counter(), time.process_time()
            content = RecordDict({"arrays": arrays, "config": ConfigRecord()})
            messages = [Message(content, node, MessageType.TRAIN) for node in grid.get_node_ids()]
            replies = list(grid.send_and_receive(messages))
            assert [reply.has_error() for reply in replies] == [False] * clients
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
    return {
        "clients": clients,
        "bytes": size,
        "wall_s": statistics.median(walls[1:]),
        "low_s": min(walls[1:]),
        "high_s": max(walls[1:]),
        "cpu_s": statistics.median(cpus[1:]),
    }


def measured(engine: str, model: str, rounds: int) -> dict[str, float]:
    """Return the overhead of one engine on one model."""
    if engine == "flower-on-grid":
        return overhead(rounds_of_flower(model, rounds=rounds))
    return overhead(rounds_of(engine, model, rounds=rounds))


def markdown(result: Mapping[str, Any]) -> str:
    """Return the tables of a result."""
    lines = [
        "| engine | model | overhead | median (lowest to highest of single rounds) "
        "| CPU, s per round | the same steps bare, CPU s | goal |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["overhead"]:
        goal = GOALS.get(row["engine"], {}).get(row["model"])
        lines.append(
            f"| {row['engine']} | {row['model']} | {row['overhead']:.2f} | {row['median']:.2f} "
            f"({row['low']:.2f} to {row['high']:.2f}) | {row['cpu_s']:.3f} "
            f"| {row['bare_cpu_s']:.3f} | {'-' if goal is None else f'{goal:.2f}'} |"
        )
    lines += [
        "",
        "| clients | bytes each way | CPU, ms | wall, ms (lowest to highest) | goal, ms |",
        "|---|---|---|---|---|",
    ]
    for row in result["empty"]:
        goals = [
            goal
            for clients, size, goal in EMPTY
            if (clients, size) == (row["clients"], row["bytes"])
        ]
        lines.append(
            f"| {row['clients']} | {row['bytes']:,} | {1e3 * row['cpu_s']:.1f} "
            f"| {1e3 * row['wall_s']:.1f} ({1e3 * row['low_s']:.1f} to {1e3 * row['high_s']:.1f}) "
            f"| {1e3 * goals[0]:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, or print the tables of a measurement."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--engines", nargs="+", default=list(ENGINES_TIMED))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--output", type=Path, help="write everything as JSON, after each row")
    parser.add_argument("--markdown", type=Path, help="print the tables of such a JSON, and end")
    given = parser.parse_args()
    if given.markdown is not None:
        print(markdown(json.loads(given.markdown.read_text())))
        return
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        **environment(),
        "versions": {name: version(name) for name in ("flwr", "numpy", "ray")},
        "clients": CLIENTS,
        "steps": STEPS,
        "batch_size": BATCH,
        "empty": [empty_rounds(clients, size, repeats=given.rounds) for clients, size, _ in EMPTY],
        "overhead": [],
    }
    for engine in given.engines:
        for model in given.models:
            row = {"engine": engine, "model": model} | measured(engine, model, given.rounds)
            if given.output is not None and given.output.is_file():  # other rows may stand there
                result["overhead"] = json.loads(given.output.read_text())["overhead"]
            others = [
                one
                for one in result["overhead"]
                if (one["engine"], one["model"]) != (engine, model)
            ]
            result["overhead"] = [*others, row]
            if given.output is not None:
                given.output.write_text(json.dumps(result, indent=1) + "\n")
            print(row, flush=True)
    print(markdown(result))


if __name__ == "__main__":
    main()
