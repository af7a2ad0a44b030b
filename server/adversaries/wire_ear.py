"""The eavesdropper on real links: hears messages one by one, as they were rebuilt from traffic."""

from collections import OrderedDict
from collections.abc import Callable

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType

from fedsim.config import Experiment
from fedsim.defenses import build_chain, encrypts_links, private_clients
from fedsim.files import read_json
from fedsim.knowledge import read_knowledge
from fedsim.records import RunDirectory
from fedsim.threat import threat_of
from fedsim.wire import ARRAYS, CONFIG, PARTITION, ROUND, shared_buffers, shared_parameters
from server.adversaries.ear import Ear
from server.guard import Exchange

MOST_UNANSWERED = 100_000
"""Messages to nodes that wait for an answer."""
MOST_OTHERS = 1000
"""Runs that are told apart from the one that is listened to."""


class WireEar:
    """Does for a real link what `LinkTap` does for a simulated one.

    It knows no more than it hears: which node plays which client it learns when the server asks
    them. What a model looks like the threat model grants.

    Many runs may cross a link. It listens to one that begins while it does, and goes over to a
    later one, for a run that is resumed is another to Flower, unless the records say that theirs
    is done.

    Args:
        experiment: What is listened to.
        run: Where observations go.
        on_round: Told the number of each round once everything of it was heard.
    """

    def __init__(
        self, experiment: Experiment, run: RunDirectory, on_round: Callable[[int], None]
    ) -> None:
        chain = build_chain(experiment)
        model = read_knowledge(run).model
        if model is None:
            raise ValueError("who taps a link must know the architecture")
        self.records = run
        self.on_round = on_round
        self.clients = experiment.partition.clients
        self.drawn = experiment.server.clients_per_round or self.clients
        self.client_of: dict[int, int] = {}
        self.run_id: int | None = None
        self._others: set[int] = set()
        self.round = 0
        self.heard = 0
        self._answers = 0
        self.ear = Ear(
            threat=threat_of(experiment),
            scope=experiment.adversary,
            exchange=Exchange(
                kind=experiment.training.update_kind,
                parameters=shared_parameters(model),
                buffers=shared_buffers(model),
                learning_rate=experiment.training.learning_rate,
                client_of=self.client_of,
                reports_loss=not private_clients(chain),
            ),
            keep=run.write_observation,
            encrypted=encrypts_links(chain),
        )
        self._asked: OrderedDict[str, tuple[int, int, ArrayRecord | None]] = OrderedDict()

    def asked(self, identity: str, message: Message) -> None:
        """Hear what the server says to a node.

        Args:
            identity: Of the message, as an answer to it names it.
            message: Whole; it is not changed.
        """
        about = message.metadata
        if not message.has_content() or not self._of_our_run(message):
            return
        if about.message_type == MessageType.QUERY:
            self._remember(identity, about.dst_node_id, 0, None)
        elif about.message_type == MessageType.TRAIN:
            server_round = _round_of(message)
            if server_round is None:
                return
            # a server goes on when it has what it waits for: nothing of earlier rounds will count
            if server_round > self.round:
                self._over(self.round)
                self.round, self._answers = server_round, 0
                for old in [one for one, asked in self._asked.items() if asked[2] is not None]:
                    del self._asked[old]
            arrays = message.content.array_records[ARRAYS]
            self._remember(identity, about.dst_node_id, server_round, arrays)

    def _of_our_run(self, message: Message) -> bool:
        run_id = message.metadata.run_id
        if run_id == self.run_id or run_id in self._others:
            return run_id == self.run_id
        asks = message.metadata.message_type == MessageType.QUERY
        begins = asks or _round_of(message) == 1
        if not begins or self._done():
            if not self._others:
                self.records.append_event("tap-other-run", "another run crosses; it is not heard")
            self._forget(run_id)
            return False
        if self.run_id is not None:
            self.records.append_event("tap-moved-on", "a run begins anew; it is heard from here")
            self._forget(self.run_id)
        self.run_id, self.round, self._answers = run_id, 0, 0
        self._asked.clear()
        self.client_of.clear()
        return True

    def _forget(self, run_id: int) -> None:
        if len(self._others) < MOST_OTHERS:
            self._others.add(run_id)

    def _done(self) -> bool:
        summary = self.records.summary
        return summary.is_file() and read_json(summary).get("status") == "done"

    def answered(self, identity: str, reply: Message) -> None:  # noqa: ARG002 - as `asked`
        """Hear what a node answers; only its first answer to a message counts."""
        about = reply.metadata
        asked = self._asked.get(about.reply_to_message_id)
        if asked is None or asked[0] != about.src_node_id:
            return
        node, server_round, arrays = self._asked.pop(about.reply_to_message_id)
        if arrays is not None:
            try:
                self.ear.hear(server_round, arrays, reply)
            finally:
                self._answers += 1
                if self._answers == self.drawn:
                    self._over(server_round)
        elif reply.has_content():
            client = reply.content.config_records[CONFIG][PARTITION]
            if isinstance(client, int) and 0 <= client < self.clients:
                self.client_of[node] = client

    def _over(self, server_round: int) -> None:
        if server_round > self.heard:
            self.heard = server_round
            self.on_round(server_round)

    def _remember(
        self, identity: str, node: int, server_round: int, arrays: ArrayRecord | None
    ) -> None:
        self._asked[identity] = (node, server_round, arrays)
        while len(self._asked) > MOST_UNANSWERED:
            self._asked.popitem(last=False)


def _round_of(message: Message) -> int | None:
    """Return the round of a message as our servers send them; None of any other."""
    server_round = message.content.config_records.get(CONFIG, ConfigRecord()).get(ROUND)
    return server_round if isinstance(server_round, int) else None
