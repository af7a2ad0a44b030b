"""Rounds of pfl-research in an environment of its own; see `benchmarks/simulators.py`.

    python -m benchmarks.pfl_worker JOB CLOCK ROUNDS

JOB is a file of `torch.save` with the model and the clients' data, CLOCK gets one JSON line per
round. Nothing of this project is imported but the plain loop.
"""

import copy
import json
import logging
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.bare import BATCH, CLIENTS, RATE, Meter, Part, bare_round, copied, deviation

LAYERS: list[Any] = [
    nn.Sequential,
    nn.Flatten,
    nn.Linear,
    nn.Conv2d,
    nn.MaxPool2d,
    nn.ReLU,
    nn.Sigmoid,
    set,
]
"""What the file of a job may hold besides tensors."""


class Clock(TrainingProcessCallback):  # type: ignore[misc]
    """Notes what each round cost, and runs the plain loop between rounds.

    Args:
        path: Gets a line per round.
        model: For the plain loop; not the one that pfl trains.
        parts: The clients' data.
    """

    def __init__(self, path: Path, model: nn.Module, parts: Sequence[Part]) -> None:
        self.path = path
        self.model = model
        self.parts = parts
        self.bare = 0.0
        self.meter = Meter()

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:  # noqa: ARG002
        """Run the plain loop, and begin the first round."""
        self._begin()
        return Metrics()

    def after_central_iteration(
        self,
        aggregate_metrics: Metrics,  # noqa: ARG002
        model: PyTorchModel,
        *,
        central_iteration: int,
    ) -> tuple[bool, Metrics]:
        """Note a round, and begin the next one."""
        wall, cpu, own = self.meter.read()
        line = {"cpu_s": cpu, "wall_s": wall, "server_cpu_s": own, "bare_cpu_s": self.bare}
        if central_iteration == 0:
            line["deviation"] = deviation(copied(model.pytorch_model), self.model, self.parts)
            line |= versions()
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._begin()
        return False, Metrics()

    def _begin(self) -> None:
        self.bare = bare_round(self.model, self.parts)
        self.meter = Meter(os.getpid())


def versions() -> dict[str, Any]:
    """Return the versions of this environment."""
    names = {name: version(name) for name in ("pfl", "torch", "numpy")}
    return {"versions": {"python": platform.python_version(), **names}}


def loss(self: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return what a step descends."""
    return functional.cross_entropy(self(inputs), labels)


def metrics(self: nn.Module, inputs: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return what evaluation reports; pfl evaluates in the first round, which is not counted."""
    with torch.no_grad():
        return {"loss": Weighted(float(loss(self, inputs, labels)) * len(labels), len(labels))}


def main() -> None:
    """Run one job."""
    job, clock, rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    torch.serialization.add_safe_globals(LAYERS)
    given = torch.load(job, weights_only=True)
    model, parts = given["model"], given["parts"]
    plain = copy.deepcopy(model)
    model.loss, model.metrics = MethodType(loss, model), MethodType(metrics, model)
    users = {
        number: PyTorchTensorDataset(tensors=part, user_id=str(number))
        for number, part in enumerate(parts)
    }
    sampler = get_user_sampler("minimize_reuse", list(users))
    data = FederatedDataset(users.__getitem__, sampler)
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=rounds + 1,
            train_cohort_size=CLIENTS,
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=data, val_data=data),
        PyTorchModel(
            model,
            local_optimizer_create=torch.optim.SGD,
            central_optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        ),
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=RATE, local_batch_size=BATCH),
        NNEvalHyperParams(local_batch_size=None),
        callbacks=[Clock(clock, plain, parts)],
        send_metrics_to_platform=False,
    )


if __name__ == "__main__":
    main()
