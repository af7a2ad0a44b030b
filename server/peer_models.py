"""How training goes without a server: the models that peers tell the simulator, and nobody else."""

import torch
from flwr.app import RecordDict
from torch import Tensor

from attacks.observation import Tensors
from fedsim import peer_wire
from fedsim.files import Record, finite
from fedsim.peers import Federation
from fedsim.tasks import evaluate
from fedsim.wire import (
    BUFFERS,
    BadReply,
    check_tensor,
    load_state,
    shared_buffers,
    shared_parameters,
)

Models = dict[int, tuple[Tensor, dict[str, Tensor]]]
"""Weights as a vector (D,), and running statistics, by peer."""


class Judge:
    """Reads models, averages and evaluates them.

    Args:
        federation: What all peers share.
    """

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.model = federation.start(0)
        self.buffers = shared_buffers(self.model)
        self.template = federation.layout.vector(shared_parameters(self.model))

    def read(self, answer: RecordDict) -> tuple[Tensor, dict[str, Tensor]]:
        """Check and unpack what a peer tells of its model.

        Raises:
            BadReply: It is no sound model.
        """
        try:
            told = answer.array_records[peer_wire.MODEL][peer_wire.MODEL]
            stored = answer.array_records[BUFFERS]
            buffers = {name: (stored[name], template) for name, template in self.buffers.items()}
        except KeyError as error:
            raise BadReply(f"its model cannot be read: it lacks {error}") from error
        vector = check_tensor("model", told, self.template)
        return vector, {name: check_tensor(name, *one) for name, one in buffers.items()}

    def average(self, models: Models) -> dict[str, Tensor]:
        """Return the mean of all models, by name, running statistics included."""
        vectors = torch.stack([vector for vector, _ in models.values()])
        mean = vectors.double().mean(dim=0).to(vectors.dtype)
        buffers = {
            name: torch.stack([own[name] for _, own in models.values()]).double().mean(dim=0)
            for name in self.buffers
        }
        return self.federation.layout.tensors(mean) | {
            name: tensor.to(self.buffers[name].dtype) for name, tensor in buffers.items()
        }

    def judged(self, models: Models) -> Record:
        """Return the accuracy of the mean model and of each peer's, and how far they are apart."""
        accuracy, loss = self._evaluate(self.average(models))
        vectors = torch.stack([vector for vector, _ in models.values()]).double()
        apart = (vectors - vectors.mean(dim=0)).square().sum(dim=1).mean().sqrt()
        own = {
            peer: self._evaluate(self.federation.layout.tensors(vector) | buffers)[0]
            for peer, (vector, buffers) in models.items()
        }
        return {
            "accuracy": accuracy,
            "loss": finite(loss),
            "consensus_distance": finite(float(apart)),
            "peer_accuracy": [own.get(peer) for peer in range(self.federation.network.num_peers)],
        }

    def _evaluate(self, state: Tensors) -> tuple[float, float]:
        load_state(self.model, state)
        data = self.federation.task.data
        return evaluate(self.model, data.test_inputs, data.test_labels)
