"""What an adversary keeps of a round when secure aggregation shows it nothing but the mean.

Without the defense `secure-aggregation` the aggregation is idealised: no masks are sent, no client
drops out half way. What the server learns is what a perfect protocol would tell it: who took part,
how many examples are behind the sum, and the mean of the gradients, weighted by examples. With the
defense, it is told by the protocol.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from flwr.app import ArrayRecord, Message
from torch import Tensor

from attacks.observation import Kind, Observation, Tensors
from attacks.threats import Capability, ThreatModel
from fedsim.config import AdversaryConfig
from fedsim.records import EVERYBODY
from fedsim.wire import BadReply, Update, to_tensors
from server.guard import Exchange
from server.strategies import shares, weighted_sum


class KeepSum(Protocol):
    """Where an observation of several clients goes."""

    def __call__(self, seen: Observation, *, members: Sequence[str]) -> object:
        """Take what was heard, and whose updates are in it."""


@dataclass(frozen=True, kw_only=True)
class SumEar:
    """Turns all replies of a round into one observation.

    What clients send back of their running statistics is not kept: the mean over clients is that
    of nobody's batch.

    Attributes:
        threat: What is granted.
        scope: Which rounds it listens to.
        exchange: How updates look on the wire.
        target: The client attacked in a round, whom the observation is then named after; None
            when nobody is, and the observation is of everybody.
        keep: Where observations go.
    """

    threat: ThreatModel
    scope: AdversaryConfig
    exchange: Exchange
    target: Callable[[int], int | None]
    keep: KeepSum

    def hear_round(self, server_round: int, heard: Sequence[tuple[ArrayRecord, Message]]) -> None:
        """Keep the mean of the sound updates; nothing if that of the target is missing."""
        if not self.scope.listens_in(server_round):
            return
        states: dict[int, Tensors] = {}
        sound: dict[int, Update] = {}
        for sent, reply in heard:
            try:
                update = self.exchange.read(reply)
            except BadReply:
                continue
            client = self.exchange.client_of[reply.metadata.src_node_id]
            states[client], sound[client] = to_tensors(sent), update
        target = self.target(server_round)
        if not sound or (self.threat.active and target not in sound):
            return
        clients = sorted(sound)  # a sum of floating point numbers has an order
        counts = [sound[client].num_examples for client in clients]
        gradients = [self._gradient(sound[client], states[client]) for client in clients]
        mean = weighted_sum(gradients, shares(counts))
        state = states[clients[0] if target is None else target]
        self._keep(server_round, mean, state, sum(counts), clients)

    def hear_mean(
        self, server_round: int, sent: Mapping[int, ArrayRecord], mean: Update, clients: list[int]
    ) -> None:
        """Keep a mean that a protocol of secure aggregation came to.

        Args:
            server_round: The round.
            sent: The weights that clients were sent.
            mean: In the form in which a client would send its own update.
            clients: Whose updates are in it.
        """
        target = self.target(server_round)
        if not self.scope.listens_in(server_round) or (
            self.threat.active and target not in clients
        ):
            return
        # the mean was told against the weights that the first of them was sent
        gradient = self._gradient(mean, to_tensors(sent[clients[0]]))
        state = to_tensors(sent[clients[0] if target is None else target])
        self._keep(server_round, gradient, state, mean.num_examples, clients)

    def _keep(
        self,
        server_round: int,
        mean: Tensors,
        state: Tensors,
        num_examples: int,
        clients: list[int],
    ) -> None:
        target = self.target(server_round)
        self.keep(
            Observation(
                round=server_round,
                sender=EVERYBODY if target is None else f"client-{target}",
                receiver="server",
                kind=Kind.AGGREGATE,
                update={
                    name: mean[name].to(like.dtype)
                    for name, like in self.exchange.parameters.items()
                },
                weights=self._granted(Capability.WEIGHTS, state, self.exchange.parameters),
                buffers=self._granted(
                    Capability.BATCHNORM_STATISTICS, state, self.exchange.buffers
                ),
                num_examples=num_examples,
            ),
            members=[f"client-{client}" for client in clients],
        )

    def _gradient(self, update: Update, before: Tensors) -> dict[str, Tensor]:
        """Return the gradient behind one update, which is at most one step of plain SGD away."""
        rate = self.exchange.learning_rate
        found = {name: update.tensors[name] for name in self.exchange.parameters}
        if self.exchange.kind == "weights":
            return {name: (before[name] - after) / rate for name, after in found.items()}
        if self.exchange.kind == "delta":
            return {name: change / -rate for name, change in found.items()}
        return found

    def _granted(self, capability: Capability, state: Tensors, names: Tensors) -> Tensors | None:
        if capability not in self.threat.grants or not names:
            return None
        return {name: state[name] for name in names}
