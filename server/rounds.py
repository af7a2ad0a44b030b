"""The rounds of a federation with a server: draw clients, train, aggregate, evaluate, record."""

import functools
import time
from collections.abc import Iterable, Mapping, Sequence

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import nn

from attacks.observation import Observation
from attacks.threats import Position, ThreatModel
from fedsim.config import Experiment
from fedsim.defenses import build_chain, encrypts_links, private_clients
from fedsim.errors import RunFailed
from fedsim.files import Record, finite
from fedsim.knowledge import read_knowledge
from fedsim.ledger import Ledger, ledger_of
from fedsim.named_attacks import active_attack
from fedsim.records import RunDirectory
from fedsim.secure_sum.settings import settings_of
from fedsim.seeds import stream
from fedsim.setup import draw_clients, shares_of, sizes_of, task_of
from fedsim.tampering import Tamperer
from fedsim.tasks import Task, evaluate, uninformed_loss
from fedsim.threat import threat_of
from fedsim.wire import (
    ARRAYS,
    CONFIG,
    PARTITION,
    RUN_DIRECTORY,
    TRAIN_LOSS,
    load_state,
    num_bytes,
    shared_buffers,
    shared_parameters,
    shared_state,
    to_record,
    to_tensors,
)
from server import checkpoint
from server.adversaries.curious import HonestButCurious
from server.adversaries.ear import Ear
from server.adversaries.link_tap import LinkTap
from server.adversaries.sum_ear import SumEar
from server.adversaries.tampering import Tampering
from server.defending import defended
from server.grids import Cohort, Matched
from server.guard import Exchange, Guarded
from server.secure_aggregation import SecureRound, SecureSum
from server.strategies import build_strategy

DIVERGED = 10.0
"""Times the loss before training, from which training is said to diverge."""
LEARNED = 0.95
"""Times the loss of a model that knows how frequent classes are and no more, below which it has
learned something."""


def train(experiment: Experiment, run: RunDirectory, grid: Grid, *, tap_links: bool = True) -> None:
    """Run every round that the run directory does not hold yet.

    Args:
        experiment: What to run.
        run: Where records go.
        grid: Where clients are reached.
        tap_links: Whether an adversary on links listens at `grid`; false where somebody taps the
            real ones.

    Raises:
        RunFailed: Clients do not answer, or aggregation failed; what was recorded is kept.
        ConfigError: The experiment asks for something that cannot be.
    """
    task = task_of(experiment)
    model = task.build_model(stream(experiment.seed, "model"))
    chain = build_chain(experiment)
    strategy = defended(build_strategy(experiment), chain, experiment.seed)
    resumed = checkpoint.restore(run, strategy)
    last, arrays = resumed or (0, to_record(shared_state(model)))
    nodes = find_clients(grid, experiment)
    exchange = Exchange(
        kind=experiment.training.update_kind,
        parameters=shared_parameters(model),
        buffers=shared_buffers(model),
        learning_rate=experiment.training.learning_rate,
        client_of={node: client for client, node in nodes.items()},
        reports_loss=not private_clients(chain),
    )
    ledger = ledger_of(experiment, chain, sizes_of(shares_of(experiment, task)))
    loop = _Rounds(experiment, run, task, model, strategy, exchange, nodes, ledger)
    loop.place_adversary(grid, threat_of(experiment), tap_links=tap_links)
    if resumed is None:
        run.append_round(loop.evaluated({"round": 0}, arrays))
        checkpoint.save(run, 0, arrays, strategy)
    uninformed = uninformed_loss(task.data.test_labels)
    for server_round in range(last + 1, experiment.rounds + 1):
        patience = experiment.server.patience
        if patience is not None and settled(run.rounds(), patience, uninformed):
            break
        arrays = loop.one(server_round, arrays)


def settled(rounds: Sequence[Record], patience: int, uninformed: float) -> bool:
    """Whether the last `patience` evaluations are all no better than the best before them.

    Evaluations count from the first whose loss says that something was learned: before, a model
    that names one class after the other has accuracies that rise and fall by chance.

    Args:
        rounds: Records, in order; those without an evaluation do not count.
        patience: Evaluations, at least 1.
        uninformed: See `fedsim.tasks.uninformed_loss`.
    """
    evaluated = [one for one in rounds if one.get("accuracy") is not None]
    learned = (
        place
        for place, one in enumerate(evaluated)
        if one["loss"] is not None and one["loss"] <= LEARNED * uninformed
    )
    accuracies = [one["accuracy"] for one in evaluated[next(learned, len(evaluated)) :]]
    if len(accuracies) <= patience:
        return False
    return bool(max(accuracies[-patience:]) <= max(accuracies[:-patience]))


