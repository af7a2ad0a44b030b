"""Rows of tables from one gradient: TabLeak and the span check, on Adult and on embedded tables.

A client holds a batch of random training rows, and sends the gradient of a perceptron of two hidden
layers of 100; the attack is granted the weights in force, the model, the columns and the batch
size. A guess is scored as TabLeak scores it (`attacks.metrics.tables`): categories exactly, numbers
within 0.319 standard deviations of the test split, rows paired one to one. Beside it stands what
guessing without the gradient achieves: each column's mode or mean, and random rows of the test
split. Adult is read from `--data`; without it, tables that are embedded are measured alone.

    python -m benchmarks.tables --data DATA --output benchmarks/results/tables.json
    python -m benchmarks.tables --markdown benchmarks/results/tables.json
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.metrics.tables import (
    accuracy_of_surest,
    calibration,
    calibration_error,
    match_rows,
    random_rows,
    right,
    tolerances,
    typical_row,
)
from attacks.observation import Attack, AttackFailed, Budget, Kind, Knowledge, Observation
from attacks.spear import Spear
from attacks.tabular.span_rows import SpanRows
from attacks.tabular.tableak import PUBLISHED, TabLeak
from benchmarks.dlg_cifar100 import environment
from fedsim.data.load import load_data
from fedsim.data.tables import TableData
from fedsim.models.mlp import mlp
from fedsim.seeds import stream

HIDDEN = (100, 100)
SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
ATTACKS: dict[str, Attack] = {
    "tableak": TabLeak(),
    "tableak, one search": TabLeak(ensemble=1, pooled=1),
    "tableak, as published": TabLeak(**PUBLISHED),
    "spear": Spear(),
    "span-rows": SpanRows(),
}
SPEAR_LIMIT_S = 30.0
"""SPEAR searches as long as it may."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is attacked, and how.

    Attributes:
        data: Name of the data set.
        batch_size: B.
        attack: A name of `ATTACKS`.
        epochs: Of training before the round that is heard.
    """

    data: str
    batch_size: int
    attack: str
    epochs: int = 0

    @property
    def title(self) -> str:
        """As tables call it."""
        trained = f"{self.epochs} epoch" if self.epochs else "untrained"
        return f"{self.data} | {self.batch_size} | {trained} | {self.attack}"


SETTINGS = [
    Setting(data="adult", batch_size=32, attack="tableak"),
    Setting(data="adult", batch_size=32, attack="tableak, as published"),
    Setting(data="adult", batch_size=32, attack="tableak, one search"),
    Setting(data="adult", batch_size=8, attack="tableak"),
    *(Setting(data="adult", batch_size=size, attack="spear") for size in (8, 16, 32)),
    *(Setting(data=data, batch_size=16, attack="tableak") for data in ("breast-cancer", "wine")),
    Setting(data="adult", batch_size=32, attack="tableak", epochs=1),
    Setting(data="adult", batch_size=64, attack="tableak"),
    *(
        Setting(data="adult", batch_size=size, attack="span-rows", epochs=epochs)
        for epochs in (0, 1, 10)
        for size in (4, 8, 16, 24, 32, 48, 64)
    ),
]


def attack(setting: Setting, seed: int, root: str) -> dict[str, Any]:
    """Return what the attack gets of one batch, and what guessing gets."""
    data = load_data(setting.data, root=root, options={})
    assert isinstance(data, TableData)
    columns, size = data.columns, setting.batch_size
    model = mlp(data.input_shape, data.num_classes, rng=stream(seed, "model"), hidden=HIDDEN)
    if setting.epochs:
        train(model, data, setting.epochs, seed)
    chosen = torch.randperm(len(data.train_inputs), generator=stream(seed, "batch"))[:size]
    rows, labels = data.train_inputs[chosen], data.train_labels[chosen]
    named = dict(model.named_parameters())
    loss = functional.cross_entropy(model(rows), labels)
    update = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    seen = Observation(
        round=1,
        sender="client-0",
        receiver="server",
        kind=Kind.GRADIENT,
        update=update,
        weights={name: parameter.detach().clone() for name, parameter in named.items()},
    )
    known = Knowledge(
        model=model,
        input_shape=data.input_shape,
        num_classes=data.num_classes,
        batch_size=size,
        columns=columns,
    )
    allowed = tolerances(data.test_inputs, columns)

    def cells(guesses: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
        """Return which features are right, (B, F), and pairs of row and guess."""
        pairs = match_rows(guesses, rows, columns, tolerance=allowed)
        found = torch.zeros(size, len(columns.columns), dtype=torch.bool)
        for truth, guess in pairs:
            found[truth] = right(guesses[guess], rows[truth], columns, tolerance=allowed)
        return found, pairs

    typical = typical_row(data.test_inputs, columns).expand(size, -1)
    drawn = random_rows(data.test_inputs, size, rng=stream(seed, "guess"))
    result: dict[str, Any] = {
        "typical": float(cells(typical)[0].double().mean()),
        "random": float(cells(drawn)[0].double().mean()),
    }
    try:
        budget = Budget(SPEAR_LIMIT_S if setting.attack == "spear" else None)
        guess = ATTACKS[setting.attack](seen, known, rng=stream(seed, "attack"), budget=budget)
    except AttackFailed as failure:
        return {**result, "accuracy": 0.0, "exact": 0.0, "failed": str(failure)}
    proved = guess.certified is not None and bool(guess.certified.all())
    assert guess.inputs is not None
    correct, pairs = cells(guess.inputs.float())
    categories = torch.tensor([bool(column.categories) for column in columns.columns])
    result |= {
        "accuracy": float(correct.double().mean()),
        "exact": float(correct.all(dim=1).double().mean()),
        "proved": proved,
        "features": dict(
            zip(
                (column.name for column in columns.columns),
                correct.double().mean(dim=0).tolist(),
                strict=True,
            )
        ),
        "seconds": guess.seconds,
        "matching_loss": guess.matching_loss,
    }
    if bool(categories.any()):
        result["categories"] = float(correct[:, categories].double().mean())
        result["numbers"] = float(correct[:, ~categories].double().mean())
    if guess.confidence is not None:
        sure = guess.confidence[[place for _, place in pairs]]
        told = correct[[place for place, _ in pairs]]  # of rows without a guess nothing is said
        result |= {
            "surest": [accuracy_of_surest(sure, told, share) for share in SHARES],
            "calibration_error": calibration_error(sure, told),
            "bins": [
                [one.confidence, one.accuracy, one.count]
                for one in calibration(sure, told, num_bins=5)
            ],
        }
    return result


def train(model: nn.Module, data: TableData, epochs: int, seed: int) -> None:
    """Train by Adam on batches of 128."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        order = torch.randperm(len(data.train_inputs), generator=stream(seed, "order"))
        for first in range(0, len(order), 128):
            batch = order[first : first + 128]
            optimizer.zero_grad()
            loss = functional.cross_entropy(
                model(data.train_inputs[batch]), data.train_labels[batch]
            )
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def measure(
    settings: Sequence[Setting], seeds: int, root: str, output: Path | None
) -> dict[str, Any]:
    """Return what was got in every setting, one entry per seed; write it after each."""
    found: dict[str, list[dict[str, Any]]] = {}
    table = {"environment": environment(), "shares": SHARES, "found": found}
    for setting in settings:
        found[setting.title] = [attack(setting, seed, root) for seed in range(seeds)]
        print(setting.title, *(one["accuracy"] for one in found[setting.title]), flush=True)
        if output:
            output.write_text(json.dumps(table, indent=1) + "\n")
    return table


