"""A grid on which everything goes wrong that a seed draws."""

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from unittest import mock

from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from fedsim.engines.local import CLIENT_FAILED, NO_REPLY, failure
from fedsim.wrapped_grid import WrappedGrid
from tests.faults.damage import DAMAGES, damaged

LOST = ("request-lost", "reply-lost")
LATE = ("request-late", "reply-late")
TWICE = ("request-twice", "reply-twice")
ERRORS = ("killed-before", "raises-while-training", "killed-after", "error-reply")
ASTRAY = ("reply-of-another", "reply-to-nothing")
DAMAGED = tuple(f"{what}-{how}" for what in ("request", "reply") for how in DAMAGES)
FAULTS = (*LOST, *LATE, *TWICE, *ERRORS, *ASTRAY, *DAMAGED)

SILENT = ("request-flipped", "request-metadata", "request-giant")
"""Not drawn: a request whose weights were changed to others, without a sign of it, is answered
soundly, as by any client that was sent these. Transport encryption is for that."""


class Killed(BaseException):
    """The run is killed at this point."""


@dataclass
class Injected:
    """A fault that took place.

    Attributes:
        call: When: the number of the call to the grid.
        node: Whose message.
        kind: One of FAULTS.
    """

    call: int
    node: int
    kind: str


@dataclass
class Call:
    """What went over the grid in one call.

    Attributes:
        number: Of the call, from 1.
        kind: The message type.
        sent: What was to be sent, by node.
        groups: The ticket of each request, by node.
        taken: What clients were asked and answered without error, in order: node, message type,
            ticket and content. It may have been meant for an earlier call.
        arrived: Replies handed to the server, in order.
    """

    number: int
    kind: str
    sent: dict[int, RecordDict]
    groups: dict[int, str]
    taken: list[tuple[int, str, str, RecordDict]] = field(default_factory=list)
    arrived: list[Message] = field(default_factory=list)


