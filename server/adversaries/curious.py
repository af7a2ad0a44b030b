"""The honest-but-curious server: a Strategy around a Strategy."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedsim.wire import arrays_in
from server.wrapped import WrappedStrategy


class ListensToRounds(Protocol):
    """What keeps what is heard of a round: each update, or only their mean."""

    def hear_round(self, server_round: int, heard: Sequence[tuple[ArrayRecord, Message]]) -> None:
        """Take what each client was sent, with its reply."""


class HonestButCurious(WrappedStrategy):
    """Run `inner` unchanged and remember what each client was sent and what it answered.

    Args:
        inner: The strategy that does the work.
        ear: What is kept.
    """

    def __init__(self, inner: Strategy, ear: ListensToRounds) -> None:
        super().__init__(inner)
        self.ear = ear
        self._sent: dict[int, ArrayRecord] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember what is sent to whom; a strategy may send each client its own weights."""
        messages = list(self.inner.configure_train(server_round, arrays, config, grid))
        self._sent = {
            message.metadata.dst_node_id: arrays_in(message.content) for message in messages
        }
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Keep each update, then let `inner` aggregate the same replies."""
        replies = list(replies)  # Flower hands over an iterable; both readers need it
        heard = [
            (sent, reply)
            for reply in replies
            if (sent := self._sent.get(reply.metadata.src_node_id)) is not None
        ]
        self.ear.hear_round(server_round, heard)
        return self.inner.aggregate_train(server_round, replies)
