"""A grid on which peers crash."""

from collections.abc import Iterable

from flwr.app import Message
from flwr.serverapp import Grid

from fedsim.engines.local import CLIENT_FAILED, FIRST_NODE, failure
from fedsim.peer_wire import HOP
from fedsim.wire import CONFIG, ROUND
from fedsim.wrapped_grid import WrappedGrid


class Crashing(WrappedGrid):
    """A grid on which peers crash before they do anything, at each (round, hop, peer).

    A hop of None stands for what is asked outside the hops of a protocol.
    """

    def __init__(self, inner: Grid, *places: tuple[int, int | None, int]) -> None:
        super().__init__(inner)
        self.places = places

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Answer for those that crash, and hand the other messages on."""
        replies: list[Message] = []
        for message in messages:
            config = dict(message.content.config_records.get(CONFIG) or {})
            peer = message.metadata.dst_node_id - FIRST_NODE
            if (config.get(ROUND), config.get(HOP), peer) in self.places:
                replies.append(failure(message, CLIENT_FAILED, "out of memory"))
            else:
                replies += self.inner.send_and_receive([message], timeout=timeout)
        return replies
