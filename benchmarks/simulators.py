"""Other simulators beside ours: what a round costs beside the same steps in a plain loop.

    in-process       ours, one of fifty clients heard
    flower-on-grid   a strategy and a ClientApp as Flower's tutorial writes them, on our Grid
    flower           the same strategy and ClientApp in Flower's own simulation runtime, on Ray
    pfl              pfl-research (PyPI `pfl`), one process

pfl-research runs in an environment of its own, made once like this:

    python3 -m venv pfl && pfl/bin/pip install 'pfl[pytorch]'

    python -m benchmarks.simulators --pfl pfl/bin/python --output benchmarks/results/simulators.json
    python -m benchmarks.simulators --markdown benchmarks/results/simulators.json

Fifty clients take five steps of SGD on batches of ten, the server takes the mean. Each row is a
process of its own, one after another; in it, rounds and the plain loop take turns, on one thread
per worker. CPU is that of all its processes. All keep the clients' data in memory.

Where a simulator lets a client take its batches in order (all but ours in-process, which draws
them), `deviation` tells how far the weights after the first round are from the plain mean.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from torch import nn

from benchmarks.bare import BATCH, CLIENTS, STEPS, Part, deviation
from benchmarks.dlg_cifar100 import environment
from benchmarks.engine_work import (
    CLASSES,
    FACTORIES,
    MODELS,
    SHAPE,
    ClockedFlower,
    data_of,
    flower_app,
)
from benchmarks.engines import grid_of, overhead, rounds_of
from fedsim.wire import to_record

ROOT = Path(__file__).resolve().parents[1]
OURS = ("in-process", "flower-on-grid", "flower")
"""Simulators that run in our environment."""
ROUNDS = {"lenet": 4, "mlp": 6, "cnn": 2}
"""Counted, by model; two more are run."""
LIMIT_S = 300.0
"""Seconds that a row may take; Flower's runtime waits for ever when it cannot start."""
QUIET = {
    "OMP_NUM_THREADS": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class Checked(ClockedFlower):
    """Flower's FedAvg with a clock, which takes no round that misses a client."""

    deviation: float | None = None
    """Of the weights after the first round."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Count the replies, then let Flower take their mean."""
        replies = list(replies)
        assert [reply.has_error() for reply in replies] == [False] * CLIENTS
        return super().aggregate_train(server_round, replies)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Look at the weights after the first round; its clock, which still runs, is left out."""
        if server_round == 2:
            self.deviation = deviation(arrays.to_torch_state_dict(), fresh(self.bare), parts())
        return super().configure_train(server_round, arrays, config, grid)


def fresh(model: str) -> nn.Module:
    """Return a model as it was before the first round."""
    return FACTORIES[model](SHAPE, CLASSES, rng=torch.Generator().manual_seed(0))


def parts() -> list[Part]:
    """Return the data of all clients."""
    return [data_of(client) for client in range(CLIENTS)]


def one(simulator: str, model: str, rounds: int, clock: Path) -> dict[str, Any]:
    """Return what the rounds of one of `OURS` cost, in this process."""
    if simulator == "in-process":
        return {"rounds": rounds_of("local", model, rounds=rounds)}
    strategy = Checked(
        clock=str(clock),
        bare=model,
        root=os.getpid() if simulator == "flower" else 0,
        fraction_evaluate=0.0,
        min_train_nodes=CLIENTS,
        min_available_nodes=CLIENTS,
    )

    def serve(grid: Grid) -> None:
        strategy.start(
            grid=grid,
            initial_arrays=to_record(fresh(model).state_dict()),
            num_rounds=rounds + 2,
            train_config=ConfigRecord({"model": model}),
        )

    if simulator == "flower-on-grid":
        serve(grid_of(CLIENTS, flower_app, clock.parent))
    else:
        flowers_runtime(serve)
    lines = [json.loads(line) for line in clock.read_text().splitlines()]
    return {"rounds": lines[1:], "deviation": strategy.deviation}


def flowers_runtime(serve: Callable[[Grid], None]) -> None:
    """Run a server in Flower's simulation runtime: as many actors as there are cores."""
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:  # noqa: ARG001
        serve(grid)

    run_simulation(
        server_app=server,
        client_app=flower_app,
        num_supernodes=CLIENTS,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"address": "local", "log_to_driver": False},
        },
    )


