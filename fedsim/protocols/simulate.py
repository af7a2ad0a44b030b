"""Peers as function calls: a protocol run to its letter, without Flower, files or training.

It is what the federation is tested against, and how an adversary learns what depends on what: run
on vectors of coefficients, every message says how it depends on the updates of the peers.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
    members = tuple(range(len(starts)))
    for number in range(1, rounds + 1):
        places = [
            replace(
                place(network, me, number, members, learning_rate=learning_rate, seed=seed),
                local=functools.partial(local, me, number),
                moves_weights=moves_weights,
            )
            for me in members
        ]
        said: list[Said] = []
        for hop in range(protocol.num_hops(len(members))):
            here = [replace(one, hop=hop) for one in places]
            spoken = [protocol.speak(states[me], here[me]) for me in members]
            heard: list[dict[int, list[Parcel]]] = [{} for _ in members]
            for sender, (_, posts) in enumerate(spoken):
                for post in posts:
                    for receiver in post.to:
                        heard[receiver].setdefault(sender, []).append(post.parcel)
                        said.append(
                            Said(
                                round=number,
                                hop=hop,
                                sender=sender,
                                receiver=receiver,
                                parcel=post.parcel,
                            )
                        )
            states = [protocol.listen(spoken[me][0], heard[me], here[me]) for me in members]
        yield PlayedRound(round=number, said=said, states=states)


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
    )


def row_of(row: np.ndarray, peers: Sequence[int]) -> Mapping[int, float]:
    """Return the weights of these peers in one row of a mixing matrix, in order of peer."""
    return {peer: float(row[peer]) for peer in sorted(peers)}


def _nothing_to_train(model: Tensor) -> Tensor:
    raise NotImplementedError("this place has no data")
