"""A peer: what a participant does in a federation without a server.

Its model and whatever its protocol remembers are its own, and lie in its memory between messages;
the relay that the messages come by never holds them.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import Tensor

from clients.defending import defend
from clients.local_training import LocalUpdate, local_update
from clients.memory import Memory
from clients.neighbour import note_own_training
from clients.participant import Participant
from clients.sealing import seal
from fedsim.defenses import Defense, TrainingDefense, private_clients
from fedsim.peer_wire import (
    ABSENT,
    HOP,
    MEMBERS,
    MODEL,
    REASONS,
    REFUSED,
    SPEAKS,
    TRAINED,
    delivered,
    integers,
    open_parcel,
    put_post,
)
from fedsim.peers import Federation
from fedsim.protocols.peer_protocol import Here, MessageKind, Parcel, State, Unfit
from fedsim.protocols.simulate import place
from fedsim.records import RunDirectory
from fedsim.threat import places_of
from fedsim.wire import (
    BUFFERS,
    CONFIG,
    METRICS,
    NUM_EXAMPLES,
    ROUND,
    TRAIN_LOSS,
    BadReply,
    load_state,
    shared_buffers,
    shared_parameters,
    to_record,
)


@dataclass
class _Training:
    """What local training did in answer to one message: an update, if it took place."""

    update: LocalUpdate | None = None


@dataclass
class _Mind:
    """What a peer remembers.

    Attributes:
        state: Of its protocol.
        buffers: Running statistics of normalisation layers; they never leave the peer.
        heard_last: Round and hop of the newest parcel of each sender, where some come late.
    """

    state: State
    buffers: dict[str, Tensor]
    heard_last: dict[int, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One peer while it answers one message.

    Attributes:
        me: The participant.
        federation: What all peers share.
        chain: Its defenses, by title, in order.
        run: Where records go, if there is a run directory that it can reach.
        context: Flower's, with the state of this node.
    """

    me: Participant
    federation: Federation
    chain: Mapping[str, Defense]
    run: RunDirectory | None
    context: Context

    @property
    def memory(self) -> Memory:
        """What it remembers of the protocol."""
        return Memory(f"{self.me.name}-peer", self.run, self.context.state)

    def step(self, message: Message) -> Message:
        """Take what was said in the hop before, speak in this one, and reply with what is said.

        A message about hop 0 brings nothing; one that asks for no speech ends the round.
        """
        config = message.content.config_records[CONFIG]
        server_round, hop = _integer(config[ROUND]), _integer(config[HOP])
        mind = self._recall(server_round, hop)
        training = _Training()
        here = self._here(server_round, config, mind, training)
        state, refused = mind.state, list[tuple[int, str]]()
        if hop > 0:
            heard = self._open(message.content, mind, refused)
            if not refused or not self.federation.protocol.collective:
                try:
                    state = self.federation.protocol.listen(
                        state, heard, replace(here, hop=hop - 1)
                    )
                except Unfit as error:
                    refused.append((error.sender, str(error)))
            if refused and self.federation.protocol.collective:
                # nothing was done: the relay will begin again without who sent it
                return Message(RecordDict({CONFIG: _said(refused, training)}), reply_to=message)
        content = RecordDict()
        if config[SPEAKS]:
            state, posts = self.federation.protocol.speak(state, replace(here, hop=hop))
            for number, post in enumerate(posts):
                put_post(content, number, post.to, post.parcel)
        self._remember(server_round, replace(mind, state=state))
        content[CONFIG] = _said(refused, training)
        if training.update is not None:
            metrics = MetricRecord({NUM_EXAMPLES: training.update.num_examples})
            if not private_clients(self.chain):
                metrics[TRAIN_LOSS] = training.update.train_loss
            content[METRICS] = metrics
        return Message(content, reply_to=message)

    def report(self, message: Message) -> Message:
        """Tell the simulator the model and the running statistics as they stand."""
        server_round = _integer(message.content.config_records[CONFIG][ROUND])
        mind = self._recall(server_round, 1)
        model = to_record({MODEL: self.federation.protocol.model(mind.state)})
        content = RecordDict({MODEL: model, BUFFERS: to_record(mind.buffers)})
        return Message(content, reply_to=message)

    def adopt(self, message: Message) -> Message:
        """Begin anew from the model of another member, after rounds that went on without this one.

        Raises:
            BadReply: What came is no such model.
        """
        server_round = _integer(message.content.config_records[CONFIG][ROUND])
        (one,) = delivered(message.content)
        parcel = open_parcel(
            one, kinds={MessageKind.MODEL}, size=self.federation.layout.size, dtype=self._dtype
        )
        mind = self._recall(server_round, 1)
        state = self.federation.protocol.begin(parcel.tensors[MODEL])
        self._remember(server_round, replace(mind, state=state))
        return Message(RecordDict(), reply_to=message)

    def _here(
        self, server_round: int, config: ConfigRecord, mind: "_Mind", training: "_Training"
    ) -> Here:
        experiment = self.me.experiment
        here = place(
            self.federation.network,
            self.me.number,
            server_round,
            tuple(integers(config[MEMBERS])),
            learning_rate=experiment.training.learning_rate,
            seed=experiment.seed,
        )
        return replace(
            here,
            local=functools.partial(self._train, server_round, mind, training),
            moves_weights=experiment.training.update_kind != "gradient",
            absent=frozenset(integers(config[ABSENT])),
        )

    def _train(
        self, server_round: int, mind: "_Mind", training: "_Training", model: Tensor
    ) -> Tensor:
        """Train on this peer's own batch from this model; return the update, as a vector."""
        me, layout = self.me, self.federation.layout
        load_state(me.model, layout.tensors(model) | mind.buffers)
        before = {name: tensor.clone() for name, tensor in shared_parameters(me.model).items()}
        update = local_update(
            me.model,
            me.workplace.loss,
            me.inputs,
            me.labels,
            me.experiment.training,
            seed=me.experiment.seed,
            server_round=server_round,
            client=me.number,
            defense=next(
                (one for one in self.chain.values() if isinstance(one, TrainingDefense)), None
            ),
        )
        mind.buffers = {
            name: tensor.detach().cpu().clone() for name, tensor in shared_buffers(me.model).items()
        }
        if not _sound(update, before):
            # before defenses, some of which remember what they left out
            raise BadReply("its own update holds NaN or infinity")
        update = defend(
            me,
            update,
            self.chain,
            before=before,
            server_round=server_round,
            memory=Memory(me.name, self.run, self.context.state),
        )
        tensors = {name: update.tensors[name] for name in before}
        if not _sound(update, before):
            # raised before anything is remembered: the peer sits out the round, and stays sound
            raise BadReply("its own update holds NaN or infinity")
        training.update = update
        if me.experiment.training.update_kind == "weights":
            tensors = {name: after - before[name] for name, after in tensors.items()}
        scope = me.experiment.adversary
        if self.run is not None and scope.hears(server_round, me.number):
            seal(self.run, me, server_round, update, sent=tensors, weights=before)
        vector = layout.vector(tensors).cpu()
        if me.number in places_of(me.experiment).peers:
            note_own_training(self.context, update=vector, weights=model)
        return vector

    def _open(
        self, content: RecordDict, mind: "_Mind", refused: list[tuple[int, str]]
    ) -> dict[int, list[Parcel]]:
        """Return what was heard, by sender in order; what is no sound message is refused."""
        heard: dict[int, list[Parcel]] = {}
        before = dict(mind.heard_last)
        for one in sorted(delivered(content), key=lambda one: (one.sender, one.round, one.hop)):
            if self.federation.protocol.delivers_late:
                if before.get(one.sender, (0, -1)) >= (one.round, one.hop):
                    continue  # it came twice
                mind.heard_last[one.sender] = (one.round, one.hop)
            try:
                parcel = open_parcel(
                    one,
                    kinds=self.federation.protocol.kinds,
                    size=self.federation.layout.size,
                    dtype=self._dtype,
                )
            except BadReply as error:
                refused.append((one.sender, str(error)))
                continue
            heard.setdefault(one.sender, []).append(parcel)
        return heard

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.me.model.parameters()).dtype

    def _recall(self, server_round: int, hop: int) -> "_Mind":
        """Return what this peer remembers; at hop 0, of the rounds before this one alone."""
        parts = self.memory.load(server_round if hop == 0 else server_round + 1)
        if not parts:
            model = self.federation.start(self.me.number)
            start = self.federation.layout.vector(shared_parameters(model))
            return _Mind(state=self.federation.protocol.begin(start), buffers=shared_buffers(model))
        heard = {
            int(sender): (int(last[0]), int(last[1]))
            for sender, last in parts.get("heard-last", {}).items()
        }
        return _Mind(state=parts["state"], buffers=parts.get("buffers", {}), heard_last=heard)

    def _remember(self, server_round: int, mind: "_Mind") -> None:
        heard = {
            str(sender): torch.tensor(last, dtype=torch.int64)
            for sender, last in mind.heard_last.items()
        }
        self.memory.save(
            server_round, {"state": dict(mind.state), "buffers": mind.buffers, "heard-last": heard}
        )


def _sound(update: LocalUpdate, parameters: Mapping[str, Tensor]) -> bool:
    return all(bool(torch.isfinite(update.tensors[name]).all()) for name in parameters)


def _said(refused: list[tuple[int, str]], training: _Training) -> ConfigRecord:
    return ConfigRecord(
        {
            REFUSED: [sender for sender, _ in refused],
            REASONS: [reason for _, reason in refused],
            TRAINED: training.update is not None,
        }
    )


def _integer(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"expected a whole number, got {value!r}")
    return value
