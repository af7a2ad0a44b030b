"""From an experiment to the things it names: the task, the shares of the clients, the draws."""

import torch
from torch import Tensor

from fedsim.config import Experiment
from fedsim.data.partition import partition
from fedsim.errors import ConfigError
from fedsim.named_attacks import active_attack
from fedsim.seeds import stream
from fedsim.tasks import Task, load_task


def task_of(experiment: Experiment) -> Task:
    """Return the data, the model and the loss that the experiment names.

    Raises:
        ConfigError: A name or an option is wrong, or the model does not take the data.
        DataMissing: The data are not there; the message says what to place where.
    """
    active = active_attack(experiment)
    return load_task(
        data=experiment.data.name,
        data_root=experiment.data.root,
        data_options=experiment.data.options,
        model=experiment.model.name,
        model_options=experiment.model.options,
        defenses=experiment.defenses,
        implant=None if active is None else active[0],
    )


def shares_of(experiment: Experiment, task: Task) -> list[Tensor]:
    """Return each client's indices into the training split, int64.

    Raises:
        ConfigError: The partition cannot be made, or leaves a client less than one batch.
    """
    labels = task.data.train_labels
    if labels.ndim > 1:  # tokens are predicted
        if experiment.partition.name != "iid":
            raise ConfigError(
                f"partition.name '{experiment.partition.name}' divides examples by their classes, "
                f"and data '{task.data.name}' predicts tokens; set it to 'iid'"
            )
        labels = torch.zeros(len(labels), dtype=torch.int64)
    shares = [
        torch.as_tensor(share, dtype=torch.int64)
        for share in partition(
            labels,
            name=experiment.partition.name,
            num_clients=experiment.partition.clients,
            seed=experiment.seed,
            options=experiment.partition.options,
        )
    ]
    smallest = min(range(len(shares)), key=lambda client: len(shares[client]))
    if experiment.training.batch_size > len(shares[smallest]):
        raise ConfigError(
            f"training.batch_size must be at most {len(shares[smallest])}, the number of examples "
            f"of client {smallest}, got {experiment.training.batch_size}; use a smaller batch, "
            "fewer clients (partition.clients) or another partition"
        )
    return shares


def most_distinct(experiment: Experiment, shares: list[Tensor]) -> int:
    """Return the largest number of different examples that any client uses in a round."""
    return max(experiment.training.num_distinct(len(share)) for share in shares)


def most_local_steps(experiment: Experiment, shares: list[Tensor]) -> int:
    """Return the largest number of optimizer steps that any client takes in a round."""
    return max(experiment.training.num_local_steps(len(share)) for share in shares)


def draw_clients(experiment: Experiment, server_round: int) -> list[int]:
    """Return the clients of a round, in order: all, or a seeded draw without replacement."""
    clients = experiment.partition.clients
    count = experiment.server.clients_per_round or clients
    rng = stream(experiment.seed, "round", server_round, "clients")
    return sorted(torch.randperm(clients, generator=rng)[:count].tolist())
