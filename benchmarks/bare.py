"""The steps of SGD that simulators are measured against, and the clock of processes.

Needs PyTorch alone, so that it runs in the environment of any other simulator, too.
"""

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

CLIENTS = 50
STEPS = 5
BATCH = 10
RATE = 0.01

Part = tuple[Tensor, Tensor]
"""Inputs, shape (STEPS * BATCH, C, H, W), and labels of one client."""


def sgd(
    model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor
) -> float:
    """Take the steps of one client as anybody would write them; return the last loss."""
    for step in range(STEPS):
        batch = slice(step * BATCH, (step + 1) * BATCH)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs[batch]), labels[batch])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return float(loss.detach())


def bare_round(model: nn.Module, parts: Sequence[Part]) -> float:
    """Return the CPU seconds of the steps of all clients in a plain loop, and of nothing else.

    They are those of this thread: a simulator may have others at work meanwhile. The model is
    left as it was.
    """
    start = copied(model)
    spent = 0.0
    for inputs, labels in parts:
        model.load_state_dict(start)  # not timed: or training drifts into slow ranges of numbers
        before = time.thread_time()
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        sgd(model, optimizer, inputs, labels)
        spent += time.thread_time() - before
    model.load_state_dict(start)
    return spent


def mean_of_round(model: nn.Module, parts: Sequence[Part]) -> dict[str, Tensor]:
    """Return the mean of the weights that the clients end with; the model is left as it was."""
    start = copied(model)
    total = {name: torch.zeros_like(tensor) for name, tensor in start.items()}
    for inputs, labels in parts:
        model.load_state_dict(start)
        sgd(model, torch.optim.SGD(model.parameters(), lr=RATE), inputs, labels)
        for name, tensor in model.state_dict().items():
            total[name] += tensor
    model.load_state_dict(start)
    return {name: tensor / len(parts) for name, tensor in total.items()}


def deviation(found: dict[str, Tensor], model: nn.Module, parts: Sequence[Part]) -> float:
    """Return how far weights after the first round are from the mean of the plain loop.

    Args:
        found: Weights by name.
        model: As it was before the round.
        parts: The clients' data.

    Returns:
        Norm of the difference over the norm of what the round changed.
    """
    start, wanted = copied(model), mean_of_round(model, parts)
    off = sum(float((found[name] - wanted[name]).double().square().sum()) for name in wanted)
    moved = sum(float((start[name] - wanted[name]).double().square().sum()) for name in wanted)
    return math.sqrt(off / moved)


def copied(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a model, as they are now."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


class Meter:
    """Wall and CPU seconds since it was made, without what reading the clocks takes.

    Args:
        root: The process whose descendants count beside this process; 0 means this one alone.
    """

    def __init__(self, root: int = 0) -> None:
        self.root = root
        self._others = self._elsewhere()  # first: to read it takes milliseconds of this process
        self._own = time.process_time()
        self._wall = time.perf_counter()

    def read(self) -> tuple[float, float, float]:
        """Return wall seconds, CPU seconds of all processes, and those of this one."""
        wall, own = time.perf_counter() - self._wall, time.process_time() - self._own
        return wall, own + self._elsewhere() - self._others, own

    def _elsewhere(self) -> float:
        if not self.root:
            return 0.0
        return sum(_ran(process) for process in _family(self.root) if process != os.getpid())


def _ran(process: int) -> float:
    """Return the seconds that the threads of a process have run; Linux tells nanoseconds."""
    total = 0
    for task in Path(f"/proc/{process}/task").glob("*"):
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except (OSError, IndexError):  # it ended meanwhile
            continue
    return total / 1e9


def _family(root: int) -> list[int]:
    """Return a process and all its descendants."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int(
                (entry / "stat").read_text().rpartition(")")[2].split()[1]
            )
        except (OSError, IndexError):  # it ended meanwhile
            continue
    children: dict[int, list[int]] = {}
    for process, parent in parents.items():
        children.setdefault(parent, []).append(process)
    family = [root]
    for process in family:  # grows while it is gone through
        family += children.get(process, [])
    return family
