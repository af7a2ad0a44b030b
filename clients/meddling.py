"""The active neighbour: a peer of the adversary's own, which speaks last and says what it likes.

A Flower mod around the peer's own answers. The peer itself goes on as the protocol says; what its
victims are told is changed on the way out.
"""

from dataclasses import dataclass

from flwr.app import ConfigRecord, Context, Message
from torch import Tensor

from attacks.meddling import MEDDLING
from attacks.observation import AttackFailed
from clients.neighbour import App
from fedsim import peer_wire
from fedsim.knowledge import read_knowledge
from fedsim.named_attacks import active_attack
from fedsim.peer_wire import (
    Addressed,
    delivered,
    open_parcel,
    posts_of,
    put_post,
    take_posts,
)
from fedsim.peers import Federation, federation
from fedsim.protocols.peer_protocol import MessageKind, Parcel
from fedsim.protocols.simulate import row_of
from fedsim.records import RunDirectory
from fedsim.tampering import Tamperer
from fedsim.threat import places_of, threat_of, victims_of
from fedsim.wire import CONFIG, EXPERIMENT, PARTITION, ROUND, BadReply, read_run_directory


def meddle(message: Message, context: Context, call_next: App) -> Message:
    """Let the peer answer; if it is an active adversary's, change what it says to its victims."""
    reply = call_next(message, context)
    config = message.content.config_records[CONFIG]
    everybody = federation(str(context.run_config[EXPERIMENT]))
    run = read_run_directory(context.run_config, config)
    me, server_round = context.node_config[PARTITION], config[ROUND]
    experiment = everybody.experiment
    if run is None or not isinstance(me, int) or not isinstance(server_round, int):
        return reply
    if not threat_of(experiment).active or me not in places_of(experiment).peers:
        return reply
    if reply.has_error() or not config.get(peer_wire.SPEAKS):
        return reply
    if experiment.adversary.listens_in(server_round):
        speaker = _Speaker(run=run, federation=everybody, me=me, round=server_round, config=config)
        speaker.change(reply, delivered(message.content, early=True))
    return reply


@dataclass(frozen=True, kw_only=True)
class _Speaker:
    """What one active peer says in one hop."""

    run: RunDirectory
    federation: Federation
    me: int
    round: int
    config: ConfigRecord

    def change(self, reply: Message, early: list[Addressed]) -> None:
        """Replace what is said to victims, given what all others say to this peer."""
        experiment = self.federation.experiment
        heard = {one.sender: vector for one in early if (vector := self._model(one)) is not None}
        said = posts_of(
            reply.content,
            sender=self.me,
            server_round=self.round,
            hop=0,
            receivers=range(self.federation.network.num_peers),
        )
        victims = set(victims_of(experiment, (self.me,))) & set(heard)
        posts: list[tuple[list[int], Parcel]] = []
        for one in said:
            honest = self._model(one)
            if honest is None:
                return
            told = {
                victim: self._instead(heard, victim, honest)
                for victim in one.to
                if victim in victims
            }
            rest = [peer for peer in one.to if peer not in told]
            posts += [([peer], _parcel(vector)) for peer, vector in told.items()]
            posts += [(rest, _parcel(honest))] if rest else []
        take_posts(reply.content)
        for place, (to, parcel) in enumerate(posts):
            put_post(reply.content, place, to, parcel)

    def _instead(self, heard: dict[int, Tensor], victim: int, honest: Tensor) -> Tensor:
        """Return what is said to a victim."""
        network = self.federation.network
        meddling = MEDDLING[self.federation.experiment.adversary.meddling]
        senders = network.senders(self.round, victim)
        row = network.mixing(self.round)[victim]
        target = self._target(heard[victim], victim, honest) if meddling.takes_target else honest
        return meddling(
            {peer: heard[peer] for peer in sorted(heard)},
            row_of(row, (*senders, victim)),
            me=self.me,
            victim=victim,
            target=target,
        )

    def _target(self, model: Tensor, victim: int, honest: Tensor) -> Tensor:
        """Return the weights to bring a victim to: those of an active attack, or one's own."""
        experiment, layout = self.federation.experiment, self.federation.layout
        active = active_attack(experiment)
        if active is None:
            return honest
        config, attack = active
        tamperer = Tamperer(
            title=config.title,
            attack=attack,
            known=read_knowledge(self.run),
            seed=experiment.seed,
            target=lambda _, client: client,
            earlier=lambda *_: (),  # what is told of it is told beside the training, at any time
            hears_sum=False,
        )
        try:
            changed = tamperer(self.round, victim, layout.tensors(model))
        except AttackFailed as failed:
            self.run.append_event(
                "tamper-failed",
                f"round {self.round}: '{config.title}': {failed}",
                round=self.round,
                client=victim,
            )
            return honest
        return honest if changed is None else layout.vector(changed)

    def _model(self, one: Addressed) -> Tensor | None:
        """Return the model that a message holds; None if it is no sound one."""
        try:
            parcel = open_parcel(
                one,
                kinds={MessageKind.MODEL},
                size=self.federation.layout.size,
                dtype=self.federation.dtype,
            )
        except BadReply:
            return None
        return parcel.tensors["model"]


def _parcel(model: Tensor) -> Parcel:
    return Parcel(kind=MessageKind.MODEL, tensors={"model": model})
