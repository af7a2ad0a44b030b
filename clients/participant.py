"""One client: its share of the data, and the model it trains."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from fedsim.config import Experiment
from fedsim.seeds import stream
from fedsim.setup import shares_of, task_of
from fedsim.tasks import Task
from fedsim.wire import load_state, read_experiment_config, shared_state


@dataclass(frozen=True, kw_only=True)
class Participant:
    """A client as it stands before a round.

    Attributes:
        experiment: The experiment.
        number: The client's number.
        task: What is learnt.
        model: The model, on its device; all clients of a process take turns with it, so whatever
            it holds is overwritten by the weights received.
        inputs: Its inputs, shape (N, C, H, W).
        labels: Their labels, shape (N,).
    """

    experiment: Experiment
    number: int
    task: Task
    model: nn.Module
    inputs: Tensor
    labels: Tensor

    @property
    def name(self) -> str:
        """How records call it."""
        return f"client-{self.number}"


@lru_cache(maxsize=2)
def _federation(text: str) -> tuple[Experiment, Task, nn.Module, dict[str, Tensor], list[Tensor]]:
    # one process plays many clients: data, partition and model are made once for all of them
    experiment = read_experiment_config({"experiment": text})
    task = task_of(experiment)
    model = task.build_model(stream(experiment.seed, "model")).to(experiment.engine.device)
    unshared = {
        name: tensor.clone()
        for name, tensor in model.state_dict().items()
        if name not in shared_state(model)
    }
    return experiment, task, model, unshared, shares_of(experiment, task)


def participant(experiment_text: str, number: int) -> Participant:
    """Return client `number` of an experiment, given as its run configuration holds it."""
    experiment, task, model, unshared, shares = _federation(experiment_text)
    load_state(model, unshared)  # counters start anew, whoever trained with this model before
    share = shares[number]
    device = torch.device(experiment.engine.device)
    return Participant(
        experiment=experiment,
        number=number,
        task=task,
        model=model,
        inputs=task.data.train_inputs[share].to(device),
        labels=task.data.train_labels[share].to(device),
    )
