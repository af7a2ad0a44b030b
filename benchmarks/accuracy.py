"""What noise and int8 cost: the accuracy of one model under several conventions, task by task.

The table of Deep Leakage from Gradients (Zhu et al., 2019, https://arxiv.org/abs/1906.08935) says
that int8 and noise of 1e-2 cost a third of the accuracy, and not of which training. Here the same
levels are trained with on tasks of different hardness: FedSGD, four clients of 32 examples each
round, drawn anew from all of the training data, a plain loop of steps on one thread.

    python -m benchmarks.accuracy --data DATA --output benchmarks/results/accuracy.json
    python -m benchmarks.accuracy --markdown benchmarks/results/accuracy.json

DATA holds `fashion_mnist` and `cifar10`, as torchvision unpacks them.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.dlg_cifar100 import environment
from fedsim.config import DefenseConfig
from fedsim.data.kinds import TaskData
from fedsim.data.load import load_data
from fedsim.defenses import Situation, UpdateDefense, build_defense
from fedsim.models.build import build_model
from fedsim.seeds import stream

CLIENTS = 4
BATCH = 32
LOOKS = 10
"""Times that accuracy is taken in a training."""
EARLY = 3
"""Which of them stands for a short training: 30 % of the rounds."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained.

    Attributes:
        data: As experiments write it.
        folder: Below DATA; empty if embedded.
        model: As experiments write it.
        rounds: Of training.
        learning_rate: Of the server.
    """

    data: str
    folder: str
    model: str
    rounds: int
    learning_rate: float


TASKS: Mapping[str, Task] = {
    "digits, LeNet": Task(
        data="digits", folder="", model="dlg-lenet", rounds=1000, learning_rate=2.0
    ),
    "digits, ResNet-20": Task(
        data="digits", folder="", model="resnet20", rounds=500, learning_rate=0.1
    ),
    "Fashion-MNIST, LeNet": Task(
        data="fashion-mnist",
        folder="fashion_mnist",
        model="dlg-lenet",
        rounds=3000,
        learning_rate=0.5,
    ),
    "CIFAR-10, LeNet": Task(
        data="cifar10", folder="cifar10", model="dlg-lenet", rounds=3000, learning_rate=0.5
    ),
}
LEVELS: Mapping[str, tuple[str, Mapping[str, Any]] | None] = {
    "none": None,
    "Gaussian 1e-2": ("gaussian-noise", {"scale": 1e-2}),
    "int8 stochastic": ("int8", {}),
    "int8 nearest": ("int8", {"rounding": "nearest"}),
    "int8 nearest, up to 1": ("int8", {"rounding": "nearest", "largest": 1.0}),
    "int8 nearest, up to 4": ("int8", {"rounding": "nearest", "largest": 4.0}),
}


def train(task: Task, data: TaskData, level: str, seed: int) -> list[float]:
    """Return the accuracy on the test set, LOOKS times, evenly spread."""
    rng = stream(seed, "accuracy")
    model = build_model(task.model, data.input_shape, data.num_classes, rng=rng, options={})
    chosen = LEVELS[level]
    defense: UpdateDefense | None = None
    if chosen is not None:
        built = build_defense(DefenseConfig(name=chosen[0], options=dict(chosen[1])))
        assert isinstance(built, UpdateDefense)
        defense = built
    looks = []
    for number in range(1, task.rounds + 1):
        model.train()
        parameters = dict(model.named_parameters())
        total = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
        for client in range(CLIENTS):
            used = torch.randint(len(data.train_labels), (BATCH,), generator=rng)
            inputs, labels = data.train_inputs[used], data.train_labels[used]
            loss = functional.cross_entropy(model(inputs), labels)
            found = torch.autograd.grad(loss, list(parameters.values()))
            sent: Mapping[str, torch.Tensor] = dict(zip(parameters, found, strict=True))
            if defense is not None:
                at = Situation(
                    kind="gradient",
                    model=model,
                    before={name: tensor.detach() for name, tensor in parameters.items()},
                    loss=functional.cross_entropy,
                    inputs=inputs,
                    labels=labels,
                    learning_rate=task.learning_rate,
                    server_round=number,
                    num_rounds=task.rounds,
                    memory={},
                    rng=stream(seed, "round", number, "client", client),
                )
                sent = defense.apply(sent, at)
            for name, tensor in sent.items():
                total[name] += tensor / CLIENTS
        with torch.no_grad():
            for name, tensor in parameters.items():
                tensor.sub_(task.learning_rate * total[name])
        if number * LOOKS % task.rounds == 0:
            looks.append(accuracy(model, data))
    return looks


@torch.no_grad()
def accuracy(model: nn.Module, data: TaskData) -> float:
    """Return the share of test images that are told, 0 to 1."""
    model.eval()
    parts = torch.arange(len(data.test_labels)).split(500)  # type: ignore[no-untyped-call]
    right = sum(
        int((model(data.test_inputs[part]).argmax(1) == data.test_labels[part]).sum())
        for part in parts
    )
    return right / len(data.test_labels)


def measure(root: Path, names: Sequence[str], seeds: int) -> dict[str, Any]:
    """Return every accuracy, by task and level, one list per seed."""
    found: dict[str, dict[str, list[list[float]]]] = {}
    for name in names:
        task = TASKS[name]
        folder = str(root / task.folder) if task.folder else ""
        data = load_data(task.data, root=folder, options={})
        found[name] = {level: [] for level in LEVELS}
        for seed in range(seeds):
            for level in LEVELS:
                found[name][level].append(train(task, data, level, seed))
                print(name, level, seed, *(f"{one:.3f}" for one in found[name][level][-1]))
    return {"environment": environment(), "found": found}


def markdown(tables: Sequence[Mapping[str, Any]]) -> str:
    """Return the table for a page: a row per level, two numbers per task."""
    found = {name: levels for table in tables for name, levels in table["found"].items()}
    names = [name for name in TASKS if name in found]
    lines = [
        "| sent | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
    ]
    for level in LEVELS:
        cells = [
            f"{_spread([one[EARLY - 1] for one in found[name][level]])}, "
            f"{_spread([one[-1] for one in found[name][level]])}"
            for name in names
        ]
        lines.append(f"| {level} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    """Return the mean in percent, and its standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.1%} ± {error:.1%}".replace("%", "")


def main() -> None:
    """Measure and write JSON, or read JSON and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--markdown", type=Path, nargs="+", help="print the table of these files")
    arguments = parser.parse_args()
    if arguments.markdown:
        print(markdown([json.loads(one.read_text()) for one in arguments.markdown]))
        return
    torch.set_num_threads(1)
    table = measure(arguments.data, arguments.tasks, arguments.seeds)
    print(markdown([table]))
    if arguments.output:
        arguments.output.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
