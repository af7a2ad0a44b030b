"""A federation without a server: the clock and the relay of peers that train among themselves.

Flower's participants cannot reach each other, so every message goes by way of the ServerApp. It
hands arrays on without decoding them, aggregates nothing, and holds no model: what it asks peers
for to tell how training goes (`peer_report`) crosses no link, and no adversary hears it.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedsim import peer_wire, sealed_wire
from fedsim.config import Experiment
from fedsim.defenses import build_chain, private_clients
from fedsim.errors import RunFailed
from fedsim.files import Record, finite
from fedsim.ledger import ledger_of
from fedsim.peer_wire import Addressed, deliver, integers, open_parcel, posts_of
from fedsim.peers import Federation, federation_of
from fedsim.protocols.peer_protocol import MessageKind
from fedsim.records import RunDirectory
from fedsim.setup import shares_of
from fedsim.tasks import uninformed_loss
from fedsim.threat import places_of, threat_of
from fedsim.views import forget_views
from fedsim.wire import (
    CONFIG,
    ROUND,
    RUN_DIRECTORY,
    BadReply,
    read_training_metrics,
)
from server import relay_checkpoint
from server.adversaries.peer_ear import ear_of
from server.grids import Matched
from server.peer_models import Judge, Models
from server.rounds import find_clients, settled

STEP = f"{MessageType.TRAIN}.{peer_wire.STEP}"
REPORT = f"{MessageType.QUERY}.{peer_wire.REPORT}"
ADOPT = f"{MessageType.QUERY}.{peer_wire.ADOPT}"
TELL_KEY = f"{MessageType.QUERY}.{sealed_wire.TELL_KEY}"
MEET = f"{MessageType.QUERY}.{sealed_wire.MEET}"

_MOST_REFUSED = 2
"""Times the number of peers: as many refusals of one peer in one hop are recorded."""
_LONGEST_REASON = 500
"""Characters of what is said of a peer, maybe in its own words, that are recorded."""


def train(experiment: Experiment, run: RunDirectory, grid: Grid) -> None:
    """Run every round that the run directory does not hold yet.

    Raises:
        RunFailed: Peers do not answer; what was recorded is kept.
        ConfigError: The experiment asks for something that cannot be.
    """
    federation = federation_of(experiment)
    relay = Relay(federation=federation, run=run, grid=grid, node_of=find_clients(grid, experiment))
    resumed = relay_checkpoint.restore(run)
    last = 0
    if resumed is None:
        models = relay.models(0)
        run.append_round({"round": 0} | relay.judge.judged(models))
        relay_checkpoint.save(run, 0, relay.judge.average(models), {}, set(), set())
    else:
        last, relay.late, relay.behind, relay.absent = resumed
    forget_views(run, after=last)  # a round that was begun is played again
    uninformed = uninformed_loss(federation.task.data.test_labels)
    for number in range(last + 1, experiment.rounds + 1):
        patience = experiment.server.patience
        if patience is not None and settled(run.rounds(), patience, uninformed):
            break
        relay.one(number)


@dataclass
class _Tally:
    """What happened in a round."""

    trained: dict[int, tuple[int, float | None]] = field(default_factory=dict)
    messages: int = 0
    num_bytes: int = 0
    failed: set[int] = field(default_factory=set)
    refused: int = 0


Inbox = dict[int, list[Addressed]]
"""What waits for a peer, by its number."""


@dataclass(kw_only=True)
class Relay:
    """Carries what peers say to each other, hop by hop, and keeps the time.

    Attributes:
        federation: What all peers share.
        run: Where records go.
        grid: Where peers are reached.
        node_of: Node by peer.
        late: What could not be delivered yet, where the protocol wants it delivered late.
        behind: Members of a collective that missed a round, and must begin anew.
        absent: Who did not answer in the last round.
    """

    federation: Federation
    run: RunDirectory
    grid: Grid
    node_of: Mapping[int, int]
    late: Inbox = field(default_factory=dict)
    behind: set[int] = field(default_factory=set)
    absent: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Build what is used in every round."""
        self.experiment = self.federation.experiment
        self.protocol = self.federation.protocol
        self.network = self.federation.network
        self.peer_of = {node: peer for peer, node in self.node_of.items()}
        self.grid = Matched(self.grid, self._note_stray)
        self.judge = Judge(self.federation)
        chain = build_chain(self.experiment)
        self.reports_loss = not private_clients(chain)
        sizes = [len(share) for share in shares_of(self.experiment, self.federation.task)]
        self.ledger = ledger_of(self.experiment, chain, sizes)
        self.round = 0
        self.deserted = False
        self.summing = False
        self.ear = ear_of(self.federation, self.run)
        active = threat_of(self.experiment).active
        self.rushing = places_of(self.experiment).peers if active else ()
        self.encrypted = self.experiment.protocol.encrypted
        self.strangers = set(self.node_of) if self.encrypted else set()

    # a round

    def one(self, number: int) -> None:
        """Run one round and record it."""
        start = time.perf_counter()
        self.round = number
        if self.strangers:
            self._introduce()
        tally = _Tally()
        members = self._gather(tally)
        self.summing = False
        members = self._play(members, tally)
        self.deserted = not members
        if self.protocol.collective:
            self._leave_behind(members)
        self.absent = tally.failed
        record = self._record(tally)
        if number % self.experiment.server.evaluate_every == 0 or number == self.experiment.rounds:
            models = self.models(number)
            record |= self.judge.judged(models)
            average = self.judge.average(models)
        else:
            average = None
        # in this order: killed in between, a resumed run repeats the round and its record counts
        self.run.append_round(record | {"seconds": round(time.perf_counter() - start, 6)})
        relay_checkpoint.save(self.run, number, average, self.late, self.behind, self.absent)

    def _leave_behind(self, members: Sequence[int]) -> None:
        """Note which members of a collective must begin anew after a round."""
        if members:
            self.behind = set(self.node_of) - set(members)
        elif self.summing:
            # silent ones may have gone on to the end: nobody can tell who stands where
            self.behind = set(self.node_of) - {min(set(self.node_of) - self.behind)}

    def _introduce(self) -> None:
        """Hand the public key of every peer to all of them; who misses it is asked again."""
        keys: dict[int, bytes] = {}
        content = RecordDict({CONFIG: ConfigRecord({**self._config()})})
        for peer, answer in self._ask(TELL_KEY, dict.fromkeys(self.node_of, content)).items():
            try:
                keys[peer] = sealed_wire.public_of(answer)
            except BadReply as error:
                self._note("update-rejected", str(error), peer)
        sealed_wire.put_roster(content, keys)
        met = self._ask(MEET, dict.fromkeys(keys, content))
        self.strangers = set(self.node_of) - set(met)

    def _gather(self, tally: _Tally) -> tuple[int, ...]:
        """Return who takes part; one that missed a round of a collective gets a model first."""
        everybody = tuple(self.node_of)
        if not self.behind:
            return everybody
        if self.deserted:
            self._go_on_from_those_behind()
        up_to_date = [peer for peer in everybody if peer not in self.behind]
        for peer in sorted(self.behind):
            near = [one for one in self._neighbours(peer) if one in up_to_date] or up_to_date
            # another one in each round, so that none can keep a peer out for good
            self._catch_up(peer, near[self.round % len(near)], tally)
        return tuple(peer for peer in everybody if peer not in self.behind)

    def _go_on_from_those_behind(self) -> None:
        """If nobody up to date answers, take one of those behind, who do, to be up to date."""
        before = RecordDict({CONFIG: ConfigRecord({**self._config(), ROUND: self.round - 1})})
        gone = [peer for peer in self.node_of if peer not in self.behind]
        if self._ask(REPORT, dict.fromkeys(gone, before)):
            return
        left = self._ask(REPORT, dict.fromkeys(self.behind, before))
        if left:
            self._note_restart(gone, len(left))
            self.behind = set(self.node_of) - {min(left)}

    def _catch_up(self, peer: int, helper: int, tally: _Tally) -> None:
        """Have one peer begin anew from the model of another."""
        # both stand where the round before left them
        before = ConfigRecord({**self._config(), ROUND: self.round - 1})
        asked = ConfigRecord({**before, sealed_wire.FOR: peer}) if self.encrypted else before
        answers = self._ask(REPORT, {helper: RecordDict({CONFIG: asked})})
        if helper not in answers:
            return
        said = self._model_for(peer, helper, answers[helper])
        if said is None:
            self._note("update-rejected", "it does not tell its model", helper)
            return
        content = RecordDict({CONFIG: before})
        deliver(content, [said])
        self._carry([said], 0, len(self.node_of), tally)
        if peer in self._ask(ADOPT, {peer: content}):
            self.behind.discard(peer)
            self._note("caught-up", f"began anew from the model of peer {helper}", peer)

    def _model_for(self, peer: int, helper: int, answer: RecordDict) -> Addressed | None:
        """Return the model that a peer tells another; None if it tells none."""
        if self.encrypted:
            said = posts_of(answer, sender=helper, server_round=self.round, hop=0, receivers=[peer])
            return said[0] if said else None
        model = answer.array_records.get(peer_wire.MODEL)
        if model is None:
            return None
        return Addressed(
            sender=helper,
            to=(peer,),
            round=self.round,
            hop=0,
            arrays=model,
            about=peer_wire.about(MessageKind.MODEL),
        )

    def _play(self, members: tuple[int, ...], tally: _Tally) -> tuple[int, ...]:
        """Carry out the hops of a round; return who was there until the end."""
        inbox: Inbox = {}
        hop = 0
        links = self.network.edges(self.round)
        while hop <= (num_hops := self.protocol.num_hops(len(members), links)):
            speaks = hop < num_hops
            self.summing = hop > 0
            contents = {peer: self._message(hop, speaks, members, inbox, peer) for peer in members}
            answers = self._ask_in_turn(contents, hop, members, tally)
            edges = set(self._edges(members))  # who could not speak to a peer was not refused
            refused = {
                sender
                for peer, content in answers.items()
                for sender in self._note_refused(content, tally, peer)
                if (sender, peer) in edges
            }
            lost = [peer for peer in members if peer not in answers]
            if lost and self.ear is not None:
                self.ear.note_silence(lost, self.round, hop)
            if self.protocol.collective and refused:  # they spoil the sum, their hearers do not
                lost = sorted({*lost, *refused & set(members)})
                tally.failed |= set(lost)
            members = tuple(peer for peer in members if peer not in lost)
            if self.protocol.delivers_late and hop > 0:
                self.late = self._kept(inbox, answers)
            if not members:
                break
            if lost and self.protocol.collective and hop > 0:
                self._note_restart(lost, len(members))
                hop, inbox = 1, {}
                continue
            inbox = self._route(answers, hop, members, tally) if speaks else {}
            hop += 1
        return members

    def _ask_in_turn(
        self,
        contents: Mapping[int, RecordDict],
        hop: int,
        members: Sequence[int],
        tally: _Tally,
    ) -> dict[int, RecordDict]:
        """Ask all peers for a hop; an active adversary waits until it has heard the others."""
        first = {peer: one for peer, one in contents.items() if peer not in self.rushing}
        answers = self._ask(STEP, first, tally)
        if len(first) == len(contents):
            return answers
        inbox: Inbox = {}
        for one in self._said(answers, hop, members):
            for receiver in one.to:
                inbox.setdefault(receiver, []).append(one)
        last = {peer: contents[peer] for peer in contents if peer not in first}
        for peer, content in last.items():
            deliver(content, inbox.get(peer, []), early=True)
        return dict(sorted((answers | self._ask(STEP, last, tally)).items()))

    def _message(
        self, hop: int, speaks: bool, members: Sequence[int], inbox: Inbox, peer: int
    ) -> RecordDict:
        content = RecordDict()
        content[CONFIG] = ConfigRecord(
            {
                **self._config(),
                peer_wire.HOP: hop,
                peer_wire.SPEAKS: speaks,
                peer_wire.MEMBERS: list(members),
                peer_wire.ABSENT: sorted(self.absent),
            }
        )
        deliver(content, inbox.get(peer, []))
        return content

    def _config(self) -> dict[str, int | str]:
        return {ROUND: self.round, RUN_DIRECTORY: str(self.run.root.resolve())}

    def _route(
        self, answers: Mapping[int, RecordDict], hop: int, members: Sequence[int], tally: _Tally
    ) -> Inbox:
        """Return what waits for whom: what was said in this hop, and what is late."""
        inbox: Inbox = {peer: list(said) for peer, said in self.late.items()}
        self.late = {}
        said = self._said(answers, hop, members)
        self._carry(said, hop, len(members), tally)
        for one in said:
            for receiver in one.to:
                inbox.setdefault(receiver, []).append(one)
        return inbox

    def _said(
        self, answers: Mapping[int, RecordDict], hop: int, members: Sequence[int]
    ) -> list[Addressed]:
        """Return what was said in a hop, in order of sender."""
        receivers: dict[int, list[int]] = {}
        for sender, receiver in self._edges(members):
            receivers.setdefault(sender, []).append(receiver)
        return [
            one
            for sender, content in sorted(answers.items())
            for one in posts_of(
                content,
                sender=sender,
                server_round=self.round,
                hop=hop,
                receivers=receivers.get(sender, []),
            )
        ]

    def _edges(self, members: Sequence[int]) -> list[tuple[int, int]]:
        """Return who may speak to whom in this round."""
        if self.protocol.collective and len(members) < len(self.node_of):
            # a ring or tree that lost a member is closed over the gap
            return [(one, other) for one in members for other in members if one != other]
        return list(self.network.edges(self.round))

    def _neighbours(self, peer: int) -> list[int]:
        return [sender for sender, receiver in self.network.edges(self.round) if receiver == peer]

    # asking

    def _ask(
        self, message_type: str, contents: Mapping[int, RecordDict], tally: _Tally | None = None
    ) -> dict[int, RecordDict]:
        """Send each peer its message; return the sound answers, in order of peer."""
        messages = [
            Message(content, self.node_of[peer], message_type)
            for peer, content in sorted(contents.items())
        ]
        timeout = self.experiment.server.reply_timeout_s
        answers: dict[int, RecordDict] = {}
        silent = set(contents)
        for reply in self.grid.send_and_receive(messages, timeout=timeout):
            peer = self.peer_of.get(reply.metadata.src_node_id)
            if peer not in silent:
                continue
            silent.discard(peer)
            if reply.has_error():
                self._note("client-failed", reply.error.reason or f"code {reply.error.code}", peer)
                continue
            try:
                if tally is not None:
                    self._note_training(peer, reply.content, tally)
            except BadReply as error:
                self._note("update-rejected", str(error), peer)
                continue
            answers[peer] = reply.content
        for peer in sorted(silent):
            self._note("no-reply", f"no reply within {timeout:g} s", peer)
        if tally is not None:
            tally.failed |= set(contents) - set(answers)
        return dict(sorted(answers.items()))

    def _note_training(self, peer: int, content: RecordDict, tally: _Tally) -> None:
        """Check what a peer says of its hop, and note what it says of its training.

        Raises:
            BadReply: It says nothing of it, or no sound numbers.
        """
        config = content.config_records.get(CONFIG, ConfigRecord())
        if not {peer_wire.TRAINED, peer_wire.REFUSED, peer_wire.REASONS} <= set(config):
            raise BadReply(f"'{CONFIG}' does not say what was refused, and whether it trained")
        refused, reasons = config[peer_wire.REFUSED], config[peer_wire.REASONS]
        if not isinstance(refused, list) or not isinstance(reasons, list):
            raise BadReply(f"'{peer_wire.REFUSED}' and '{peer_wire.REASONS}' must be lists")
        if config[peer_wire.TRAINED]:
            tally.trained[peer] = read_training_metrics(content, reports_loss=self.reports_loss)

    def _note_refused(self, content: RecordDict, tally: _Tally, peer: int) -> list[int]:
        """Note what a peer refused to take; return from whom."""
        config = content.config_records[CONFIG]
        named = integers(config[peer_wire.REFUSED])[: _MOST_REFUSED * len(self.node_of)]
        reasons = cast(list[object], config[peer_wire.REASONS])
        senders = []
        for sender, reason in zip(named, reasons, strict=False):
            if sender not in self.node_of:
                continue
            senders.append(sender)
            tally.refused += 1
            said = f"refused what it heard from peer {sender}: {reason}"
            self._note("message-refused", said, peer)
        return senders

    def _kept(self, inbox: Inbox, answers: Mapping[int, RecordDict]) -> Inbox:
        """Return what waits for those that did not answer; what nobody would take does not."""
        late: Inbox = {}
        for peer in sorted(set(inbox) - set(answers)):
            for one in inbox[peer]:
                if self.encrypted:  # nobody but the peer can tell whether it would take it
                    late.setdefault(peer, []).append(one)
                    continue
                try:
                    open_parcel(
                        one,
                        kinds=self.protocol.kinds,
                        size=self.federation.layout.size,
                        dtype=self.federation.dtype,
                    )
                except BadReply as error:
                    self._note(
                        "update-rejected", f"what it said to peer {peer}: {error}", one.sender
                    )
                else:
                    late.setdefault(peer, []).append(one)
        return late

    def _carry(self, said: Sequence[Addressed], hop: int, num_members: int, tally: _Tally) -> None:
        """Count what was said in a hop, and let the adversary hear what crosses its links."""
        for one in said:
            tally.messages += len(one.to)
            tally.num_bytes += len(one.to) * one.num_bytes
        if self.ear is not None:
            lost = len(self.node_of) - num_members if self.protocol.collective and hop else 0
            self.ear.hear(said, self.round, hop, lost=lost)

    # telling how it goes

    def models(self, number: int) -> Models:
        """Ask every peer for its model; leave out those that do not tell a sound one."""
        content = RecordDict({CONFIG: ConfigRecord({**self._config(), ROUND: number})})
        answers = self._ask(REPORT, dict.fromkeys(self.node_of, content))
        models: Models = {}
        for peer, answer in answers.items():
            try:
                models[peer] = self.judge.read(answer)
            except BadReply as error:
                self._note("update-rejected", str(error), peer)
        if not models:
            raise RunFailed(f"round {number}: no peer told a sound model; events.jsonl says why")
        return models

    def _record(self, tally: _Tally) -> Record:
        losses = [(count, loss) for count, loss in tally.trained.values() if loss is not None]
        total = sum(count for count, _ in losses)
        # divided first: a product of what peers claim may be beyond any float
        mean = sum(count / total * loss for count, loss in losses) if losses else None
        record: Record = {
            "round": self.round,
            "train_loss": finite(mean),
            "clients": sorted(tally.trained),
            "failed": sorted(tally.failed),
            "rejected": tally.refused,
            "messages": tally.messages,
            "bytes_between": tally.num_bytes,
        }
        if self.network.varies:
            links = {(min(edge), max(edge)) for edge in self.network.edges(self.round)}
            record["links"] = sorted(links)
        if self.ledger is not None:
            record |= self.ledger.spent(self.round).record()
        return record

    def _note_restart(self, lost: Sequence[int], left: int) -> None:
        names = ", ".join(map(str, lost))
        self.run.append_event(
            "begun-again",
            f"round {self.round}: peers {names} were lost; the {left} that are left began again",
            round=self.round,
            clients=list(lost),
        )

    def _note_stray(self, kind: str, message: str, node: int) -> None:
        self._note(kind, message, self.peer_of.get(node, -1))

    def _note(self, kind: str, message: str, peer: int) -> None:
        self.run.append_event(
            kind,
            f"round {self.round}, peer {peer}: {message[:_LONGEST_REASON]}",
            round=self.round,
            client=peer,
        )
