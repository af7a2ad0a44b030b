"""What an adversary keeps of the messages that it hears."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, Message
from torch import Tensor

from attacks.observation import Kind, Observation, Tensors
from attacks.threats import Capability, ThreatModel
from fedsim.config import AdversaryConfig
from fedsim.secure_sum.field import Elements, Layout
from fedsim.secure_sum.messages import read_masked
from fedsim.wire import BadReply, Update, num_bytes, to_tensors
from server.guard import Exchange

Keep = Callable[[Observation], object]
"""Where an observation goes."""


@dataclass(frozen=True, kw_only=True)
class Ear:
    """Turns messages that cross one place into observations.

    Attributes:
        threat: What is granted; the rest of a message is not kept.
        scope: Which rounds and victims it listens to.
        exchange: How updates look on the wire.
        keep: Where observations go.
        encrypted: Whether what crosses this place is: then it hears sizes alone.
    """

    threat: ThreatModel
    scope: AdversaryConfig
    exchange: Exchange
    keep: Keep
    encrypted: bool = False

    def hear_round(self, server_round: int, heard: Sequence[tuple[ArrayRecord, Message]]) -> None:
        """Keep what each reply of a round says, given what its client was sent; see `hear`."""
        for sent, reply in heard:
            self.hear(server_round, sent, reply)

    def hear(self, server_round: int, sent: ArrayRecord, reply: Message) -> None:
        """Keep what one reply says about the client behind it.

        Args:
            server_round: The round.
            sent: The weights that this client was sent.
            reply: The client's reply, as it crossed this place. A reply that is not an update
                (an error, a malformed message) is not kept; the guard records it as an event.
        """
        client = self.exchange.client_of.get(reply.metadata.src_node_id)
        if client is None or not self.scope.hears(server_round, client):
            return
        if self.encrypted:
            self.keep(self._size_heard(server_round, client, reply))
            return
        state = to_tensors(sent)
        try:
            if (share := self._masked(reply)) is not None:
                self.keep(self._share_heard(server_round, client, share, state))
                return
            update = self.exchange.read(reply)
        except BadReply:
            return
        buffers = self._granted(Capability.BATCHNORM_STATISTICS, state, self.exchange.buffers)
        self.keep(
            Observation(
                round=server_round,
                sender=f"client-{client}",
                receiver="server",
                kind=Kind(self.exchange.kind),
                update={name: update.tensors[name] for name in self.exchange.parameters},
                weights=self._granted(Capability.WEIGHTS, state, self.exchange.parameters),
                buffers=buffers,
                buffers_after=buffers and self._buffers_after(update, buffers),
                num_examples=update.num_examples,
            )
        )

    @staticmethod
    def _size_heard(server_round: int, client: int, reply: Message) -> Observation:
        """Return what an encrypted message says."""
        return Observation(
            round=server_round,
            sender=f"client-{client}",
            receiver="server",
            kind=Kind.SIZES_ONLY,
            update={},
            num_bytes=0 if reply.has_error() else num_bytes(reply.content),
        )

    def _masked(self, reply: Message) -> Elements | None:
        """Return the masked update that a reply carries, if it carries one."""
        if reply.has_error():
            return None
        layout = Layout.of(self.exchange.parameters, self.exchange.buffers)
        return read_masked(reply.content, layout)

    def _share_heard(
        self, server_round: int, client: int, share: Elements, state: Tensors
    ) -> Observation:
        """Return what a masked update says: elements of a field, by parameter name."""
        parts = Layout.of(self.exchange.parameters, self.exchange.buffers).parts(share)
        return Observation(
            round=server_round,
            sender=f"client-{client}",
            receiver="server",
            kind=Kind.MASKED_SHARE,
            update={
                name: torch.from_numpy(parts[name].copy()) for name in self.exchange.parameters
            },
            weights=self._granted(Capability.WEIGHTS, state, self.exchange.parameters),
            buffers=self._granted(Capability.BATCHNORM_STATISTICS, state, self.exchange.buffers),
        )

    def _granted(self, capability: Capability, state: Tensors, names: Tensors) -> Tensors | None:
        if capability not in self.threat.grants or not names:
            return None
        return {name: state[name] for name in names}

    def _buffers_after(self, update: Update, before: Tensors) -> dict[str, Tensor]:
        """Return the running statistics that a client sent back, whatever kind of update it is."""
        if self.exchange.kind == "gradient":
            return {name: update.buffers[name] for name in before}
        after = {name: update.tensors[name] for name in before}
        if self.exchange.kind == "delta":
            return {name: before[name] + change for name, change in after.items()}
        return after
