"""What a large simulation costs, reckoned from what small ones were measured to cost.

    python -m benchmarks.cost                       # prints the tables
    python -m benchmarks.cost --write docs/scale.md # puts them into the page

Nothing is measured here: numbers come from `on_ray.json`, `cluster.json` and `peers.json` in
`benchmarks/results`.
"""

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import cluster, on_ray
from benchmarks.bare import CLIENTS, STEPS
from benchmarks.engine_work import model_of

RESULTS = Path(__file__).parent / "results"
PART = re.compile(r"(<!-- measured: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
ROUNDS, VICTIMS = 1_000, 100
COHORTS = (1_000, 100_000)
"""Clients that take part in a round; the second is everybody."""
ATTACKS = (
    ("dlg", "closed-form", "DLG setting, closed form"),
    ("dlg", "idlg", "DLG setting, iDLG by search"),
    ("dlg", "original DLG, 300 steps", "DLG setting, the original procedure"),
    ("convnet16-1", "ours, 100 steps", "Inverting Gradients, ConvNet width 16, 100 steps"),
    ("resnet-1", "ours, 100 steps", "Inverting Gradients, ResNet-18 width 16, 100 steps"),
)
"""Table, row and title of the attacks that are reckoned with."""


@dataclass(frozen=True, kw_only=True)
class Messages:
    """What messages cost on Ray with two workers, in CPU seconds of all processes.

    Attributes:
        round_s: A round, whoever is in it.
        message_s: A message there and back, whatever it holds.
        byte_s: A byte of what a client sends back.
    """

    round_s: float
    message_s: float
    byte_s: float


@dataclass(frozen=True, kw_only=True)
class Training:
    """What clients cost beside their messages, in CPU seconds of all processes.

    Attributes:
        model: Its name.
        num_bytes: Of its weights.
        step_s: A step of SGD on a batch of ten, in a plain loop.
        rest_s: What is left of a client's share of a round, beside steps and messages: loading
            weights, drawing batches, checks, aggregation, records.
    """

    model: str
    num_bytes: int
    step_s: float
    rest_s: float


def messages_of(empty: list[dict[str, Any]]) -> Messages:
    """Return the costs that three empty rounds say: few and many clients, small and large."""
    cpu = {(row["clients"], row["bytes"]): row["cpu_s"] for row in empty if row["own"]}
    (few, small), (many, _), (_, large) = sorted(cpu, key=lambda one: (one[1], one[0]))
    message_s = (cpu[many, small] - cpu[few, small]) / (many - few)
    byte_s = (cpu[few, large] - cpu[few, small]) / (few * (large - small))
    round_s = max(0.0, cpu[few, small] - few * message_s)
    return Messages(round_s=round_s, message_s=message_s, byte_s=byte_s)


def trainings_of(overheads: list[dict[str, Any]], messages: Messages) -> list[Training]:
    """Return what clients cost, of each model that was run on two workers."""
    found = []
    for row in (one for one in overheads if one["workers"] == 2):
        name = str(row["model"])
        size = sum(4 * parameter.numel() for parameter in model_of(name).parameters())
        sent = messages.round_s + CLIENTS * (messages.message_s + size * messages.byte_s)
        rest = row["cpu_s"] - row["bare_cpu_s"] - sent
        found.append(
            Training(
                model=name,
                num_bytes=size,
                step_s=row["bare_cpu_s"] / (CLIENTS * STEPS),
                rest_s=rest / CLIENTS,
            )
        )
    return found


def training_hours(training: Training, messages: Messages, *, cohort: int) -> float:
    """Return the CPU hours of all rounds, without attacks."""
    client = STEPS * training.step_s + training.rest_s
    client += messages.message_s + training.num_bytes * messages.byte_s
    return ROUNDS * (messages.round_s + cohort * client) / 3600


def unit_table(messages: Messages, trainings: list[Training], victims: dict[str, Any]) -> str:
    """Return the unit costs."""
    lines = [
        "| unit | CPU |",
        "|---|---|",
        f"| a round, whoever is in it | {1e3 * messages.round_s:.1f} ms |",
        f"| a message to a client and back | {1e6 * messages.message_s:.0f} us |",
        f"| a megabyte of what a client sends back | {1e9 * messages.byte_s:.2f} ms |",
    ]
    for one in trainings:
        lines += [
            f"| {one.model}, {one.num_bytes / 1e6:.2f} MB: a step on a batch of ten "
            f"| {1e3 * one.step_s:.2f} ms |",
            f"| {one.model}: the rest of a client's part in a round | {1e3 * one.rest_s:.2f} ms |",
        ]
    for table, row, title in ATTACKS:
        lines.append(
            f"| a victim: {title} | {victims[table]['rows'][row]['cpu_s_per_victim']:.2g} s |"
        )
    return "\n".join(lines)


def training_table(messages: Messages, trainings: list[Training]) -> str:
    """Return what training costs at full size."""
    lines = [
        f"| model | clients in a round | steps in {ROUNDS:,} rounds | CPU hours | of them steps "
        "| updates of one round |",
        "|---|---|---|---|---|---|",
    ]
    for one in trainings:
        for cohort in COHORTS:
            hours = training_hours(one, messages, cohort=cohort)
            steps = ROUNDS * cohort * STEPS
            lines.append(
                f"| {one.model} | {cohort:,} | {steps:.0e} | {hours:,.1f} "
                f"| {steps * one.step_s / 3600 / hours:.0%} "
                f"| {cohort * one.num_bytes / 1e9:,.2f} GB |"
            )
    return "\n".join(lines)


def attack_table(victims: dict[str, Any]) -> str:
    """Return what the attacks cost at full size."""
    total = ROUNDS * VICTIMS
    lines = ["| attack | measured on | CPU hours |", "|---|---|---|"]
    for table, row, title in ATTACKS:
        found = victims[table]["rows"][row]
        hours = total * found["cpu_s_per_victim"] / 3600
        lines.append(f"| {title} | {found['victims']} victims | {hours:,.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables, or write them into a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    victims = json.loads((RESULTS / "peers.json").read_text())["tables"]
    parts = {"attacks": attack_table(victims)}
    if (RESULTS / "on_ray.json").is_file():
        measured = json.loads((RESULTS / "on_ray.json").read_text())
        messages = messages_of(measured["empty"])
        trainings = trainings_of(measured["overhead"], messages)
        parts["on-ray"] = on_ray.markdown(measured)
        parts["units"] = unit_table(messages, trainings, victims)
        parts["training"] = training_table(messages, trainings)
    if (RESULTS / "cluster.json").is_file():
        parts["cluster"] = cluster.markdown(json.loads((RESULTS / "cluster.json").read_text()))
    if arguments.write is None:
        print("\n\n".join(parts.values()))
        return
    page = arguments.write.read_text()
    arguments.write.write_text(
        PART.sub(lambda found: f"{found[1]}{parts[found['name']]}\n{found[3]}", page)
    )


if __name__ == "__main__":
    main()