class Faulty(WrappedGrid):
    """Draw a fault, or none, for every message.

    Args:
        inner: The grid that does the work.
        seed: Names the schedule.
        rate: Probability of a fault.
        kill_at: The call at which the run is killed; None if it is not.
        look: Called before every call, with its number.
    """

    def __init__(
        self,
        inner: Grid,
        *,
        seed: str,
        rate: float,
        kill_at: int | None,
        look: Callable[[], None],
    ) -> None:
        super().__init__(inner)
        self.seed, self.rate, self.kill_at, self.look = seed, rate, kill_at, look
        self.calls: list[Call] = []
        self.injected: list[Injected] = []
        self.gone: dict[int, tuple[int, bool]] = {}
        self.late_requests: list[Message] = []
        self.late_replies: list[Message] = []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Bring messages to clients, and replies back, as far as they get."""
        self.look()
        asked = list(messages)
        call = Call(
            number=len(self.calls) + 1,
            kind=asked[0].metadata.message_type if asked else "",
            sent={one.metadata.dst_node_id: one.content for one in asked},
            groups={one.metadata.dst_node_id: one.metadata.group_id for one in asked},
        )
        self.calls.append(call)
        call.arrived += self.late_replies
        waiting, self.late_replies = self.late_requests, []
        self.late_requests = []
        for message in waiting:
            call.arrived += self._answers(call, message)
        for place, message in enumerate(asked):
            if self.kill_at == call.number and place == len(asked) // 2:
                raise Killed
            call.arrived += self._exchanged(call, message)
        return list(call.arrived)

    def _exchanged(self, call: Call, message: Message) -> list[Message]:
        node = message.metadata.dst_node_id
        rng = random.Random(f"{self.seed}/{call.number}/{node}")
        if (absence := self._absence(call, message, rng)) is not None:
            return absence
        kind = rng.choice(FAULTS) if rng.random() < self.rate else None
        if kind in SILENT or (kind in ERRORS and call.kind == "query"):
            kind = None  # an error while clients are being found ends the run: tested elsewhere
        if kind is None:
            return self._answers(call, message)
        replies, happened = self._faulty(call, message, kind, rng)
        if happened:
            self.injected.append(Injected(call.number, node, kind))
        return replies

    def _absence(self, call: Call, message: Message, rng: random.Random) -> list[Message] | None:
        """Return what comes from a node that is gone; None if it is there."""
        node = message.metadata.dst_node_id
        if node not in self.gone and rng.random() < self.rate / 10 and call.kind != "query":
            self.gone[node] = (call.number + rng.randrange(2, 12), rng.random() < 0.5)
        until, told = self.gone.get(node, (0, False))
        if call.number >= until:
            self.gone.pop(node, None)
            return None
        self.injected.append(Injected(call.number, node, "gone-told" if told else "gone"))
        return [_of_network(message)] if told else []

    def _faulty(
        self, call: Call, message: Message, kind: str, rng: random.Random
    ) -> tuple[list[Message], bool]:
        """Return what arrives, and whether there was anything to which this could happen."""
        if kind == "request-lost":
            return [], True
        if kind == "request-late":
            self.late_requests.append(_copy(message))
            return [], True
        if kind == "killed-before":
            return [_of_network(message)], True
        if kind == "request-twice":
            return self._answers(call, message) + self._answers(call, message), True
        if kind == "raises-while-training":
            with _failing() as failed:
                return self._answers(call, message), failed.called
        if kind.startswith("request-"):
            content = damaged(message.content, kind.removeprefix("request-"), rng)
            broken = _copy(message)
            broken.content = content or message.content
            return self._answers(call, broken), content is not None
        replies = self._answers(call, message)
        if kind == "reply-lost":
            return [], True
        if kind == "reply-late":
            self.late_replies += replies
            return [], True
        if kind == "killed-after":
            return [_of_network(message)], True
        if kind == "error-reply":
            return [failure(message, CLIENT_FAILED, "ValueError: out of luck")], True
        if kind == "reply-twice":
            return replies * 2, True
        return replies, self._spoilt(replies[0], kind, rng)

    def _spoilt(self, reply: Message, kind: str, rng: random.Random) -> bool:
        """Change a reply; return whether there was anything to change."""
        if reply.has_error() or not reply.metadata.group_id:
            return False
        if kind == "reply-of-another":
            node = reply.metadata.src_node_id
            others = [other for other in self.inner.get_node_ids() if other != node]
            reply.metadata.__dict__["_src_node_id"] = rng.choice(others)
            return True
        if kind == "reply-to-nothing":
            first, rest = reply.metadata.group_id[0], reply.metadata.group_id[1:]
            reply.metadata.group_id = ("0" if first == "f" else "f") + rest
            return True
        content = damaged(reply.content, kind.removeprefix("reply-"), rng)
        if content is None:
            return False
        reply.content = content
        return True

    def _answers(self, call: Call, message: Message) -> list[Message]:
        """Have the client answer."""
        request = _copy(message)
        replies = list(self.inner.send_and_receive([request]))
        if not replies[0].has_error():
            about = message.metadata
            taken = (about.dst_node_id, about.message_type, about.group_id, message.content)
            call.taken.append(taken)
        return replies


def _copy(message: Message) -> Message:
    """Return the message with records of its own: clients may take parts of what they are given."""
    return Message(
        RecordDict(dict(message.content)),
        message.metadata.dst_node_id,
        message.metadata.message_type,
        group_id=message.metadata.group_id,
    )


def _of_network(message: Message) -> Message:
    """Return what Flower's SuperLink says in place of a node that is not there."""
    reply = Message(Error(NO_REPLY, "the node is not available"), reply_to=message)
    reply.metadata.__dict__["_src_node_id"] = message.metadata.src_node_id
    return reply


@contextlib.contextmanager
def _failing() -> Iterator[mock.Mock]:
    """Make local training fail."""
    fails = mock.Mock(side_effect=RuntimeError("out of memory"))
    with (
        mock.patch("clients.app.local_update", fails),
        mock.patch("clients.peer.local_update", fails),
    ):
        yield fails