def row(simulator: str, model: str, *, rounds: int, python: str | None) -> dict[str, Any]:
    """Run one simulator on one model in a process of its own.

    Args:
        simulator: One of `OURS`, or "pfl".
        model: One of `benchmarks.engine_work.MODELS`.
        rounds: To count.
        python: The interpreter of pfl's environment.

    Raises:
        subprocess.SubprocessError: It failed, or took longer than `LIMIT_S`.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        clock, left = Path(folder) / "clock.jsonl", Path(folder) / "left.json"
        if simulator == "pfl":
            assert python is not None
            job = Path(folder) / "job.pt"
            torch.save({"model": fresh(model), "parts": parts()}, job)
            count = str(rounds + 1)
            command = [python, "-m", "benchmarks.pfl_worker", str(job), str(clock), count]
        else:
            command = [sys.executable, "-m", "benchmarks.simulators", "--one", simulator]
            command += ["--models", model, "--rounds", str(rounds), "--output", str(left)]
        subprocess.run(
            command,
            check=True,
            timeout=LIMIT_S,
            cwd=ROOT,
            env={**os.environ, **QUIET, "PYTHONPATH": str(ROOT)},
        )
        if simulator == "pfl":
            first, *lines = [json.loads(line) for line in clock.read_text().splitlines()]
            found = {"rounds": lines} | {key: first[key] for key in ("deviation", "versions")}
        else:
            found = json.loads(left.read_text())
    assert len(found["rounds"]) == rounds, found
    more = {key: found[key] for key in ("deviation", "versions") if key in found}
    return {"simulator": simulator, "model": model, **overhead(found["rounds"]), **more}


def markdown(result: Mapping[str, Any]) -> str:
    """Return the table of a result."""
    lines = [
        "| simulator | model | overhead (lowest to highest of single rounds) | rounds "
        "| CPU, s per round | the same steps bare, CPU s | wall, s per round | deviation |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        off = row.get("deviation")
        lines.append(
            f"| {row['simulator']} | {row['model']} | {row['overhead']:.2f} "
            f"({row['low']:.2f} to {row['high']:.2f}) | {row['rounds']} | {row['cpu_s']:.3f} "
            f"| {row['bare_cpu_s']:.3f} | {row['wall_s']:.2f} "
            f"| {'-' if off is None else f'{off:.0e}'} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, or print the table of a measurement."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pfl", help="interpreter of pfl's environment; without it, no row of pfl")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--simulators", nargs="+", default=[*OURS, "pfl"], choices=[*OURS, "pfl"])
    parser.add_argument("--rounds", type=int, help="counted; the default depends on the model")
    parser.add_argument("--one", choices=OURS, help="this one and one model, in this process")
    parser.add_argument("--output", type=Path, help="write everything as JSON, after each row")
    parser.add_argument("--markdown", type=Path, help="print the table of such a JSON, and end")
    given = parser.parse_args()
    if given.markdown is not None:
        print(markdown(json.loads(given.markdown.read_text())))
        return
    torch.set_num_threads(1)
    if given.one is not None:
        clock = given.output.parent / "clock.jsonl"
        found = one(given.one, given.models[0], given.rounds, clock)
        given.output.write_text(json.dumps(found))
        return
    result: dict[str, Any] = {
        **environment(),
        "versions": {name: version(name) for name in ("flwr", "numpy", "ray")},
        "clients": CLIENTS,
        "steps": STEPS,
        "batch_size": BATCH,
        "rows": [],
    }
    for model in given.models:
        for simulator in given.simulators:
            if simulator == "pfl" and given.pfl is None:
                continue
            rounds = given.rounds or ROUNDS[model]
            found = row(simulator, model, rounds=rounds, python=given.pfl)
            result["rows"].append(found)
            print(found, flush=True)
            if given.output is not None:
                given.output.write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(result))


if __name__ == "__main__":
    main()
