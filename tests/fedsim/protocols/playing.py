"""Small networks, and federations of quadratics, to play protocols on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedsim.protocols.peer_protocol import MessageKind, PeerProtocol
from fedsim.protocols.simulate import MixingNetwork, PlayedRound, simulate

NAMES = {
    MessageKind.MODEL: {"model"},
    MessageKind.GRADIENT: {"gradient"},
    MessageKind.MODEL_AND_TRACKER: {"model", "tracker"},
    MessageKind.SHARE: {"numerator", "mass"},
    MessageKind.REQUEST: set(),
    MessageKind.SPARSE_CHANGE: {"values", "places"},
    MessageKind.PARTIAL_SUM: {"chunk"},
    MessageKind.TOTAL: {"chunk"},
}
"""What `MessageKind` says that messages hold."""


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A network by its links, with Metropolis weights if it is not directed, or weights given."""

    num_peers: int
    links: Sequence[tuple[int, int]]
    directed: bool = False
    varies: bool = False
    name: str = "graph"
    weights: np.ndarray | None = field(default=None, compare=False)

    def edges(self, server_round: int) -> Sequence[tuple[int, int]]:
        """Both directions of every link, unless it is directed."""
        backward = [] if self.directed else [(there, here) for here, there in self.links]
        return sorted({*self.links, *backward})

    def mixing(self, server_round: int) -> np.ndarray:
        """Metropolis weights on an undirected graph."""
        if self.weights is not None:
            return self.weights
        edges = self.edges(server_round)
        heard = np.bincount([there for _, there in edges], minlength=self.num_peers)
        matrix = np.zeros((self.num_peers, self.num_peers))
        for sender, receiver in edges:
            most = heard[receiver] if self.directed else max(heard[sender], heard[receiver])
            matrix[receiver, sender] = 1 / (1 + most)
        return matrix + np.diag(1 - matrix.sum(axis=1))


def ring(num_peers: int) -> Graph:
    """Peers beside those of the next and of the last number."""
    links = [(peer, (peer + 1) % num_peers) for peer in range(num_peers)]
    return Graph(num_peers=num_peers, links=links, name="ring")


def complete(num_peers: int) -> Graph:
    """Everybody beside everybody, with uniform weights."""
    links = [(i, j) for i in range(num_peers) for j in range(i)]
    return Graph(num_peers=num_peers, links=links, name="complete")


def random_graph(num_peers: int, seed: int, *, directed: bool = False) -> Graph:
    """A ring with chords drawn at random; every peer reaches every other."""
    rng = np.random.default_rng(seed)
    links = set(ring(num_peers).links)
    chords = rng.integers(num_peers, size=(num_peers, 2)).tolist()
    links |= {(i, j) for i, j in chords if i != j}
    return Graph(num_peers=num_peers, links=sorted(links), directed=directed, name="chords")


@dataclass(frozen=True, kw_only=True)
class Quadratics:
    """Losses c_i/2 |x - a_i|^2, one per peer.

    Attributes:
        centers: a, (N, D).
        curvatures: c, (N,).
    """

    centers: Tensor
    curvatures: Tensor

    def gradient(self, peer: int, server_round: int, model: Tensor) -> Tensor:
        """Return that of one peer's loss."""
        return self.curvatures[peer] * (model - self.centers[peer])

    @property
    def minimum(self) -> Tensor:
        """Where the sum of the losses is least, (D,)."""
        return (self.curvatures[:, None] * self.centers).sum(0) / self.curvatures.sum()


def quadratics(num_peers: int, dim: int = 5) -> Quadratics:
    """Losses of peers that disagree about curvature and minimum."""
    rng = torch.Generator().manual_seed(1)
    return Quadratics(
        centers=torch.randn(num_peers, dim, generator=rng, dtype=torch.float64),
        curvatures=0.5 + torch.rand(num_peers, generator=rng, dtype=torch.float64),
    )


def own_starts(num_peers: int, dim: int = 5) -> list[Tensor]:
    """Return another start for every peer."""
    rng = torch.Generator().manual_seed(2)
    return list(torch.randn(num_peers, dim, generator=rng, dtype=torch.float64))


def same_starts(num_peers: int, dim: int = 5) -> list[Tensor]:
    """Return one start for all peers."""
    return [own_starts(1, dim)[0]] * num_peers


def nothing_to_learn(peer: int, server_round: int, model: Tensor) -> Tensor:
    """Return a gradient of zero."""
    return torch.zeros_like(model)


def counted(dim: int = 7) -> Callable[[int, int, Tensor], Tensor]:
    """Return gradients of whole numbers, the same at every model."""

    def local(peer: int, server_round: int, model: Tensor) -> Tensor:
        rng = torch.Generator().manual_seed(1_000 * server_round + peer)
        return torch.randint(-99, 99, (dim,), generator=rng).to(model)

    return local


def play(
    protocol: PeerProtocol,
    network: MixingNetwork,
    starts: Sequence[Tensor],
    local: Callable[[int, int, Tensor], Tensor] = nothing_to_learn,
    *,
    rounds: int = 1,
    learning_rate: float = 0.1,
    seed: int = 0,
) -> list[PlayedRound]:
    """Play rounds in which nobody fails; refuse parcels that the protocol has not declared."""
    played = list(
        simulate(
            protocol, network, starts, local, rounds=rounds, learning_rate=learning_rate, seed=seed
        )
    )
    for one in (message for whole in played for message in whole.said):
        assert one.parcel.kind in protocol.kinds
        assert set(one.parcel.tensors) == NAMES[one.parcel.kind]
        assert (one.sender, one.receiver) in network.edges(one.round)
    return played


def models(protocol: PeerProtocol, played: PlayedRound) -> Tensor:
    """Return the models of all peers after a round, (N, D)."""
    return torch.stack([protocol.model(state) for state in played.states])
