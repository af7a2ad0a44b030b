"""One client: its share of the data, and the model it trains."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor, nn

from attacks.observation import Loss, Tensors
from fedsim.config import Experiment
from fedsim.defenses import with_penalties
from fedsim.freed_memory import keep_freed_memory
from fedsim.held_arrays import content_of
from fedsim.seeds import stream
from fedsim.setup import shares_of, task_of
from fedsim.tasks import Task
from fedsim.wire import (
    load_state,
    put_into,
    read_experiment_config,
    read_weights,
    shared_state,
    state_of,
)

Way = Callable[
    [nn.Module, Loss, Sequence[tuple[Tensor, Tensor]]], list[tuple[dict[str, Tensor], float]]
]
"""How gradients and losses of several batches are found; see `clients.together`."""

MOST_KEPT = 64 * 2**20
"""Bytes of clients' own examples that a process keeps gathered; the others are gathered anew."""


class Workplace:
    """What all clients of one process use in turn: data, partition and model, made once.

    Args:
        text: The experiment, as its run configuration holds it.

    Attributes:
        experiment: The experiment.
        task: What is learnt.
        model: The model, on its device.
        shares: Indices into the training split, by client.
        loss: Mean over the batch, with what modules of the model add to it.
        at_once: How gradients of many clients are computed at once; None if each has its own pass.
        probed: Whether that was found out.
        ready: Gradients and losses computed before they are asked for, by round and client.
    """

    def __init__(self, text: str) -> None:
        keep_freed_memory()
        self.experiment = read_experiment_config({"experiment": text})
        self.task = task_of(self.experiment)
        model = self.task.build_model(stream(self.experiment.seed, "model"))
        self.model: nn.Module = model.to(self.experiment.engine.device)
        self.shares: Sequence[Tensor] = shares_of(self.experiment, self.task)
        self.loss: Loss = with_penalties(self.task.loss, self.model)
        shared = shared_state(self.model)
        self._unshared = {
            name: tensor.clone()
            for name, tensor in self.model.state_dict().items()
            if name not in shared
        }
        # buffers may be replaced while a model works, parameters are not
        self._own = {} if any(True for _ in self.model.buffers()) else state_of(self.model)
        self.at_once: Way | None = None
        self.probed = False
        self.ready: dict[tuple[int, int], tuple[dict[str, Tensor], float]] = {}
        self._examples: dict[int, tuple[Tensor, Tensor]] = {}
        self._kept = 0
        self._read: tuple[list[_Content], Tensors] | None = None

    def examples(self, number: int) -> tuple[Tensor, Tensor]:
        """Return the inputs and labels of a client, on the device, not to be changed."""
        if number in self._examples:
            return self._examples[number]
        share = self.shares[number]
        data, device = self.task.data, torch.device(self.experiment.engine.device)
        found = data.train_inputs[share].to(device), data.train_labels[share].to(device)
        size = sum(tensor.nbytes for tensor in found)
        if self._kept + size <= MOST_KEPT:
            self._kept += size
            self._examples[number] = found
        return found

    def forget(self) -> None:
        """Start counters anew, whoever trained with this model before."""
        if self._unshared:
            load_state(self.model, self._unshared)

    def load(self, record: ArrayRecord) -> None:
        """Put weights that a client was sent into the model.

        Raises:
            BadReply: They are not all that is shared of it, and no more, in finite numbers.
        """
        # all clients of a round are sent the same: it is taken apart and checked once
        contents = [_Content.of(name, array) for name, array in record.items()]
        if (
            self._read is None
            or len(contents) != len(self._read[0])
            or not all(new.same(old) for new, old in zip(contents, self._read[0], strict=True))
        ):
            self._read = contents, read_weights(record, self.model)
        put_into(self._own or state_of(self.model), self._read[1])


@dataclass(frozen=True)
class _Content:
    """What an array says, and the very object that holds its values, which never change."""

    form: tuple[object, ...]
    values: object

    @classmethod
    def of(cls, name: str, array: Array) -> "_Content":
        return cls((name, array.dtype, tuple(array.shape), array.stype), content_of(array))

    def same(self, other: "_Content") -> bool:
        return self.values is other.values and self.form == other.form


@dataclass(frozen=True, kw_only=True)
class Participant:
    """A client as it stands before a round.

    Attributes:
        number: The client's number.
        workplace: What it shares with the other clients of this process.
        inputs: Its inputs, shape (N, C, H, W).
        labels: Their labels, shape (N,).
    """

    number: int
    workplace: Workplace
    inputs: Tensor
    labels: Tensor

    @property
    def name(self) -> str:
        """How records call it."""
        return f"client-{self.number}"

    @property
    def experiment(self) -> Experiment:
        """The experiment."""
        return self.workplace.experiment

    @property
    def task(self) -> Task:
        """What is learnt."""
        return self.workplace.task

    @property
    def model(self) -> nn.Module:
        """The model, on its device.

        All clients of a process take turns with it, so whatever it holds is overwritten by the
        weights received.
        """
        return self.workplace.model


workplace = lru_cache(maxsize=2)(Workplace)


def participant(experiment_text: str, number: int) -> Participant:
    """Return client `number` of an experiment, given as its run configuration holds it."""
    place = workplace(experiment_text)
    place.forget()
    inputs, labels = place.examples(number)
    return Participant(number=number, workplace=place, inputs=inputs, labels=labels)