def markdown(table: Mapping[str, Any]) -> str:
    """Return the tables for a page: a row per setting, then confidence against correctness."""
    lines = [
        "| data | rows | model | attack | features right | exact rows | mode or mean | random rows "
        "| seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for title, runs in table["found"].items():
        names = ("accuracy", "exact", "typical", "random")
        cells = [_percent([one[name] for one in runs]) for name in names]
        seconds = [one["seconds"] for one in runs if "seconds" in one]
        cells.append(f"{statistics.mean(seconds):.0f}" if seconds else "")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    shares = " | ".join(f"surest {share:.0%}" for share in table["shares"])
    lines += [
        "",
        f"| data | rows | model | attack | {shares} | calibration error |",
        "|---|---|---|---|" + "---|" * (len(table["shares"]) + 1),
    ]
    for title, runs in table["found"].items():
        told = [one for one in runs if "surest" in one]
        if told:
            curves = zip(*(one["surest"] for one in told), strict=True)
            cells = [f"{100 * statistics.mean(some):.0f} %" for some in curves]
            cells.append(f"{statistics.mean(one['calibration_error'] for one in told):.2f}")
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _percent(values: Sequence[float]) -> str:
    low, high, middle = (100 * value for value in (min(values), max(values), _mean(values)))
    return f"{middle:.1f} %" if low == high else f"{middle:.1f} % ({low:.1f} to {high:.1f})"


def _mean(values: Sequence[float]) -> float:
    return statistics.mean(values)


def main() -> None:
    """Measure and write JSON, or read JSON and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", default="", help="folder that holds adult/")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--markdown", type=Path, help="print the tables of this file")
    arguments = parser.parse_args()
    if arguments.markdown:
        print(markdown(json.loads(arguments.markdown.read_text())))
        return
    torch.set_num_threads(1)
    settings = [one for one in SETTINGS if arguments.data or one.data != "adult"]
    print(markdown(measure(settings, arguments.seeds, arguments.data, arguments.output)))


if __name__ == "__main__":
    main()
