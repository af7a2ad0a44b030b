"""Peers as function calls: a protocol run to its letter, without Flower, files or training.

It is what the federation is tested against, and how an adversary learns what depends on what: run
on vectors of coefficients, every message says how it depends on the updates of the peers.
"""

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from torch import Tensor

from fedsim.protocols.peer_protocol import Here, Network, Parcel, PeerProtocol, State


class MixingNetwork(Network, Protocol):
    """A network whose peers know with which weights to average."""

    def mixing(self, server_round: int) -> np.ndarray:
        """Return the mixing matrix of a round, (N, N), float64; row i is that of peer i."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """A message between two peers, as it crossed the link between them."""

    round: int
    hop: int
    sender: int
    receiver: int
    parcel: Parcel


@dataclass(frozen=True, kw_only=True)
class PlayedRound:
    """A round: what was said, in the order of hop, sender and receiver, and the states after it."""

    round: int
    said: Sequence[Said]
    states: Sequence[State]


def simulate(
    protocol: PeerProtocol,
    network: MixingNetwork,
    starts: Sequence[Tensor],
    local: Callable[[int, int, Tensor], Tensor],
    *,
    rounds: int,
    learning_rate: float,
    seed: int = 0,
    moves_weights: bool = False,
) -> Iterator[PlayedRound]:
    """Play rounds in which nobody fails; yield each.

    Args:
        protocol: Says who says what.
        network: Says who may speak to whom.
        starts: Weights that each peer starts from, (D,) or (D, K).
        local: (peer, round, model) -> the update of that peer at this model, shaped like it.
        rounds: How many.
        learning_rate: Step size.
        seed: For choices of the protocol.
        moves_weights: Whether `local` returns a change of weights in place of a gradient.
    """
    states = [protocol.begin(start) for start in starts]
    for number in range(1, rounds + 1):
        played = play_round(
            protocol,
            network,
            states,
            local,
            number,
            learning_rate=learning_rate,
            seed=seed,
            moves_weights=moves_weights,
        )
        states = list(played.states)
        yield played


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What went wrong, as far as it is known.

    A peer is called once per hop: it takes what was said in the hop before, and speaks. After the
    last hop it is called once more, to listen.

    Attributes:
        failed: (round, peer) -> the hop of the first call that it did not answer, from 0; from
            then on it takes no part in the round. A collective begins again at hop 1.
        lost: (round, hop, sender, receiver) of messages that were sent and did not count.
    """

    failed: Mapping[tuple[int, int], int] = field(default_factory=dict)
    lost: Collection[tuple[int, int, int, int]] = ()

    def absent(self, number: int) -> frozenset[int]:
        """Return who did not answer in the round before this one."""
        return frozenset(peer for before, peer in self.failed if before == number - 1)


def play_round(
    protocol: PeerProtocol,
    network: MixingNetwork,
    states: Sequence[State],
    local: Callable[[int, int, Tensor], Tensor],
    number: int,
    *,
    learning_rate: float,
    seed: int = 0,
    moves_weights: bool = False,
    faults: Faults | None = None,
    late: list[Said] | None = None,
) -> PlayedRound:
    """Play one round.

    Args:
        protocol: Says who says what.
        network: Says who may speak to whom.
        states: What each peer remembers, by number; not modified.
        local: (peer, round, model) -> the update of that peer at this model, shaped like it.
        number: The round, from 1.
        learning_rate: Step size.
        seed: For choices of the protocol.
        moves_weights: Whether `local` returns a change of weights in place of a gradient.
        faults: What went wrong; None for nothing.
        late: What waits for receivers that failed, where the protocol delivers late; the round
            takes out what it delivers and leaves what it cannot.
    """
    faults, late = faults or Faults(), [] if late is None else late
    states, members = list(states), tuple(range(len(states)))
    places = [
        place(network, me, number, members, learning_rate=learning_rate, seed=seed)
        for me in members
    ]
    absent = faults.absent(number)
    said: list[Said] = []
    inbox: list[Said] = []
    hop = 0
    while True:
        answer = tuple(one for one in members if faults.failed.get((number, one), hop + 1) > hop)
        if protocol.collective and hop > 0 and len(answer) < len(members):
            hop, inbox = 1, []
        members = answer
        num_hops = protocol.num_hops(len(members), network.edges(number)) if members else hop
        here = {
            me: replace(
                places[me],
                hop=hop,
                members=members,
                local=functools.partial(local, me, number),
                moves_weights=moves_weights,
                absent=absent,
            )
            for me in members
        }
        if hop > 0:
            heard = _heard(inbox)
            for me in members:
                states[me] = protocol.listen(
                    states[me], heard.get(me, {}), replace(here[me], hop=hop - 1)
                )
            if protocol.delivers_late:
                late += [one for one in inbox if one.receiver not in members]
        if hop == num_hops:
            break
        inbox = [*late]
        late.clear()
        for me in members:
            states[me], posts = protocol.speak(states[me], here[me])
            new = [
                Said(round=number, hop=hop, sender=me, receiver=receiver, parcel=post.parcel)
                for post in posts
                for receiver in post.to
            ]
            said += new
            inbox += [one for one in new if (number, hop, me, one.receiver) not in faults.lost]
        hop += 1
    return PlayedRound(round=number, said=said, states=states)


def _heard(inbox: Sequence[Said]) -> dict[int, dict[int, list[Parcel]]]:
    """Return what was said to each peer, by sender in order; of each, the oldest first."""
    heard: dict[int, dict[int, list[Parcel]]] = {}
    for one in sorted(inbox, key=lambda one: (one.sender, one.round, one.hop)):
        heard.setdefault(one.receiver, {}).setdefault(one.sender, []).append(one.parcel)
    return heard


def place(
    network: MixingNetwork,
    me: int,
    server_round: int,
    members: Sequence[int],
    *,
    learning_rate: float,
    seed: int,
) -> Here:
    """Return where a peer stands at the start of a round; `local` is left to the caller.

    Args:
        network: Says who may speak to whom, and with which weights they average.
        me: The peer.
        server_round: From 1.
        members: The peers that take part, in order.
        learning_rate: Step size.
        seed: For choices of the protocol.
    """
    edges = network.edges(server_round)
    senders = tuple(sorted(sender for sender, receiver in edges if receiver == me))
    row = network.mixing(server_round)[me]
    return Here(
        me=me,
        round=server_round,
        hop=0,
        senders=senders,
        receivers=tuple(sorted(receiver for sender, receiver in edges if sender == me)),
        weights=row_of(row, (*senders, me)),
        members=tuple(members),
        learning_rate=learning_rate,
        seed=seed,
        local=_nothing_to_train,
        links=edges,
    )


def row_of(row: np.ndarray, peers: Sequence[int]) -> Mapping[int, float]:
    """Return the weights of these peers in one row of a mixing matrix, in order of peer."""
    return {peer: float(row[peer]) for peer in sorted(peers)}


def _nothing_to_train(model: Tensor) -> Tensor:
    raise NotImplementedError("this place has no data")
