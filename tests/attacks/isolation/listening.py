"""Federations of smooth losses in single precision, and an adversary that listens to them."""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attacks.isolation.prior import Prior
from attacks.isolation.unknowns import Unknowns
from attacks.isolation.updates import Heard, Isolated, Load, Wanted, isolate
from fedsim.protocols.coefficients import coefficients
from fedsim.protocols.peer_protocol import PeerProtocol
from fedsim.protocols.simulate import MixingNetwork, PlayedRound, simulate

Local = Callable[[int, int, Tensor], Tensor]


def smooth_losses(num_peers: int, dim: int = 50, seed: int = 0) -> Local:
    """Return the gradients of quadratics with a minimum and curvatures of their own per peer."""
    rng = torch.Generator().manual_seed(seed)
    curvatures = torch.rand(num_peers, dim, generator=rng) + 0.5
    centers = torch.randn(num_peers, dim, generator=rng)
    return lambda peer, server_round, model: curvatures[peer] * (model - centers[peer])


def whole_numbers(peer: int, server_round: int, model: Tensor) -> Tensor:
    """Return a gradient of whole numbers, the same at every model."""
    rng = torch.Generator().manual_seed(1_000 * server_round + peer)
    return torch.randint(-99, 99, model.shape, generator=rng).to(model)


@dataclass(kw_only=True)
class Listener:
    """A run of a protocol, and what of it is heard.

    Attributes:
        protocol: Linear.
        network: Who speaks to whom.
        own: The adversary's own peers.
        hears: (sender, receiver) -> whether a link is heard; None for those of its own peers.
        rounds: How many are played.
        local: (peer, round, model) -> gradient; None for smooth losses.
        own_starts: Whether each peer starts from weights of its own.
        learning_rate: Step size.
        dim: D.
        updates: What peers computed, by peer and round.
        weights: Where.
    """

    protocol: PeerProtocol
    network: MixingNetwork
    own: Sequence[int] = (0,)
    hears: Callable[[int, int], bool] | None = None
    rounds: int = 4
    local: Local | None = None
    own_starts: bool = False
    learning_rate: float = 0.1
    dim: int = 50
    seed: int = 0
    updates: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    weights: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        num_peers = self.network.num_peers
        self.unknowns = Unknowns(
            num_peers=num_peers, rounds=self.rounds, own_starts=self.own_starts
        )
        rng = torch.Generator().manual_seed(self.seed + 1)
        starts = [torch.randn(self.dim, generator=rng) for _ in range(num_peers)]
        self.starts = starts if self.own_starts else [starts[0]] * num_peers
        losses = self.local or smooth_losses(num_peers, self.dim, self.seed)

        def local(peer: int, server_round: int, model: Tensor) -> Tensor:
            self.weights[peer, server_round] = model
            self.updates[peer, server_round] = losses(peer, server_round, model)
            return self.updates[peer, server_round]

        self.played: list[PlayedRound] = list(
            simulate(
                self.protocol,
                self.network,
                self.starts,
                local,
                rounds=self.rounds,
                learning_rate=self.learning_rate,
            )
        )
        self.rows = list(
            coefficients(
                self.protocol,
                self.network,
                self.unknowns,
                learning_rate=self.learning_rate,
                hears=self.hear,
            )
        )

    def hear(self, sender: int, receiver: int) -> bool:
        """Whether a link is heard."""
        if self.hears is not None:
            return self.hears(sender, receiver)
        return sender in self.own or receiver in self.own

    @property
    def heard(self) -> list[Heard]:
        """What others said on the links that are heard."""
        found = []
        for rows, played in zip(self.rows, self.played, strict=True):
            said = [
                (one, name)
                for one in played.said
                if self.hear(one.sender, one.receiver)
                for name, vector in one.parcel.tensors.items()
                if len(vector) != 1 or self.dim == 1
            ]
            for row, (one, name) in zip(rows.messages, said, strict=True):
                assert (row.sender, row.receiver, row.name) == (one.sender, one.receiver, name)
                if one.sender not in self.own:
                    found.append(
                        Heard(
                            row=row.row,
                            load=lambda vector=one.parcel.tensors[name]: vector,  # type: ignore[misc]
                            chunk=row.chunk,
                            num_chunks=row.num_chunks,
                        )
                    )
        return found

    @property
    def known(self) -> dict[int, Load]:
        """The common start, and what the adversary's own peers computed."""
        starts = self.own if self.own_starts else (0,)
        known: dict[int, Load] = {}
        for peer in starts:
            known[self.unknowns.start(peer)] = functools.partial(self.starts.__getitem__, peer)
        for key in itertools.product(self.own, range(1, self.rounds + 1)):
            known[self.unknowns.update(*key)] = functools.partial(self.updates.__getitem__, key)
        return known

    @property
    def wanted(self) -> list[Wanted]:
        """Every update of the others, with its weights."""
        return [
            Wanted(peer=peer, round=rows.round, weights=rows.weights[peer])
            for rows in self.rows
            for peer in range(self.network.num_peers)
            if peer not in self.own
        ]

    def isolate(self, *, prior: Prior | None = None, worst_error: float = 0.95) -> "Found":
        """Return what is isolated, by peer and round."""
        isolated = isolate(
            self.heard,
            self.wanted,
            unknowns=self.unknowns,
            known=self.known,
            num_coordinates=self.dim,
            prior=prior,
            worst_error=worst_error,
        )
        return {(one.peer, one.round): one for one in isolated}

    def error(self, one: Isolated) -> float:
        """Return the relative error of an isolated update where it is visible."""
        return relative_error(one.update, self.updates[one.peer, one.round], one.visible)

    def weights_error(self, one: Isolated) -> float:
        """Return the largest error of the weights that an update was taken at."""
        assert one.weights is not None
        return float((one.weights - self.weights[one.peer, one.round]).abs().max())


Found = dict[tuple[int, int], Isolated]


def relative_error(guess: Tensor, truth: Tensor, visible: Tensor | None = None) -> float:
    """Return the length of the difference over that of the truth."""
    if visible is not None:
        guess, truth = guess[visible], truth[visible]
    return float((guess.double() - truth.double()).norm() / truth.double().norm())
