"""A protocol in which one peer says what it likes: what it says is known to it, whatever it is.

For the equations of an active neighbour: each of its messages is a known vector of its own, a
column like the update of a peer. Phantom peers, which nobody hears, lend those columns.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from attacks.isolation.unknowns import Unknowns
from fedsim.protocols.coefficients import real_units
from fedsim.protocols.peer_protocol import (
    Here,
    Links,
    MessageKind,
    Network,
    Parcel,
    PeerProtocol,
    Post,
    State,
)
from fedsim.protocols.simulate import MixingNetwork


@dataclass(frozen=True, kw_only=True, eq=False)
class Meddled:
    """The protocol `inner`, but for what one peer says.

    Attributes:
        inner: What all the others do, and what this peer does but for its messages.
        me: The peer.
        phantoms: The phantom peer whose update of a round is what a receiver is told in it.
        unknowns: With the phantoms among the peers.
        meddles_in: (round) -> whether it does.
    """

    inner: PeerProtocol
    me: int
    phantoms: Mapping[int, int]
    unknowns: Unknowns
    meddles_in: Callable[[int], bool]

    needs_gradient: ClassVar[bool] = False
    linear: ClassVar[bool] = True
    collective: ClassVar[bool] = False
    delivers_late: ClassVar[bool] = False
    kinds: ClassVar[frozenset[MessageKind]] = frozenset({MessageKind.MODEL})

    def check(self, network: Network) -> None:
        """Leave it to `inner`."""
        self.inner.check(network)

    def num_hops(self, num_members: int, links: Links = ()) -> int:
        """Leave it to `inner`."""
        return self.inner.num_hops(num_members, links)

    def begin(self, start: Tensor) -> State:
        """Leave it to `inner`."""
        return self.inner.begin(start)

    def speak(self, state: State, at: Here) -> tuple[State, Sequence[Post]]:
        """Let `inner` speak; what this peer says is a column of its own for every receiver."""
        state, posts = self.inner.speak(state, at)
        if at.me != self.me or not self.meddles_in(at.round):
            return state, posts
        return state, [
            Post(to=(receiver,), parcel=self._parcel(post.parcel.tensors["model"], receiver, at))
            for post in posts
            for receiver in post.to
        ]

    def _parcel(self, like: Tensor, receiver: int, at: Here) -> Parcel:
        column = self.unknowns.update(self.phantoms[receiver], at.round)
        vector = real_units(like.shape[0], like.shape[1], column)
        return Parcel(kind=MessageKind.MODEL, tensors={"model": vector})

    def listen(self, state: State, heard: Mapping[int, Sequence[Parcel]], at: Here) -> State:
        """Leave it to `inner`."""
        return self.inner.listen(state, heard, at)

    def model(self, state: State) -> Tensor:
        """Leave it to `inner`."""
        return self.inner.model(state)


@dataclass(frozen=True, kw_only=True, eq=False)
class WithPhantoms:
    """A network with peers besides that nobody hears, and that hear nobody.

    Attributes:
        inner: Of the real peers.
        num_peers: All of them.
    """

    inner: MixingNetwork
    num_peers: int

    @property
    def directed(self) -> bool:
        """As `inner`."""
        return self.inner.directed

    @property
    def varies(self) -> bool:
        """As `inner`."""
        return self.inner.varies

    @property
    def name(self) -> str:
        """As `inner`."""
        return self.inner.name

    def edges(self, server_round: int) -> Links:
        """As `inner`."""
        return self.inner.edges(server_round)

    def mixing(self, server_round: int) -> np.ndarray:
        """As `inner`; phantoms keep to themselves."""
        matrix = np.eye(self.num_peers)
        real = self.inner.num_peers
        matrix[:real, :real] = self.inner.mixing(server_round)
        return matrix