def find_clients(grid: Grid, experiment: Experiment) -> dict[int, int]:
    """Ask every node which client it plays; return node ids by client number, in order.

    A grid that knows is not asked: it has an attribute `node_of_client`. There, a client that fails
    misses its rounds.

    Raises:
        RunFailed: Not every client is there before the reply timeout.
    """
    known_nodes: dict[int, int] | None = getattr(grid, "node_of_client", None)
    if known_nodes is not None:
        return known_nodes
    wanted = experiment.partition.clients
    deadline = time.monotonic() + experiment.server.reply_timeout_s
    nodes: dict[int, int] = {}
    while True:
        known = set(nodes.values())
        unknown = [node for node in grid.get_node_ids() if node not in known]
        questions = [Message(RecordDict(), node, MessageType.QUERY) for node in unknown]
        left = max(1.0, deadline - time.monotonic())
        for reply in grid.send_and_receive(questions, timeout=left) if questions else []:
            if reply.has_error():
                raise RunFailed(f"a client failed at the start: {reply.error.reason}")
            client = reply.content.config_records.get(CONFIG, ConfigRecord()).get(PARTITION)
            # who says nothing of use is asked again; a second one that plays a client does not
            if type(client) is int and 0 <= client < wanted and client not in nodes:
                nodes[client] = reply.metadata.src_node_id
        if len(nodes) == wanted:
            return dict(sorted(nodes.items()))
        if time.monotonic() > deadline:
            raise RunFailed(
                f"{len(nodes)} of {wanted} clients answered within "
                f"{experiment.server.reply_timeout_s:g} s (server.reply_timeout_s)"
            )
        time.sleep(0.1)


