"""A strategy's doorman: checks replies, puts them in order, and speaks the strategy's language."""

import gc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from attacks.observation import Tensors
from fedsim.errors import RunFailed
from fedsim.wire import (
    ARRAYS,
    BUFFERS,
    METRICS,
    NUM_EXAMPLES,
    REFUSED,
    TRAIN_LOSS,
    BadReply,
    Update,
    UpdateKind,
    all_finite,
    read_metrics,
    read_update,
    to_record,
    to_tensors,
)
from server.wrapped import WrappedStrategy

OnEvent = Callable[[str, str, int], None]
"""(kind, message, client) -> nothing; where refused replies are recorded."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What server and clients agreed on.

    Attributes:
        kind: What clients send.
        parameters: Templates of the parameters: names, shapes, dtypes.
        buffers: Templates of the running statistics; empty for models without.
        learning_rate: Step size that turns a gradient into weights for stock strategies.
        client_of: Client number by node id.
        reports_loss: Whether clients say how large their loss was.
    """

    kind: UpdateKind
    parameters: Tensors
    buffers: Tensors
    learning_rate: float
    client_of: Mapping[int, int]
    reports_loss: bool = True

    def read(self, reply: Message) -> Update:
        """Check and unpack one training reply; its tensors are not to be changed.

        Raises:
            BadReply: No strategy may see it.
        """
        if reply.metadata.src_node_id not in self.client_of:
            raise BadReply(f"node {reply.metadata.src_node_id} plays no client")
        if reply.has_error():
            raise BadReply(reply.error.reason or f"error code {reply.error.code}")
        if self.kind == "gradient":
            return read_update(
                reply.content,
                expected=self.parameters,
                expected_buffers=self.buffers,
                reports_loss=self.reports_loss,
                shared=True,
            )
        return read_update(
            reply.content,
            expected={**self.parameters, **self.buffers},
            reports_loss=self.reports_loss,
            shared=True,
        )


@dataclass
class Tally:
    """What came back in one round.

    Attributes:
        clients: Clients whose replies were accepted.
        rejected: Replies that were refused, errors included.
        bytes_up: Size of the arrays that were sound.
    """

    clients: list[int] = field(default_factory=list)
    rejected: int = 0
    bytes_up: int = 0


class Guarded(WrappedStrategy):
    """Run `inner` on checked replies, in order of client number.

    A stock strategy expects weights: gradients and deltas are turned into the weights that they
    lead to, unless the strategy has an attribute `wants_gradients` that is true. A refused reply
    is an event and never reaches `inner`.

    Args:
        inner: The strategy.
        exchange: What replies must look like.
        on_event: Told of every refused reply.

    Attributes:
        set_aside: Clients whose replies of this round are checked, but not aggregated.
    """

    def __init__(self, inner: Strategy, exchange: Exchange, on_event: OnEvent) -> None:
        super().__init__(inner)
        self.set_aside: frozenset[int] = frozenset()
        self.exchange = exchange
        self.on_event = on_event
        self.tally = Tally()
        self._sent = ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember the weights sent."""
        self.tally = Tally()
        self._sent = arrays
        return self.inner.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check, order and translate the replies, then let `inner` aggregate them.

        Raises:
            RunFailed: `inner` failed on replies that are sound, or its result is not finite.
        """
        accepted: list[Message] = []
        for reply in sorted(replies, key=self.client):
            client = self.client(reply)
            try:
                update = self.exchange.read(reply)
            except BadReply as bad:
                self.tally.rejected += 1
                kind = "update-rejected"
                if reply.has_error():
                    refused = reply.error.code == REFUSED
                    kind = "client-refused" if refused else "client-failed"
                self.on_event(kind, str(bad), client)
                continue
            self.tally.bytes_up += update.num_bytes
            if client in self.set_aside:
                continue
            reply.content = self._translate(update)
            self.tally.clients.append(client)
            accepted.append(reply)
        return self._aggregated(server_round, accepted) if accepted else (None, None)

    def aggregate_mean(
        self, server_round: int, mean: Update, clients: list[int], carrier: Message
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let `inner` aggregate the mean of several clients, as if it were one client's update.

        Args:
            server_round: The round.
            mean: Weighted by examples, in the form in which a client would send its own.
            clients: Whose updates are in it.
            carrier: A reply of one of them, which brings the mean to `inner` in place of its own
                content.

        Raises:
            RunFailed: `inner` failed, or its result is not finite.
        """
        if self.set_aside.intersection(clients):
            return None, None
        carrier.content = self._translate(mean)
        self.tally.clients = list(clients)
        return self._aggregated(server_round, [carrier])

    def _aggregated(
        self, server_round: int, accepted: list[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        gc.freeze()  # some strategies of Flower's collect garbage once per array: spare the rest
        try:
            arrays, metrics = self.inner.aggregate_train(server_round, accepted)
            arrays = self._as_sent(arrays)
        except Exception as error:
            raise RunFailed(
                f"round {server_round}: {type(self.inner).__name__} failed on "
                f"{len(accepted)} sound replies: {type(error).__name__}: {error}"
            ) from error
        finally:
            gc.unfreeze()
        if arrays is not None and not all(
            all_finite(tensor) for tensor in to_tensors(arrays, shared=True).values()
        ):
            raise RunFailed(
                f"round {server_round}: the new weights hold NaN or infinity although every "
                "update was finite; lower training.learning_rate"
            )
        return arrays, metrics

    def client(self, reply: Message) -> int:
        """Return the number of the client that a reply came from; -1 if nobody knows."""
        return self.exchange.client_of.get(reply.metadata.src_node_id, -1)

    def _translate(self, update: Update) -> RecordDict:
        metrics = MetricRecord({NUM_EXAMPLES: update.num_examples})
        if update.train_loss is not None:
            metrics[TRAIN_LOSS] = update.train_loss
        if getattr(self.inner, "wants_gradients", False):
            parts = {ARRAYS: to_record(update.tensors, final=True)}
            if update.buffers:
                parts[BUFFERS] = to_record(update.buffers, final=True)
            return RecordDict({**parts, METRICS: metrics})
        weights = update.tensors
        if self.exchange.kind != "weights":
            before = to_tensors(self._sent, shared=True)
            scale = -self.exchange.learning_rate if self.exchange.kind == "gradient" else 1.0
            weights = {name: before[name] + scale * t for name, t in weights.items()}
            weights |= update.buffers
        return RecordDict({ARRAYS: to_record(weights, final=True), METRICS: metrics})

    def _as_sent(self, arrays: ArrayRecord | None) -> ArrayRecord | None:
        """Give the new weights the dtypes of the old: stock averages may come out wider."""
        if arrays is None:
            return None
        templates = {**self.exchange.parameters, **self.exchange.buffers}
        new = to_tensors(arrays)
        return to_record(
            {name: new[name].to(like.dtype) for name, like in templates.items()}, final=True
        )

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Check and order the replies, then let `inner` aggregate them."""
        accepted: list[Message] = []
        for reply in sorted(replies, key=self.client):
            try:
                if reply.has_error():
                    raise BadReply(reply.error.reason or f"error code {reply.error.code}")
                values = read_metrics(reply.content)
            except BadReply as bad:
                self.on_event("evaluation-rejected", str(bad), self.client(reply))
                continue
            values[NUM_EXAMPLES] = int(values[NUM_EXAMPLES])
            reply.content = RecordDict({METRICS: MetricRecord(dict(values))})
            accepted.append(reply)
        return self.inner.aggregate_evaluate(server_round, accepted) if accepted else None
