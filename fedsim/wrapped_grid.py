"""A Grid around a Grid."""

from collections.abc import Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid


class WrappedGrid(Grid):
    """Hand everything on to `inner`; subclasses change one thing.

    Args:
        inner: The grid that does the work.
    """

    def __init__(self, inner: Grid) -> None:
        self.inner = inner

    def set_run(self, run: object) -> None:
        """Leave it to `inner`."""
        self.inner.set_run(run)  # type: ignore[arg-type]  # Flower's Run is private

    @property
    def run(self) -> object:  # type: ignore[override]  # Flower's Run is private
        """Leave it to `inner`."""
        return self.inner.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Leave it to `inner`."""
        return self.inner.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Leave it to `inner`."""
        return self.inner.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Leave it to `inner`."""
        return self.inner.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Leave it to `inner`."""
        return self.inner.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Leave it to `inner`."""
        return self.inner.send_and_receive(messages, timeout=timeout)
