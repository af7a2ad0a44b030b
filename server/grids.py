"""Grids around a Grid."""

import uuid
from collections.abc import Callable, Iterable, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from fedsim.wire import REPEATED, Ticket, ticket_of
from fedsim.wrapped_grid import WrappedGrid


class Cohort(WrappedGrid):
    """Show a strategy only the nodes that were drawn for this round.

    Strategies sample with the global generator over node ids that may differ between runs; shown
    exactly the drawn nodes, they take all of them, and the draw is ours and seeded.

    Args:
        inner: The grid that does the work.
        nodes: Ids of the nodes drawn.
    """

    def __init__(self, inner: Grid, nodes: Sequence[int]) -> None:
        super().__init__(inner)
        self.nodes = list(nodes)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes drawn."""
        return self.nodes


OnStray = Callable[[str, str, int], None]
"""(kind, message, node) -> nothing; where replies that nobody waits for are recorded."""


class Matched(WrappedGrid):
    """Hand on one reply to each request, and to no other request than that.

    Every request gets a ticket, which comes back with its reply. A reply to an earlier request, a
    second one to the same, and one from another node than was asked are recorded and left out: a
    strategy would count them. An error that the network itself reports of a node, which comes from
    no node, becomes that node's.

    Args:
        inner: The grid that does the work.
        on_stray: Told of every reply that is left out.
    """

    def __init__(self, inner: Grid, on_stray: OnStray) -> None:
        super().__init__(inner)
        self.on_stray = on_stray
        self._name = uuid.uuid4().hex
        self._asked = 0

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Number the requests, and return the first reply to each."""
        asked: dict[str, Message] = {}
        for message in messages:
            self._asked += 1
            message.metadata.group_id = str(Ticket(sender=self._name, number=self._asked))
            asked[message.metadata.group_id] = message
        replies: dict[str, Message] = {}
        for reply in self.inner.send_and_receive(asked.values(), timeout=timeout):
            group = reply.metadata.group_id
            if (stray := self._stray(reply, asked.get(group), group in replies)) is not None:
                self.on_stray(*stray, reply.metadata.src_node_id)
                continue
            # an error of the network's own becomes that of the node which it is about
            request = asked[group]
            of_node = reply.metadata.src_node_id == request.metadata.dst_node_id
            replies[group] = reply if of_node else Message(reply.error, reply_to=request)
        return list(replies.values())

    def _stray(
        self, reply: Message, request: Message | None, replied: bool
    ) -> tuple[str, str] | None:
        """Return why nobody waits for a reply, a kind and words; None if somebody does."""
        if request is None:
            ticket = ticket_of(reply.metadata.group_id)
            known = ticket is not None and ticket.sender == self._name
            if known and ticket is not None and ticket.number <= self._asked:
                return "late-reply", "a reply to an earlier request came, and is left out"
            return "stray-reply", "a reply came to what was never asked, and is left out"
        node = reply.metadata.src_node_id
        of_network = reply.has_error() and node == request.metadata.src_node_id
        if node != request.metadata.dst_node_id and not of_network:
            return "stray-reply", "a reply came to what another was asked, and is left out"
        if replied:
            return "repeated-reply", "a second reply to one request came, and is left out"
        if reply.has_error() and reply.error.code == REPEATED:
            return "repeated-request", reply.error.reason or "it was asked twice"
        return None
