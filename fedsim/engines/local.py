"""What our own engines share: fixed nodes, and a Grid that delivers without polling."""

import itertools
import logging
from abc import abstractmethod
from collections.abc import Iterable, Sequence

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedsim.config import Experiment
from fedsim.engines.flower_private import SERVER_NODE, Run, assume_server_identity, empty_run
from fedsim.records import RunDirectory
from fedsim.wire import PARTITION, run_config

RUN_ID = 1
FIRST_NODE = 1000
"""Node ids are fixed, so that nothing about a run depends on who joined first."""

CLIENT_FAILED = 2
"""Flower's error code for an exception inside a ClientApp."""
NO_REPLY = 3
"""Error code for a worker that died or did not answer in time."""


def client_context(experiment: Experiment, run: RunDirectory, partition: int) -> Context:
    """Return the context of the node that plays client `partition`."""
    return Context(
        run_id=RUN_ID,
        node_id=FIRST_NODE + partition,
        node_config={PARTITION: partition, "num-partitions": experiment.partition.clients},
        state=RecordDict(),
        run_config=run_config(experiment, run),
    )


def server_context(experiment: Experiment, run: RunDirectory) -> Context:
    """Return the context of the server."""
    return Context(
        run_id=RUN_ID,
        node_id=SERVER_NODE,
        node_config={},
        state=RecordDict(),
        run_config=run_config(experiment, run),
    )


def answer(app: ClientApp, message: Message, context: Context) -> Message:
    """Let a client answer; an exception inside it becomes an error reply, as in a deployment."""
    try:
        return app(message, context)
    except Exception as error:
        return failure(message, CLIENT_FAILED, f"{type(error).__name__}: {error}")


def failure(message: Message, code: int, reason: str) -> Message:
    """Return an error reply to `message`."""
    return Message(Error(code, reason), reply_to=message)


class LocalGrid(Grid):
    """A Grid over nodes of this machine; subclasses say how messages are delivered.

    Args:
        num_nodes: Nodes, one per client.
    """

    def __init__(self, num_nodes: int) -> None:
        logging.getLogger("flwr").setLevel(logging.ERROR)  # what it says of rounds is recorded
        assume_server_identity(RUN_ID)
        self.num_nodes = num_nodes
        self._run = empty_run(RUN_ID)
        self._replies: dict[str, Message] = {}
        self._message_ids = itertools.count()

    @abstractmethod
    def deliver(self, messages: Sequence[Message], timeout: float | None) -> list[Message]:
        """Bring each message to its node and return the replies, in the order of the messages."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Bring messages to their nodes and return the replies."""
        return self.deliver(list(messages), timeout)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes, in order of client number."""
        return range(FIRST_NODE, FIRST_NODE + self.num_nodes)

    def set_run(self, run: Run) -> None:
        """Set the run's description."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run's description."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a new instruction message."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver at once and keep the replies until they are pulled."""
        sent = list(messages)
        ids = [f"message-{next(self._message_ids)}" for _ in sent]
        self._replies.update(zip(ids, self.deliver(sent, None), strict=True))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Hand over the replies kept for these ids."""
        return [self._replies.pop(one) for one in message_ids if one in self._replies]
