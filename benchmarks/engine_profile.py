"""Where the CPU of a round goes beside the steps of SGD that it is for.

    python -m benchmarks.engine_profile --output benchmarks/results/engine_profile.json

The rounds are those of `benchmarks.engines`. Functions are wrapped with a clock of the thread's
CPU; what a wrapped function calls that is wrapped, too, counts for that one alone. What is left of
the CPU of all processes is nobody's: Ray's own pickling, its store and threads, freed memory.
"""

import argparse
import functools
import importlib
import json
import os
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message

from benchmarks.bare import CLIENTS
from benchmarks.dlg_cifar100 import environment
from benchmarks.engine_work import MODELS
from benchmarks.engines import NAMES, experiment
from fedsim.catalog import CLIENT_APP, SERVER_APP, load
from fedsim.engines.in_process import InProcessGrid
from fedsim.engines.local import LocalGrid, server_context
from fedsim.engines.ray import RayGrid, join_cluster
from fedsim.records import RunDirectory
from fedsim.stages.prepare import check, write_plan
from fedsim.wire import RUN_DIRECTORY

SECTIONS = {
    "forward and backward passes": ("clients.local_training:gradient_of_batch",),
    "steps, batches, copies of the weights": (
        "clients.local_training:_local_sgd",
        "clients.app:local_update",
    ),
    "weights put into the model": ("clients.participant:Workplace.load",),
    "update packed": ("clients.app:to_record",),
    "batch sealed for scoring": ("clients.app:seal",),
    "ClientApp and messages": ("fedsim.engines.in_process:answer", "fedsim.engines.ray:answer"),
    "messages taken apart and put together": (
        "fedsim.engines.ray:pack_replies",
        "fedsim.engines.ray:put_together",
        "fedsim.engines.ray:unpack_reply",
        "fedsim.engines.ray:take_apart",
    ),
    "calls of Ray, and waiting for them": ("fedsim.engines.ray:RayGrid.deliver",),
    "replies checked": ("server.guard:Exchange.read", "server.guard:Guarded._translate"),
    "mean of the updates": ("server.strategies:FedAvg.aggregate_train",),
    "what is overheard": ("server.adversaries.ear:Ear.hear_round",),
    "checkpoint and records": (
        "server.checkpoint:save",
        "fedsim.records:RunDirectory.append_round",
    ),
    "round else": ("server.rounds:_Rounds.one",),
    "": (
        "benchmarks.engine_work:bare_round",
        "benchmarks.bare:Meter.__init__",
        "benchmarks.bare:Meter.read",
    ),
}
"""Functions by what they do; those without a name are not part of a round."""
KEPT = "sections-{}.json"
"""File of a run in which a worker of Ray keeps what it has counted."""
WARM = 2
"""Rounds that are not counted."""

spent: defaultdict[str, float] = defaultdict(float)
_within: list[float] = []


def watch() -> None:
    """Wrap all functions with clocks, in this process."""
    for title, places in SECTIONS.items():
        for place in places:
            module, _, path = place.partition(":")
            owner: Any = importlib.import_module(module)
            *owners, name = path.split(".")
            for one in owners:
                owner = getattr(owner, one)
            setattr(owner, name, _clocked(getattr(owner, name), title))