class _Rounds:
    """The fixed things of a run, and one round at a time."""

    def __init__(
        self,
        experiment: Experiment,
        run: RunDirectory,
        task: Task,
        model: nn.Module,
        strategy: Strategy,
        exchange: Exchange,
        nodes: Mapping[int, int],
        ledger: Ledger | None,
    ) -> None:
        self.experiment = experiment
        self.run = run
        self.task = task
        self.model = model
        self.inner = strategy
        self.guard = Guarded(strategy, exchange, self._note)
        self.strategy: Strategy = self.guard
        self.tampering: Tampering | None = None
        self.secure = self._secure_sum(exchange)
        self.share_ear: Ear | None = None
        self.sum_ear: SumEar | None = None
        self.grid: Grid
        self.exchange = exchange
        self.nodes = nodes
        self.ledger = ledger
        self.round = 0
        self.first_loss: float | None = None

    def place_adversary(self, grid: Grid, threat: ThreatModel, *, tap_links: bool) -> None:
        """Put the ear where the threat model says, if it is to be here."""
        at_link = threat.position is Position.LINK
        ear = Ear(
            threat=threat,
            scope=self.experiment.adversary,
            exchange=self.exchange,
            keep=self.run.write_observation,
            encrypted=at_link and encrypts_links(build_chain(self.experiment)),
        )
        self.grid = grid = Matched(grid, self._note_stray)
        self.tampering = self._tampering(threat)
        inner = self.tampering or self.guard
        if at_link:
            self.grid = LinkTap(grid, ear) if tap_links else grid
            return
        sum_ear = SumEar(
            threat=threat,
            scope=self.experiment.adversary,
            exchange=self.exchange,
            target=lambda number: target(self.experiment, number) if threat.active else None,
            keep=self.run.write_observation,
        )
        if self.secure is not None:
            self.share_ear = None if threat.hears_sum else ear
            self.sum_ear = sum_ear
        self.strategy = HonestButCurious(inner, sum_ear if threat.hears_sum else ear)

    def _secure_sum(self, exchange: Exchange) -> SecureSum | None:
        """Return what leads clients through secure aggregation, if they sum in secret."""
        settings = settings_of(build_chain(self.experiment))
        if settings is None:
            return None
        drawn = self.experiment.server.clients_per_round or self.experiment.partition.clients
        return SecureSum(settings=settings, exchange=exchange, num_drawn=drawn, on_event=self._note)

    def _tampering(self, threat: ThreatModel) -> Tampering | None:
        """Return what changes the weights sent, if an attack of the experiment does."""
        active = active_attack(self.experiment)
        if active is None or not threat.active:
            return None
        config, attack = active
        scope = self.experiment.adversary

        def aims_at(server_round: int, client: int) -> int | None:
            if threat.hears_sum and scope.listens_in(server_round):
                return target(self.experiment, server_round)
            return client if scope.hears(server_round, client) else None

        def earlier(sender: str, server_round: int) -> Sequence[Observation]:
            return self.run.heard_of(sender, last=server_round - 1)

        tamperer = Tamperer(
            title=config.title,
            attack=attack,
            known=read_knowledge(self.run),
            seed=self.experiment.seed,
            target=aims_at,
            earlier=earlier,
            hears_sum=threat.hears_sum,
        )
        return Tampering(self.guard, tamperer, self._note)

    def one(self, server_round: int, arrays: ArrayRecord) -> ArrayRecord:
        """Run one round; return the new weights."""
        start = time.perf_counter()
        self.round = server_round
        drawn = draw_clients(self.experiment, server_round)
        cohort = Cohort(self.grid, [self.nodes[client] for client in drawn])
        config = self._message_config()
        messages = list(self.strategy.configure_train(server_round, arrays, config, cohort))
        traffic: Record
        reason: str | None = None
        if self.secure is not None:
            done = self.secure.one(
                server_round, messages, config, functools.partial(self._exchange, cohort)
            )
            new, metrics = self._take_mean(server_round, messages, done)
            traffic, reason = _secure_traffic(done), done.reason
            tally = self.guard.tally
        else:
            replies = self._exchange(cohort, messages)
            new, metrics = self.strategy.aggregate_train(server_round, replies)
            tally = self.guard.tally
            traffic = {
                "replies": len(replies),
                "rejected": tally.rejected,
                "bytes_up": tally.bytes_up,
                "bytes_down": sum(num_bytes(message.content) for message in messages),
            }
        if new is None:
            replied = reason or f"{len(tally.clients)} usable replies from {len(messages)} clients"
            if self.tampering is not None and self.tampering.tampered:
                replied += f", {len(self.tampering.tampered)} of which were sent changed weights"
            self.run.append_event(
                "round-without-update",
                f"round {server_round}: no update came of {replied}; the weights stay as they were",
                round=server_round,
            )
        arrays = new or arrays
        record: Record = {
            "round": server_round,
            "train_loss": _metric(metrics, TRAIN_LOSS),
            "clients": tally.clients,
            **traffic,
        }
        if self.tampering is not None:
            record["tampered"] = self.tampering.tampered
        if self.ledger is not None:
            record |= self.ledger.spent(server_round).record()
        if self.experiment.clients.checks:
            record["alarms"] = self._alarms(server_round, drawn)
        if self.experiment.server.evaluate_clients:
            record |= self._ask_clients(server_round, arrays, cohort)
        if (
            server_round % self.experiment.server.evaluate_every == 0
            or server_round == self.experiment.rounds
        ):
            record = self.evaluated(record, arrays)
            self._warn_of_divergence(record)
        # in this order: killed in between, a resumed run repeats the round and its record counts
        self.run.append_round(record | {"seconds": round(time.perf_counter() - start, 6)})
        checkpoint.save(self.run, server_round, arrays, self.inner)
        return arrays

    def _take_mean(
        self, server_round: int, messages: list[Message], done: SecureRound
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the adversary hear a round of secure aggregation, and the strategy its mean."""
        sent = {
            self.exchange.client_of[one.metadata.dst_node_id]: one.content.array_records[ARRAYS]
            for one in messages
        }
        if self.share_ear is not None:
            heard = [(sent[self.guard.client(reply)], reply) for reply in done.masked]
            self.share_ear.hear_round(server_round, heard)
        if done.mean is None:
            return None, None
        if self.sum_ear is not None:
            self.sum_ear.hear_mean(server_round, sent, done.mean, done.survivors)
        return self.guard.aggregate_mean(
            server_round, done.mean, done.survivors, carrier=done.masked[0]
        )

    def _alarms(self, server_round: int, drawn: Iterable[int]) -> list[Record]:
        """Return what clients noticed, and note each as an event; only people are told of it."""
        found = [
            {"client": client, **alarm}
            for client in drawn
            for alarm in self.run.alarms(server_round, f"client-{client}")
        ]
        for alarm in found:
            self._note("alarm", f"'{alarm['check']}': {alarm['message']}", alarm["client"])
        return found

    def _message_config(self) -> ConfigRecord:
        return ConfigRecord({RUN_DIRECTORY: str(self.run.root.resolve())})

    def _exchange(self, cohort: Grid, messages: list[Message]) -> list[Message]:
        timeout = self.experiment.server.reply_timeout_s
        replies = list(cohort.send_and_receive(messages, timeout=timeout))
        asked = {message.metadata.dst_node_id for message in messages}
        silent = asked - {reply.metadata.src_node_id for reply in replies}
        for client in sorted(self.exchange.client_of[node] for node in silent):
            self._note("no-reply", f"no reply within {timeout:g} s", client)
        return replies

    def _ask_clients(self, server_round: int, arrays: ArrayRecord, cohort: Grid) -> Record:
        config = self._message_config()
        messages = list(self.strategy.configure_evaluate(server_round, arrays, config, cohort))
        replies = self._exchange(cohort, messages)
        metrics = self.strategy.aggregate_evaluate(server_round, replies)
        return {
            "client_accuracy": _metric(metrics, "accuracy"),
            "client_loss": _metric(metrics, "loss"),
        }

    def evaluated(self, record: Record, arrays: ArrayRecord) -> Record:
        """Return `record` with the accuracy and loss of these weights on the test split."""
        load_state(self.model, to_tensors(arrays))
        data = self.task.data
        accuracy, loss = evaluate(self.model, data.test_inputs, data.test_labels)
        return record | {"accuracy": accuracy, "loss": finite(loss)}

    def _warn_of_divergence(self, record: Record) -> None:
        """Note once, as an event, that training makes the model worse and worse."""
        if self.first_loss is None:
            self.first_loss = self.run.rounds()[0]["loss"]
        loss, start = record["loss"], self.first_loss
        if loss is not None and (start is None or loss <= DIVERGED * start):
            return
        if not any(event["kind"] == "training-diverges" for event in self.run.events()):
            now, then = (
                "no finite number" if one is None else f"{one:.3g}" for one in (loss, start)
            )
            self.run.append_event(
                "training-diverges",
                f"round {self.round}: the loss on the test split is {now}, it began at {then}; "
                "lower training.learning_rate",
                round=self.round,
            )

    def _note_stray(self, kind: str, message: str, node: int) -> None:
        self._note(kind, message, self.exchange.client_of.get(node, -1))

    def _note(self, kind: str, message: str, client: int) -> None:
        self.run.append_event(
            kind,
            f"round {self.round}, client {client}: {message}",
            round=self.round,
            client=client,
        )


def target(experiment: Experiment, server_round: int) -> int | None:
    """Return the client that is attacked in a round where only means are heard.

    The victims take turns, one per round in which the adversary listens; one that was not drawn
    leaves its turn to the next. None if no victim was drawn.
    """
    scope = experiment.adversary
    every = range(experiment.partition.clients)
    victims = sorted(every if scope.victims == "all" else set(scope.victims))
    if not victims:
        return None
    rounds = range(1, server_round) if scope.rounds == "all" else set(scope.rounds)
    turn = sum(number < server_round for number in rounds)
    drawn = draw_clients(experiment, server_round)
    in_turn = [victims[(turn + place) % len(victims)] for place in range(len(victims))]
    return next((victim for victim in in_turn if victim in drawn), None)


def _secure_traffic(done: SecureRound) -> Record:
    return {
        "replies": done.replies,
        "rejected": done.rejected,
        "bytes_up": done.bytes_up,
        "bytes_down": done.bytes_down,
        "secure_aggregation": done.answered,
    }


def _metric(metrics: Mapping[str, object] | None, name: str) -> float | None:
    value = (metrics or {}).get(name)
    return finite(float(value)) if isinstance(value, int | float) else None
