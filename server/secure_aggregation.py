"""The server's side of secure aggregation: four stages per round, and one mean in the end."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

from attacks.observation import Tensors
from fedsim.secure_sum import messages as wire
from fedsim.secure_sum.coordinator import unmask
from fedsim.secure_sum.field import Contribution, Elements, Layout, decode
from fedsim.secure_sum.keys import ProtocolError, PublicKeys
from fedsim.secure_sum.settings import Settings, Stage
from fedsim.wire import (
    ARRAYS,
    CONFIG,
    REFUSED,
    ROUND,
    BadReply,
    Update,
    num_bytes,
    to_tensors,
)
from server.guard import Exchange, OnEvent

Send = Callable[[list[Message]], list[Message]]
"""Brings messages to clients and returns their replies."""

T = TypeVar("T")

_LOST = {wire.DROPPED: "client-dropped", REFUSED: "client-refused"}


class TooFew(Exception):
    """Fewer clients than the threshold answered: nothing is revealed."""


@dataclass
class SecureRound:
    """What came of one round.

    Attributes:
        answered: Clients that answered, by stage.
        replies: Messages that came back.
        rejected: Of them, errors and unsound ones.
        bytes_up: Size of all arrays of sound replies.
        bytes_down: Size of all arrays sent.
        masked: Replies with masked updates, in order of client.
        mean: Weighted mean of the updates of those who sent one, in the form in which a client
            would send its own; None if the round was given up.
        reason: Why it was given up.
    """

    answered: dict[str, list[int]] = field(default_factory=dict)
    replies: int = 0
    rejected: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    masked: list[Message] = field(default_factory=list)
    mean: Update | None = None
    reason: str | None = None

    @property
    def survivors(self) -> list[int]:
        """Clients whose updates are in the sum."""
        return self.answered.get(Stage.MASKED, [])


@dataclass(frozen=True, kw_only=True)
class SecureSum:
    """Leads clients through the stages.

    Attributes:
        settings: What was agreed on.
        exchange: How updates look on the wire.
        num_drawn: Clients drawn for a round.
        on_event: Told of every client that is lost on the way.
    """

    settings: Settings
    exchange: Exchange
    num_drawn: int
    on_event: OnEvent

    def one(
        self, server_round: int, messages: Sequence[Message], config: ConfigRecord, send: Send
    ) -> SecureRound:
        """Run one round.

        Args:
            server_round: The round.
            messages: What the strategy sends to clients to train on.
            config: What every message tells.
            send: Brings messages to clients.
        """
        done = SecureRound()
        try:
            _Stages(self, server_round, messages, config, send, done).run()
        except TooFew as few:
            done.reason = str(few)
        except ProtocolError as error:
            done.reason = f"secure aggregation ({error})"
        return done

    @property
    def threshold(self) -> int:
        """Clients that must stay to the end."""
        return self.settings.threshold_of(self.num_drawn)

    @property
    def layout(self) -> Layout:
        """Where what lies in a masked update."""
        return Layout.of(self.exchange.parameters, self.exchange.buffers)


class _Stages:
    """One round, stage by stage."""

    def __init__(
        self,
        protocol: SecureSum,
        server_round: int,
        messages: Sequence[Message],
        config: ConfigRecord,
        send: Send,
        done: SecureRound,
    ) -> None:
        self.protocol = protocol
        self.exchange = protocol.exchange
        self.server_round = server_round
        self.config = ConfigRecord({**config, ROUND: server_round})
        self.training = {self._client(message): message for message in messages}
        self.send = send
        self.done = done

    def run(self) -> None:
        """Go through all four stages.

        Raises:
            TooFew: Clients are lost.
            ProtocolError: What clients revealed is wrong.
        """
        asked = dict.fromkeys(self.training, ArrayRecord())
        keys = self._stage(Stage.KEYS, self._ask(wire.ADVERTISE_KEYS, asked), self._keys)
        asked = dict.fromkeys(keys, wire.pack_keys(keys))
        sealed = self._stage(
            Stage.SHARES,
            self._ask(wire.SHARE_KEYS, asked),
            lambda client, content: self._sealed(client, content, keys),
        )
        sharing = list(sealed)
        masked = self._stage(Stage.MASKED, self._train(sharing), self._masked)
        asked = {
            client: wire.pack_unmasking(
                list(masked),
                {sender: dealt[client] for sender, dealt in sealed.items() if sender != client},
            )
            for client in masked
        }
        gone = [client for client in sharing if client not in masked]
        revealed = self._stage(
            Stage.UNMASK,
            self._ask(wire.UNMASK, asked),
            lambda _, content: wire.read_revealed(content, list(masked), gone),
        )
        total = unmask(
            masked,
            keys=keys,
            sharing=sharing,
            revealed=revealed,
            threshold=self.protocol.threshold,
            context=f"round {self.server_round}",
        )
        self.done.mean = self._mean(total, len(masked))

    def _ask(self, action: str, parts: Mapping[int, ArrayRecord]) -> list[Message]:
        return [
            Message(
                RecordDict({CONFIG: self.config, wire.SECURE: part}),
                self.training[client].metadata.dst_node_id,
                f"{MessageType.QUERY}.{action}",
            )
            for client, part in parts.items()
        ]

    def _train(self, sharing: list[int]) -> list[Message]:
        """Return the strategy's messages to those who dealt out shares, whom they name."""
        part = ArrayRecord(wire.pack_clients(sharing))
        asked = [self.training[client] for client in sharing]
        before = [message.content for message in asked]
        # messages that shared their content still do: an engine may then pack it once
        after = {id(one): RecordDict({**one, wire.SECURE: part}) for one in before}
        for message, content in zip(asked, before, strict=True):
            message.content = after[id(content)]
        return asked

    def _stage(
        self, stage: Stage, messages: list[Message], read: Callable[[int, RecordDict], T]
    ) -> dict[int, T]:
        """Return what clients answered, in order of client.

        Raises:
            TooFew: They are fewer than the threshold.
        """
        done = self.done
        done.bytes_down += sum(num_bytes(message.content) for message in messages)
        replies = sorted(self.send(messages), key=self._client)
        done.replies += len(replies)
        asked = {self._client(message) for message in messages}
        found: dict[int, T] = {}
        for reply in replies:
            client = self._client(reply)
            try:
                if reply.has_error():
                    raise BadReply(reply.error.reason or f"error code {reply.error.code}")
                if client not in asked or client in found:
                    raise BadReply(f"an answer at stage '{stage}' that nobody asked for")
                found[client] = read(client, reply.content)
            except BadReply as bad:
                done.rejected += 1
                kind = "update-rejected"
                if reply.has_error():
                    kind = _LOST.get(reply.error.code, "client-failed")
                self.protocol.on_event(kind, str(bad), client)
                continue
            done.bytes_up += num_bytes(reply.content)
            if stage is Stage.MASKED:
                done.masked.append(reply)
        done.answered[stage.value] = list(found)
        if len(found) < self.protocol.threshold:
            raise TooFew(
                f"secure aggregation (at stage '{stage}', {len(found)} of "
                f"{self.protocol.num_drawn} clients answered, {self.protocol.threshold} are "
                "needed, and nothing was unmasked)"
            )
        return found

    def _client(self, message: Message) -> int:
        nodes = (message.metadata.src_node_id, message.metadata.dst_node_id)
        return next((self.exchange.client_of[n] for n in nodes if n in self.exchange.client_of), -1)

    def _keys(self, client: int, content: RecordDict) -> PublicKeys:
        keys = wire.read_keys(content)
        if list(keys) != [client]:
            raise BadReply(f"a client advertises its own keys, got those of {list(keys)}")
        return keys[client]

    def _sealed(
        self, client: int, content: RecordDict, keys: Mapping[int, PublicKeys]
    ) -> dict[int, bytes]:
        sealed = wire.read_sealed(content)
        if sealed.keys() | {client} != keys.keys() or client in sealed:
            raise BadReply(f"shares must be for all others of {list(keys)}, got {list(sealed)}")
        return sealed

    def _masked(self, _: int, content: RecordDict) -> Elements:
        vector = wire.read_masked(content, self.protocol.layout)
        if vector is None:
            raise BadReply("the update came without masks")
        if 8 * vector.dtype.itemsize != self.protocol.settings.field_bits:
            raise BadReply(
                f"elements must have {self.protocol.settings.field_bits} bits, got {vector.dtype}"
            )
        return vector

    def _mean(self, total: Elements, num_survivors: int) -> Update:
        settings = self.protocol.settings
        mean = decode(total, self.protocol.layout, settings.quantiser, settings.buffer_quantiser)
        if mean is None or mean.num_examples < num_survivors:
            raise ProtocolError("the sum is not that of the clients' examples")
        message = self.training[self.done.survivors[0]]
        return as_update(
            mean,
            self.exchange,
            to_tensors(message.content.array_records[ARRAYS]),
            settings.buffer_quantiser.bound,
        )