def _clocked(function: Callable[..., Any], title: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def clocked(*args: Any, **more: Any) -> Any:
        _within.append(0.0)
        start = time.thread_time()
        try:
            return function(*args, **more)
        finally:
            took = time.thread_time() - start
            spent[title] += took - _within.pop()
            if _within:
                _within[-1] += took

    return clocked


class _Worker:
    """The ClientApp inside a worker of Ray, with clocks; counts from its third round."""

    def __init__(self) -> None:
        self.asked: Counter[int] = Counter()

    def __call__(self, message: Message, context: Context) -> Message:
        if not self.asked:
            watch()
        if len(rounds := set(self.asked.values())) == 1:  # a round begins
            (before,) = rounds
            if before == WARM:
                spent.clear()
            folder = Path(str(context.run_config[RUN_DIRECTORY]))
            (folder / KEPT.format(os.getpid())).write_text(json.dumps([before - WARM, spent]))
        self.asked[context.node_id] += 1
        reply: Message = load(CLIENT_APP)(message, context)
        return reply


worker_app = _Worker()


def profiled(engine: str, model: str, *, rounds: int) -> dict[str, Any]:
    """Return milliseconds per round by section; Ray must be up for its engine."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        clock = Path(folder) / "clock.jsonl"
        one = experiment(engine, model, rounds=rounds + WARM + 1, clock=clock)
        run = RunDirectory.create(Path(folder), one.name)
        write_plan(check(one), run)
        own = _sections(one, run)
        rows = [json.loads(line) for line in clock.read_text().splitlines()][WARM:]
        found = defaultdict(float, {title: 1e3 * took / rounds for title, took in own.items()})
        for path in run.root.glob(KEPT.format("*")):
            counted, sections = json.loads(path.read_text())
            for title, took in sections.items():
                found[title] += 1e3 * took / counted
    found.pop("", None)
    bare = statistics.fmean(1e3 * row["bare_cpu_s"] for row in rows)
    total = statistics.fmean(1e3 * row["cpu_s"] for row in rows)
    found["nobody's"] = total - sum(found.values())
    return {
        "engine": engine,
        "model": model,
        "rounds": rounds,
        "clients": CLIENTS,
        "bare_ms": bare,
        "round_ms": total,
        "server_ms": statistics.fmean(1e3 * row["server_cpu_s"] for row in rows),
        "sections_ms": dict(sorted(found.items(), key=lambda one: -one[1])),
    }


def _sections(one: Any, run: RunDirectory) -> dict[str, float]:
    """Run an experiment; return what this process has spent on rounds that count."""
    spent.clear()
    grid: LocalGrid
    if one.engine.name == "ray":
        grid = RayGrid(one, run, "benchmarks.engine_profile:worker_app")
    else:
        grid = InProcessGrid(one, run, load(CLIENT_APP))
    marks: list[dict[str, float]] = []
    send = grid.deliver

    def deliver(messages: Sequence[Message], timeout: float | None) -> list[Message]:
        marks.append(dict(spent))
        return send(messages, timeout)

    grid.deliver = deliver  # type: ignore[method-assign]
    try:
        load(SERVER_APP)(grid, server_context(one, run))
    finally:
        if isinstance(grid, RayGrid):
            grid.close()
    first, last = marks[WARM], marks[-1]
    return {title: took - first.get(title, 0.0) for title, took in last.items()}


def markdown(result: Mapping[str, Any]) -> str:
    """Return one table: sections by engine and model, CPU ms per round, and over the bare steps."""
    rows = result["rows"]
    titles = list(dict.fromkeys(title for row in rows for title in row["sections_ms"]))
    heads = [f"{NAMES.get(row['engine'], row['engine'])}, {row['model']}" for row in rows]
    lines = [
        "| CPU ms a round (over the bare steps) | " + " | ".join(heads) + " |",
        "|---" * (len(rows) + 1) + "|",
        "| the same steps bare | " + " | ".join(f"{row['bare_ms']:.0f}" for row in rows) + " |",
        "| **the whole round** | "
        + " | ".join(_cell(row["round_ms"], row["bare_ms"]) for row in rows)
        + " |",
    ]
    for title in titles:
        cells = (
            _cell(row["sections_ms"][title], row["bare_ms"]) if title in row["sections_ms"] else "-"
            for row in rows
        )
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(milliseconds: float, bare: float) -> str:
    return f"{milliseconds:.1f} ({milliseconds / bare:.3f})"


def main() -> None:
    """Profile, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--engines", nargs="+", default=["local", "ray"], choices=["local", "ray"])
    parser.add_argument("--models", nargs="+", default=["mlp", "lenet", "cnn"], choices=MODELS)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--output", type=Path, help="write everything as JSON, after each row")
    given = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {**environment(), "rows": []}
    watch()
    if "ray" in given.engines:
        join_cluster("local", 2)
    for engine in given.engines:
        for model in given.models:
            result["rows"].append(profiled(engine, model, rounds=given.rounds))
            if given.output is not None:
                given.output.write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(result))


if __name__ == "__main__":
    main()
