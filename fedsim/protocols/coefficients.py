"""How every message depends on what every peer computed: a protocol run on coefficients.

The protocols are the code that peers train with. In place of weights they are given rows of
coefficients: the start is a unit vector, and so is each update that `local` is asked for. What a
protocol then says is the row of that message, whatever the topology, the order of its steps or the
faults. It holds for protocols that are linear (`PeerProtocol.linear`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from attacks.isolation.unknowns import Unknowns
from fedsim.protocols.peer_protocol import MessageKind, PeerProtocol, State
from fedsim.protocols.simulate import Faults, MixingNetwork, PlayedRound, Said, play_round


@dataclass(frozen=True, kw_only=True, eq=False)
class MessageRow:
    """One vector of one message, in terms of the unknowns.

    Attributes:
        round: From 1.
        hop: From 0.
        sender: Who said it.
        receiver: To whom.
        kind: What the message holds.
        name: Which of its vectors.
        chunk: Which chunk of the coordinates, counted from 0; None for all of them.
        num_chunks: Into how many the coordinates are cut, as `torch.tensor_split` does.
        row: Coefficients (U,), float64; the same array for all receivers of one parcel.
    """

    round: int
    hop: int
    sender: int
    receiver: int
    kind: MessageKind
    name: str
    chunk: int | None
    num_chunks: int
    row: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class RoundRows:
    """What was said in a round, and where it was computed.

    Attributes:
        round: From 1.
        messages: In the order of hop, sender and receiver.
        weights: By peer, the row (U,) of the weights at which its update of this round is taken;
            without those that computed none.
    """

    round: int
    messages: Sequence[MessageRow]
    weights: Mapping[int, np.ndarray]


Units = Callable[[int, int, int], Tensor]
"""(C, K, column) -> (C, K), 1 in that column of every row and 0 elsewhere."""


def real_units(height: int, width: int, column: int) -> Tensor:
    """Return unit rows (C, K) of double precision."""
    rows = torch.zeros(height, width, dtype=torch.float64)
    rows[:, column] = 1.0
    return rows


def coefficients(
    protocol: PeerProtocol,
    network: MixingNetwork,
    unknowns: Unknowns,
    *,
    learning_rate: float,
    seed: int = 0,
    moves_weights: bool = False,
    faults: Faults | None = None,
    hears: Callable[[int, int], bool] | None = None,
    units: Units = real_units,
    lots_known: bool = False,
) -> Iterator[RoundRows]:
    """Yield the rows of one round after the other.

    Vectors without coordinates, such as the mass of push-sum, have no row.

    Args:
        protocol: Says who says what; a linear one.
        network: Says who may speak to whom.
        unknowns: How many peers and rounds there are, and how starts depend on each other.
        learning_rate: Step size.
        seed: For choices of the protocol.
        moves_weights: Whether an update is a change of weights in place of a gradient.
        faults: What went wrong, as far as the adversary knows; None for nothing.
        hears: (sender, receiver) -> whether messages on this link are asked for; None for all.
        units: Number system of the coefficients.
        lots_known: Whether whoever asks knows all that the protocol draws by lot, as one that hears
            every message of gossip does; then gossip is linear, too.

    Raises:
        ValueError: The protocol is not linear, or computes two updates in one round.
    """
    if not (protocol.linear or lots_known):
        raise ValueError(
            f"what {type(protocol).__name__} says is not linear in the updates of the peers"
        )
    rows = _Rows(protocol=protocol, unknowns=unknowns, units=units)
    late: list[Said] = []
    for number in range(1, unknowns.rounds + 1):
        played = rows.again(number, faults)
        if played is None:
            played = play_round(
                protocol,
                network,
                rows.begin(),
                rows.local,
                number,
                learning_rate=learning_rate,
                seed=seed,
                moves_weights=moves_weights,
                faults=faults,
                late=late,
            )
        yield RoundRows(
            round=number,
            messages=list(rows.messages(played, hears)),
            weights={peer: rows.row(model, number) for peer, model in rows.models_at.items()},
        )
        rows.end(played, faults)


@dataclass(kw_only=True, eq=False)
class _Rows:
    """The states of all peers as coefficients.

    A collective says nothing of weights, and its chunks make every state N rows high. So one is run
    in terms of the weights before the round and the updates of the round alone, once for all rounds
    in which nobody fails.

    Attributes:
        models_at: By peer, the model at which it computed its update of the round.
    """

    protocol: PeerProtocol
    unknowns: Unknowns
    units: Units
    models_at: dict[int, Tensor] = field(default_factory=dict)
    whole: tuple[PlayedRound, dict[int, Tensor]] | None = None

    def __post_init__(self) -> None:
        num_peers, width = self.unknowns.num_peers, len(self.unknowns)
        starts = [self.units(1, width, self.unknowns.start(peer)) for peer in range(num_peers)]
        self.models = torch.cat(starts)
        self.states = [self.protocol.begin(start) for start in starts]

    def again(self, number: int, faults: Faults | None) -> PlayedRound | None:
        """Return a round that goes as one before it went; None if it must be played."""
        if self.whole is None or _disturbed(number, faults):
            return None
        played, self.models_at = self.whole
        return replace(played, round=number)

    def begin(self) -> list[State]:
        """Return the states before a round."""
        self.models_at = {}
        if not self.protocol.collective:
            return self.states
        num_peers = self.unknowns.num_peers
        return [
            self.protocol.begin(self.units(num_peers, 2 * num_peers, peer))
            for peer in range(num_peers)
        ]

    def local(self, peer: int, number: int, model: Tensor) -> Tensor:
        """Note where an update is computed, and return it."""
        if peer in self.models_at:
            raise ValueError(f"peer {peer} computes two updates in round {number}, expected one")
        self.models_at[peer] = model
        if self.protocol.collective:
            return self.units(len(model), model.shape[1], self.unknowns.num_peers + peer)
        return self.units(len(model), model.shape[1], self.unknowns.update(peer, number))

    def messages(
        self, played: PlayedRound, hears: Callable[[int, int], bool] | None
    ) -> Iterator[MessageRow]:
        """Yield the rows of a round."""
        made: dict[int, np.ndarray] = {}
        for said in played.said:
            if hears and not hears(said.sender, said.receiver):
                continue
            for name, vector in said.parcel.tensors.items():
                if vector.ndim != 2:
                    continue
                if id(vector) not in made:
                    made[id(vector)] = self.row(vector, played.round)
                yield MessageRow(
                    round=played.round if self.protocol.collective else said.round,
                    hop=said.hop,
                    sender=said.sender,
                    receiver=said.receiver,
                    kind=said.parcel.kind,
                    name=name,
                    chunk=said.parcel.chunk,
                    num_chunks=said.parcel.num_chunks,
                    row=made[id(vector)],
                )

    def end(self, played: PlayedRound, faults: Faults | None) -> None:
        """Take in the states after a round."""
        if not self.protocol.collective:
            self.states = list(played.states)
            return
        if not _disturbed(played.round, faults):
            self.whole = played, self.models_at
        failed = {} if faults is None else faults.failed
        peers = range(self.unknowns.num_peers)
        done = [peer for peer in peers if (played.round, peer) not in failed]
        if done:  # those that failed begin anew from the model of another
            ends = [played.states[peer if peer in done else done[0]] for peer in peers]
            models = torch.cat([self.protocol.model(end)[:1] for end in ends])
            self.models = self._wide(models, played.round)

    def row(self, vector: Tensor, number: int) -> np.ndarray:
        """Return the one row of a vector whose coordinates all have the same."""
        return self._wide(vector[:1], number)[0].as_subclass(Tensor).numpy()

    def _wide(self, rows: Tensor, number: int) -> Tensor:
        """Return rows (M, U) in terms of all unknowns."""
        if not self.protocol.collective:
            return rows
        num_peers = self.unknowns.num_peers
        first = self.unknowns.update(0, number)
        after = len(self.unknowns) - first - num_peers
        of_updates = functional.pad(rows[:, num_peers:], (first, after))
        of_weights = rows[:, :num_peers]
        if not of_weights.as_subclass(Tensor).any():
            return of_updates
        return of_weights @ self.models + of_updates


def _disturbed(number: int, faults: Faults | None) -> bool:
    """Whether anything went wrong in a round."""
    return faults is not None and (
        any(failed == number for failed, _ in faults.failed)
        or any(lost == number for lost, _, _, _ in faults.lost)
    )
