"""What the Ray engine adds to training: rounds with one worker and two, and rounds without work.

    python -m benchmarks.on_ray --output benchmarks/results/on_ray.json
    python -m benchmarks.on_ray --markdown benchmarks/results/on_ray.json

Workloads, and the plain loop that runs in turn with the rounds, are those of `benchmarks.engines`.
On a machine that others use, a clock does not tell how well two workers do; the work does: a round
is as long as what the process of the server does and what the busiest worker does. That is what
`efficiency` is reckoned from, beside the clock's.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from flwr.app import (
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp

from benchmarks.bare import Meter
from benchmarks.dlg_cifar100 import environment
from benchmarks.engine_work import MODELS, payload
from benchmarks.engines import EMPTY, GOALS, experiment
from fedsim.config import parse_experiment
from fedsim.engines.ray import Ray, RayGrid, join_cluster
from fedsim.records import RunDirectory
from fedsim.stages.prepare import check, write_plan
from fedsim.wire import to_record, to_tensors

ROUNDS = {"lenet": 16, "mlp": 40, "cnn": 6}
"""Of training to count: as many as a minute takes."""
EFFICIENCY = 0.85
"""Least parallel efficiency that we want of two workers."""

own_app = ClientApp()


@own_app.train()
def copy(message: Message, context: Context) -> Message:  # noqa: ARG001
    """Return arrays of the client's own, of the same values as those that came."""
    arrays = to_record(to_tensors(message.content.array_records["arrays"]))
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, reply_to=message)


def rounds_on_ray(model: str, *, rounds: int, workers: int) -> list[dict[str, float]]:
    """Return what each round cost, the first two left out; Ray must be up.

    Args:
        model: One of `benchmarks.engine_work.MODELS`.
        rounds: To count.
        workers: That play the clients, one of which is eavesdropped on.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        clock = Path(folder) / "clock.jsonl"
        one = experiment("ray", model, rounds=rounds + 3, clock=clock, workers=workers)
        run = RunDirectory.create(Path(folder), one.name)
        write_plan(check(one), run)
        engine = Ray(one, run)
        try:
            engine.train()
        finally:
            engine.close()
        return [json.loads(line) for line in clock.read_text().splitlines()][2:]


def summed_up(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the overhead of rounds, its spread, and how long a round is by its work alone."""
    each = [row["cpu_s"] / row["bare_cpu_s"] for row in rows]
    total = {name: sum(row[name] for row in rows) for name in rows[0]}
    return {
        "overhead": total["cpu_s"] / total["bare_cpu_s"],
        "low": min(each),
        "high": max(each),
        **{name: statistics.median(row[name] for row in rows) for name in rows[0]},
        "rounds": len(rows),
    }


def efficiency(one: dict[str, float], two: dict[str, float], workers: int = 2) -> float:
    """Return the parallel efficiency by work: what processes do one after another, and beside.

    The work of a worker is taken to be an equal share of all that the server's process does not
    do; Ray's own processes are counted there. Both runs are put over their own plain loop, for
    the machine is not as fast all the time.
    """

    def length(row: dict[str, float], share: int) -> float:
        beside = row["cpu_s"] - row["server_cpu_s"]
        return (row["server_cpu_s"] + beside / share) / row["bare_cpu_s"]

    return length(one, 1) / (workers * length(two, workers))


