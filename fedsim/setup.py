"""From an experiment to the things it names: the task, the shares of the clients, the draws."""

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from fedsim.config import Experiment
from fedsim.data.partition import Parts, partition
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


class Shares(Sequence[Tensor]):
    """Each client's indices into the training split, int64; a view, made when it is asked for.

    Args:
        parts: The partition.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return len(self.parts)

    @overload
    def __getitem__(self, place: int) -> Tensor: ...
    @overload
    def __getitem__(self, place: slice) -> list[Tensor]: ...
    def __getitem__(self, place: int | slice) -> Tensor | list[Tensor]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        return torch.from_numpy(self.parts[place])


def shares_of(experiment: Experiment, task: Task) -> Shares:
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
    parts = partition(
        labels,
        name=experiment.partition.name,
        num_clients=experiment.partition.clients,
        seed=experiment.seed,
        options=experiment.partition.options,
    )
    smallest = int(parts.sizes.argmin())
    if experiment.training.batch_size > parts.sizes[smallest]:
        raise ConfigError(
            f"training.batch_size must be at most {parts.sizes[smallest]}, the number of examples "
            f"of client {smallest}, got {experiment.training.batch_size}; use a smaller batch, "
            "fewer clients (partition.clients) or another partition"
        )
    return Shares(parts)


def sizes_of(shares: Sequence[Tensor]) -> list[int]:
    """Return how many examples each client has."""
    if isinstance(shares, Shares):
        return [int(size) for size in shares.parts.sizes]
    return [len(share) for share in shares]


def most_distinct(experiment: Experiment, shares: Sequence[Tensor]) -> int:
    """Return the largest number of different examples that any client uses in a round."""
    return max(experiment.training.num_distinct(size) for size in set(sizes_of(shares)))


def most_local_steps(experiment: Experiment, shares: Sequence[Tensor]) -> int:
    """Return the largest number of optimizer steps that any client takes in a round."""
    return max(experiment.training.num_local_steps(size) for size in set(sizes_of(shares)))


def draw_clients(experiment: Experiment, server_round: int) -> list[int]:
    """Return the clients of a round, in order: all, or a seeded draw without replacement."""
    clients = experiment.partition.clients
    count = experiment.server.clients_per_round or clients
    rng = stream(experiment.seed, "round", server_round, "clients")
    return sorted(torch.randperm(clients, generator=rng)[:count].tolist())