def as_update(
    mean: Contribution, exchange: Exchange, received: Tensors, buffer_error: float
) -> Update:
    """Return a mean in the form in which a client would send its own update.

    Args:
        mean: Of gradients or changes of weights, and of changes of running statistics.
        exchange: Says the form.
        received: Weights and running statistics in force.
        buffer_error: How far rounding may have moved a running statistic. One that would change
            its sign by that becomes zero: no variance gets negative.
    """
    changes = {**mean.update, **mean.buffers}
    parts = {}
    for name, like in {**exchange.parameters, **exchange.buffers}.items():
        change, before = changes[name], received[name].double()
        after = before + change
        if name in exchange.buffers:
            crossed = (after * before < 0) & (after.abs() <= buffer_error)
            after = torch.where(crossed, 0.0, after)
            change = after - before
        absolute = exchange.kind == "weights" or (
            exchange.kind == "gradient" and name in exchange.buffers
        )
        parts[name] = (after if absolute else change).to(like.dtype)
    beside = exchange.buffers if exchange.kind == "gradient" else {}
    return Update(
        tensors={name: part for name, part in parts.items() if name not in beside},
        buffers={name: parts[name] for name in beside},
        num_examples=mean.num_examples,
        train_loss=mean.train_loss if exchange.reports_loss else None,
        num_bytes=0,
    )
