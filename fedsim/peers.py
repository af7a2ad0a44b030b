"""What a federation without a server is made of, as every process of it builds it."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import nn

from fedsim.config import Experiment
from fedsim.peer_wire import Layout
from fedsim.protocols.build import protocol_of
from fedsim.protocols.peer_protocol import PeerProtocol
from fedsim.seeds import stream
from fedsim.setup import task_of
from fedsim.tasks import Task
from fedsim.topologies.build import network_of
from fedsim.topologies.network import PeerNetwork
from fedsim.wire import read_experiment_config, shared_parameters


@dataclass(frozen=True, kw_only=True, eq=False)
class Federation:
    """What all peers share: no peer's data, and nothing that changes.

    Attributes:
        experiment: As read.
        task: What is learnt.
        protocol: Who says what.
        network: Who may speak to whom.
        layout: Where each parameter lies in a vector.
    """

    experiment: Experiment
    task: Task
    protocol: PeerProtocol
    network: PeerNetwork
    layout: Layout

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of the vectors that peers exchange."""
        return next(iter(self.start(0).parameters())).dtype

    def start(self, peer: int) -> nn.Module:
        """Return the model that a peer begins with."""
        own = ("peer", peer) if self.experiment.protocol.start == "own" else ()
        return self.task.build_model(stream(self.experiment.seed, "model", *own))


def federation_of(experiment: Experiment) -> Federation:
    """Return what an experiment without a server is made of.

    Raises:
        ConfigError: A name or an option is wrong, or two of them do not go together.
    """
    task = task_of(experiment)
    model = task.build_model(stream(experiment.seed, "model"))
    return Federation(
        experiment=experiment,
        task=task,
        protocol=protocol_of(experiment),
        network=network_of(experiment),
        layout=Layout.of(shared_parameters(model)),
    )


@lru_cache(maxsize=2)
def federation(text: str) -> Federation:
    """Return the federation of an experiment, given as its run configuration holds it."""
    return federation_of(read_experiment_config({"experiment": text}))
