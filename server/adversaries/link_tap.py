"""The eavesdropper on a link: a Grid around a Grid."""

from collections.abc import Iterable

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedsim.wire import ARRAYS, CONFIG, ROUND
from fedsim.wrapped_grid import WrappedGrid
from server.adversaries.ear import Ear


class LinkTap(WrappedGrid):
    """Hear what crosses the links between the server and chosen clients, in both directions.

    Args:
        inner: The grid whose links are tapped.
        ear: What is kept, and of whom.
    """

    def __init__(self, inner: Grid, ear: Ear) -> None:
        super().__init__(inner)
        self.ear = ear

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Pass messages and replies on unchanged, and listen to those of training."""
        messages = list(messages)
        heard = {
            message.metadata.dst_node_id: message.content
            for message in messages
            if message.metadata.message_type == MessageType.TRAIN
        }
        replies = list(self.inner.send_and_receive(messages, timeout=timeout))
        for reply in replies:
            if (content := heard.get(reply.metadata.src_node_id)) is not None:
                server_round = content.config_records[CONFIG][ROUND]
                if isinstance(server_round, int):
                    self.ear.hear(server_round, content.array_records[ARRAYS], reply)
        return replies
