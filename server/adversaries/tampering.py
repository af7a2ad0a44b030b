"""The malicious server: a Strategy around a Strategy that changes what clients are sent."""

from collections.abc import Callable, Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from attacks.observation import AttackFailed
from fedsim.tampering import Tamperer
from fedsim.wire import ARRAYS, to_record, to_tensors
from server.guard import Guarded
from server.wrapped import WrappedStrategy


class Tampering(WrappedStrategy):
    """Send clients what an active attack wants, and keep their replies out of the aggregation.

    Whoever was sent other weights trained on other weights: their updates would only do harm. They
    are heard, and then set aside; utility is that of what the others sent. Where only the mean of
    all updates is heard, all are set aside.

    Args:
        inner: The strategy that does the work, guarded.
        tamperer: The attack.
        on_event: Told when the attack has nothing to send.

    Attributes:
        tampered: Clients of this round that were sent something else, in order.
    """

    inner: Guarded

    def __init__(
        self, inner: Guarded, tamperer: Tamperer, on_event: Callable[[str, str, int], None]
    ) -> None:
        super().__init__(inner)
        self.tamperer = tamperer
        self.on_event = on_event
        self.tampered: list[int] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Change what the attack wants changed."""
        messages = list(self.inner.configure_train(server_round, arrays, config, grid))
        exchange = self.inner.exchange
        self.tampered = []
        for message in messages:
            client = exchange.client_of[message.metadata.dst_node_id]
            state = to_tensors(message.content.array_records[ARRAYS])
            weights = {name: state[name] for name in exchange.parameters}
            try:
                changed = self.tamperer(server_round, client, weights)
            except AttackFailed as failed:
                self.on_event("tamper-failed", f"'{self.tamperer.title}': {failed}", client)
                continue
            if changed is not None:  # messages may share their content: it is copied, not changed
                parts = {**message.content, ARRAYS: to_record({**state, **changed})}
                message.content = RecordDict(parts)
                self.tampered.append(client)
        self.tampered.sort()
        whole = self.tamperer.hears_sum and self.tampered
        self.inner.set_aside = frozenset(exchange.client_of.values() if whole else self.tampered)
        return messages