def empty_rounds(
    clients: int, size: int, *, repeats: int, workers: int = 2, own: bool = False
) -> dict[str, Any]:
    """Return what it costs to bring an array to clients that send it back, and no more.

    Args:
        clients: That are asked in a round.
        size: Bytes of the array.
        repeats: Rounds to count.
        workers: That play the clients.
        own: Whether clients send an array of their own, not the one that came.
    """
    app = "benchmarks.on_ray:own_app" if own else "benchmarks.engine_work:echo_app"
    one = parse_experiment(
        f"""
        name = "grid"
        partition = {{ clients = {clients} }}
        engine = {{ name = "ray", workers = {workers} }}
        """
    )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        grid = RayGrid(one, RunDirectory(Path(folder)), app)
        arrays = to_record(to_tensors(payload(size)))
        walls, cpus = [], []
        try:
            for _ in range(repeats + 1):
                meter = Meter(os.getpid())
                content = RecordDict({"arrays": arrays, "config": ConfigRecord()})
                messages = [
                    Message(content, node, MessageType.TRAIN) for node in grid.get_node_ids()
                ]
                replies = list(grid.send_and_receive(messages))
                wall, cpu, _ = meter.read()
                walls.append(wall)
                cpus.append(cpu)
                assert len(replies) == clients
                assert not any(reply.has_error() for reply in replies)
        finally:
            grid.close()
    return {
        "clients": clients,
        "bytes": size,
        "own": own,
        "wall_s": statistics.median(walls[1:]),
        "low_s": min(walls[1:]),
        "high_s": max(walls[1:]),
        "cpu_s": statistics.median(cpus[1:]),
    }


def measure(
    models: Sequence[str],
    *,
    rounds: int | None,
    repeats: int,
    keep: Callable[[dict[str, Any]], object],
) -> dict[str, Any]:
    """Return all tables.

    Args:
        models: To train.
        rounds: Of training to count, per model and number of workers; None for the usual number.
        repeats: Rounds without work to count, per kind.
        keep: Given what was found so far, after each row.
    """
    join_cluster("local", 2)
    found: dict[str, Any] = {"environment": environment(), "overhead": [], "empty": []}
    for clients, size, goal in EMPTY:
        for own in (False, True):
            row = empty_rounds(clients, size, repeats=repeats, own=own)
            found["empty"].append(row | {"goal_s": goal})
            keep(found)
    for model in models:
        runs = {}
        for workers in (2, 1):
            counted = rounds or ROUNDS[model]
            runs[workers] = summed_up(rounds_on_ray(model, rounds=counted, workers=workers))
            row = {"model": model, "workers": workers, **runs[workers]}
            if workers == 1:
                row["efficiency"] = efficiency(runs[1], runs[2])
            found["overhead"].append(row)
            keep(found)
    return found


def markdown(found: dict[str, Any]) -> str:
    """Return the tables."""
    lines = [
        "| model | workers | overhead (rounds) | goal | server's process | all | plain loop | "
        "efficiency by work | goal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["overhead"]:
        efficiency = f"{row['efficiency']:.2f} | {EFFICIENCY}" if "efficiency" in row else "|"
        lines.append(
            f"| {row['model']} | {row['workers']} | {row['overhead']:.2f} ({row['low']:.2f} to "
            f"{row['high']:.2f}) | {GOALS['ray'][row['model']]} "
            f"| {1000 * row['server_cpu_s']:.0f} ms | {1000 * row['cpu_s']:.0f} ms "
            f"| {1000 * row['bare_cpu_s']:.0f} ms | {efficiency} |"
        )
    lines += [
        "",
        "| clients | bytes | arrays | wall, median (lowest to highest) | CPU | goal |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["empty"]:
        lines.append(
            f"| {row['clients']} | {row['bytes']:,} | {'own' if row['own'] else 'echo'} "
            f"| {1000 * row['wall_s']:.0f} ms ({1000 * row['low_s']:.0f} to "
            f"{1000 * row['high_s']:.0f}) | {1000 * row['cpu_s']:.0f} ms "
            f"| {1000 * row['goal_s']:.0f} ms |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, or turn what was measured into tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--rounds", type=int, help="counted; the default depends on the model")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    if arguments.markdown:
        print(markdown(json.loads(arguments.markdown.read_text())))
        return
    torch.set_num_threads(1)

    def keep(found: dict[str, Any]) -> None:
        if arguments.output:
            arguments.output.write_text(json.dumps(found, indent=1) + "\n")

    models, rounds, repeats = arguments.models, arguments.rounds, arguments.repeats
    print(markdown(measure(models, rounds=rounds, repeats=repeats, keep=keep)))


if __name__ == "__main__":
    main()
