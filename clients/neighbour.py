"""The neighbour: a peer of the adversary's own, which remembers what its links carry.

A Flower mod around the peer's own answers. It sees the messages to this peer and from it, and what
this peer computes itself; of all the others, nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from flwr.app import ConfigRecord, Context, Message
from torch import Tensor

from fedsim import peer_wire
from fedsim.peer_wire import Addressed, delivered, integers, posts_of
from fedsim.peers import Federation, federation
from fedsim.records import RunDirectory
from fedsim.threat import places_of
from fedsim.views import Heard, View, add_to_view, heard
from fedsim.wire import (
    CONFIG,
    EXPERIMENT,
    PARTITION,
    ROUND,
    read_run_directory,
    to_record,
    to_tensors,
)

_OWN = "own-training"
"""Where a peer of the adversary's own leaves what it computed, in Flower's state of its node."""

App = Callable[[Message, Context], Message]


def note_own_training(context: Context, *, update: Tensor, weights: Tensor) -> None:
    """Leave what this peer computed, and at which weights, for `overhear`; both (D,)."""
    context.state[_OWN] = to_record({"update": update, "weights": weights})


def overhear(message: Message, context: Context, call_next: App) -> Message:
    """Let the peer answer; if it is the adversary's, remember what came in and what goes out."""
    reply = call_next(message, context)
    own = context.state.array_records.pop(_OWN, None)
    config = message.content.config_records[CONFIG]
    run = read_run_directory(context.run_config, config)
    ears = federation(str(context.run_config[EXPERIMENT]))
    me, begun = context.node_config[PARTITION], config[ROUND]
    if run is None or not isinstance(me, int) or not isinstance(begun, int):
        return reply
    said = [replace(one, to=(me,)) for one in delivered(message.content)]
    # a member that begins anew stands before the round in which it is told to
    server_round = max([begun, *(one.round for one in said)])
    experiment = ears.experiment
    if me in places_of(experiment).peers and experiment.adversary.listens_in(server_round):
        ear = _Ear(run=run, federation=ears, me=me, round=server_round, config=config)
        ear.hear_in(said)
        ear.hear_out(reply, {} if own is None else to_tensors(own))
    return reply


@dataclass(frozen=True, kw_only=True)
class _Ear:
    """What one peer hears in one call."""

    run: RunDirectory
    federation: Federation
    me: int
    round: int
    config: ConfigRecord

    @property
    def hop(self) -> int:
        """The hop in which the peer is asked to speak; it listens to the one before."""
        hop = self.config.get(peer_wire.HOP, 0)
        return hop if isinstance(hop, int) else 0

    def hear_in(self, said: Sequence[Addressed]) -> None:
        """Remember what was said to this peer."""
        self._add(max(0, self.hop - 1), heard(said, self.federation))

    def hear_out(self, reply: Message, own: dict[str, Tensor]) -> None:
        """Remember what this peer says, and what it computed."""
        if reply.has_error():
            return
        speaks = bool(self.config.get(peer_wire.SPEAKS))
        others = range(self.federation.network.num_peers)
        said = posts_of(
            reply.content,
            sender=self.me,
            server_round=self.round,
            hop=self.hop,
            receivers=others,
        )
        hop = self.hop if speaks else max(0, self.hop - 1)
        self._add(hop, heard(said, self.federation), own)

    def _add(self, hop: int, messages: list[Heard], own: dict[str, Tensor] | None = None) -> None:
        lost = 0
        if self.federation.protocol.collective and self.hop > 0:
            members = integers(self.config.get(peer_wire.MEMBERS))
            lost = self.federation.network.num_peers - len(members)
        view = View(
            round=self.round,
            hop=hop,
            ear=f"peer-{self.me}",
            lost=lost,
            messages=messages,
            own=own or {},
        )
        add_to_view(self.run, view)
