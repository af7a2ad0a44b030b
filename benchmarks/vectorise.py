"""Gradients of a round of FedSGD: one client after another, and all at once.

    python -m benchmarks.vectorise --output benchmarks/results/vectorise.json

Fifty clients, one batch each, at the same weights. All ways take turns in one process; beside them
stands which of them the probe of `clients.together` chose, each time anew, and operations of
PyTorch by their share of the CPU.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from benchmarks.bare import CLIENTS
from benchmarks.dlg_cifar100 import environment
from benchmarks.engine_work import MODELS, data_of, model_of
from clients.participant import Way
from clients.together import WAYS, Batches, fastest, one_by_one
from fedsim.freed_memory import keep_freed_memory

LOOP = "loop"
OPERATIONS = 8
"""Rows of a profile."""
PASSES = 8
"""Passes that a profile sums up."""


def drawn(size: int) -> Batches:
    """Return a batch of every client."""
    return [tuple(part[:size] for part in data_of(client)) for client in range(CLIENTS)]  # type: ignore[misc]


def ways_of(model: nn.Module, batches: Batches) -> dict[str, Way]:
    """Return the loop, and what else this model can do."""
    ways: dict[str, Way] = {LOOP: one_by_one}
    for name, way in WAYS.items():
        try:
            way(model, functional.cross_entropy, batches)
        except (RuntimeError, NotImplementedError):
            continue
        ways[name] = way
    return ways


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median and the range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def measured(name: str, size: int, repeats: int) -> dict[str, Any]:
    """Return what each way takes, and what the probe chose."""
    keep_freed_memory()  # as clients do
    model, batches = model_of(name), drawn(size)
    ways = ways_of(model, batches)
    names = {way: title for title, way in ways.items()}
    seconds: dict[str, list[float]] = {title: [] for title in ways}
    chosen: list[str] = []
    for _ in range(repeats):
        for title, way in ways.items():
            start = time.process_time()
            way(model, functional.cross_entropy, batches)
            seconds[title].append(time.process_time() - start)
        best = fastest(model, functional.cross_entropy, batches)
        chosen.append(LOOP if best is None else names[best])
    memory: list[float] = []
    size_of_all = CLIENTS * sum(parameter.numel() for parameter in model.parameters())
    for _ in range(repeats):
        start = time.process_time()
        torch.empty(size_of_all).fill_(1.0)
        memory.append(1e3 * (time.process_time() - start))
    typical = {title: statistics.median(times) for title, times in seconds.items()}
    least = min(typical.values())
    return {
        "model": name,
        "batch_size": size,
        "repeats": repeats,
        "ms": {title: spread([1e3 * one for one in times]) for title, times in seconds.items()},
        "ms_to_write_as_much": spread(memory),  # what no way can do without
        "loop_over": {
            title: spread([loop / one for loop, one in zip(seconds[LOOP], times, strict=True)])
            for title, times in seconds.items()
        },
        "chosen": dict(Counter(chosen)),
        # of the worst choice, by the medians of all repeats
        "chosen_over_loop": max(typical[one] / typical[LOOP] for one in chosen),
        "chosen_over_fastest": max(typical[one] / least for one in chosen),
        "profile": operations(ways[min(typical, key=typical.__getitem__)], model, batches),
        "profile_of": min(typical, key=typical.__getitem__),
    }


def operations(way: Way, model: nn.Module, batches: Batches) -> dict[str, float]:
    """Return the operations that take most, by their own share of the CPU."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(PASSES):
            way(model, functional.cross_entropy, batches)
    own = {row.key: float(row.self_cpu_time_total) for row in found.key_averages()}
    total = sum(own.values())
    most = sorted(own, key=own.__getitem__, reverse=True)[:OPERATIONS]
    return {key: own[key] / total for key in most}


def markdown(result: Mapping[str, Any]) -> str:
    """Return the tables of a result."""
    titles = [LOOP, *WAYS]
    lines = [
        "| model | batch | "
        + " | ".join(f"{title}, CPU ms" for title in titles)
        + " | writing as much | loop over fastest | chosen by the probe (times) "
        "| worst choice over fastest |",
        "|---" * (len(titles) + 6) + "|",
    ]
    for row in result["rows"]:
        cells = [
            f"{row['ms'][title]['median']:.1f} ({row['ms'][title]['low']:.1f} to "
            f"{row['ms'][title]['high']:.1f})"
            if title in row["ms"]
            else "-"
            for title in titles
        ]
        chosen = ", ".join(f"{title} ({times})" for title, times in row["chosen"].items())
        best = max(one["median"] for one in row["loop_over"].values())
        lines.append(
            f"| {row['model']} | {row['batch_size']} | {' | '.join(cells)} "
            f"| {row['ms_to_write_as_much']['median']:.1f} | {best:.2f} "
            f"| {chosen} | {row['chosen_over_fastest']:.2f} |"
        )
    lines += ["", "| model | batch | way | operations, by their own share of its CPU |"]
    lines.append("|---|---|---|---|")
    for row in result["rows"]:
        shares = ", ".join(f"`{name}` {100 * one:.0f} %" for name, one in row["profile"].items())
        lines.append(f"| {row['model']} | {row['batch_size']} | {row['profile_of']} | {shares} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path, help="write everything as JSON, after each row")
    given = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {**environment(), "clients": CLIENTS, "rows": []}
    for name in given.models:
        for size in given.sizes:
            result["rows"].append(measured(name, size, given.repeats))
            if given.output is not None:
                given.output.write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(result))


if __name__ == "__main__":
    main()
