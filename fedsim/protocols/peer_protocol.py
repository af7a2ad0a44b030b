"""What a protocol between peers is: what a peer says, and what it makes of what it hears.

A protocol is plain arithmetic on vectors, without Flower, files or training: the same object runs
on the peers of a federation and, on vectors of coefficients, tells an adversary how what it heard
depends on what every peer computed (`fedsim.protocols.coefficients`).

A round is a number of hops. In each, every peer says something (`speak`), and then takes what was
said to it (`listen`). Vectors are flat: shape (D,), the D entries of all parameters in the order
of the model, or (D, K) when each entry is K coefficients; protocols touch the first axis alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

State = Mapping[str, Tensor]
"""What a peer remembers between hops and rounds, by name; never modified in place."""

Links = Sequence[tuple[int, int]]
"""(sender, receiver) of every direction of every link, in order."""


class MessageKind(StrEnum):
    """What a message between peers holds, and under which names."""

    MODEL = "model"
    """`model`: the weights of the sender."""
    GRADIENT = "gradient"
    """`gradient`: of the sender's batch, at its own weights."""
    MODEL_AND_TRACKER = "model-and-tracker"
    """`model`, `tracker`: the weights, and the estimate of the mean gradient."""
    SHARE = "share"
    """`numerator`, `mass`: a part of both numbers of push-sum; mass has shape (1,), float64."""
    REQUEST = "request"
    """Nothing: the sender asks for a model."""
    SPARSE_CHANGE = "sparse-change"
    """`values`, `places`: some entries of a change of weights; places are int64, ascending."""
    PARTIAL_SUM = "partial-sum"
    """`chunk`: the sum of the gradients of `members`, in one chunk of the coordinates."""
    TOTAL = "total"
    """`chunk`: the sum over all members, in one chunk of the coordinates."""


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """What one message says.

    Attributes:
        kind: What it holds.
        tensors: Its vectors, by the names that `kind` lists.
        chunk: Which chunk of the coordinates, counted from 0; None for all of them.
        num_chunks: Into how many chunks the coordinates are cut, as `torch.tensor_split` does.
        members: Whose gradients are summed in it, in the order of the sum.
    """

    kind: MessageKind
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    chunk: int | None = None
    num_chunks: int = 1
    members: tuple[int, ...] = ()


class Unfit(ValueError):
    """A member of a collective did not say what the protocol needs of it.

    Attributes:
        sender: Who.
    """

    def __init__(self, sender: int, message: str) -> None:
        super().__init__(message)
        self.sender = sender


@dataclass(frozen=True, kw_only=True)
class Post:
    """A parcel, and the peers that it goes to."""

    to: tuple[int, ...]
    parcel: Parcel


@dataclass(frozen=True, kw_only=True)
class Here:
    """Where a peer stands in a round.

    Attributes:
        me: Its number.
        round: From 1.
        hop: From 0.
        senders: The peers that may say something to it in this round, in order.
        receivers: The peers that it may say something to; the same, on an undirected graph.
        weights: Its row of the mixing matrix: the weight of each sender and its own; they sum to 1.
        members: The peers that take part, in order; a collective goes on without those that failed.
        learning_rate: Step size.
        seed: For choices of the protocol, from streams named by round and peer.
        local: (model (D,)) -> the update (D,) that training on this peer's batch comes to: the
            gradient, after its defenses; or the change of weights, for `moves_weights`.
        links: Those of the whole graph in this round, for a protocol that must know its place in
            it; also those of peers that have failed.
        moves_weights: Whether `local` returns a change of weights in place of a gradient.
        absent: The peers that did not answer in the round before. They are called again and may be
            back, so only a protocol that loses by speaking to them need look.
    """

    me: int
    round: int
    hop: int
    senders: tuple[int, ...]
    receivers: tuple[int, ...]
    weights: Mapping[int, float]
    members: tuple[int, ...]
    learning_rate: float
    seed: int
    local: Callable[[Tensor], Tensor]
    links: Links = ()
    moves_weights: bool = False
    absent: frozenset[int] = frozenset()

    def moved(self, model: Tensor, update: Tensor) -> Tensor:
        """Return the weights after one step of local training."""
        return model + update if self.moves_weights else model - self.learning_rate * update

    def mixed(self, own: Tensor, heard: Mapping[int, Tensor]) -> Tensor:
        """Return the weighted mean of an own vector and of those heard, by sender.

        The weights of senders that were not heard are shared out among the rest in proportion.
        Sums run in order of peer number, so that equal peers come to equal bits.
        """
        vectors = {**heard, self.me: own}
        total = sum(self.weights[peer] for peer in vectors)
        whole = set(vectors) == set(self.weights)
        parts = [
            (self.weights[peer] if whole else self.weights[peer] / total) * vectors[peer]
            for peer in sorted(vectors)
        ]
        mean = parts[0]
        for part in parts[1:]:
            mean = mean + part
        return mean


class Network(Protocol):
    """What a protocol may ask of the topology before a run."""

    @property
    def num_peers(self) -> int:
        """N."""

    @property
    def directed(self) -> bool:
        """Whether somebody may speak to a peer that does not speak to it."""

    @property
    def varies(self) -> bool:
        """Whether the graph changes from round to round."""

    @property
    def name(self) -> str:
        """As experiments name it."""

    def edges(self, server_round: int) -> Links:
        """Return (sender, receiver) of every direction of every link in a round, in order."""


@runtime_checkable
class PeerProtocol(Protocol):
    """How peers train together without a server; settings at construction, nothing else.

    One whose peers must begin with the same weights has an attribute `needs_same_start` that is
    true.

    Attributes:
        needs_gradient: Whether peers must send gradients (`training.algorithm = "fedsgd"`).
        linear: Whether all that is said is linear in the updates of the peers and the start.
        collective: Whether a round needs every member: when one fails, it is begun again, from
            hop 1 on, among those that are left. Otherwise a round goes on without it. What its
            members say depends on their models, updates and links, never on the round's number.
        delivers_late: Whether what a peer could not be told in a hop is told later (it must not
            get lost); otherwise it is dropped.
        kinds: What its messages hold.
    """

    needs_gradient: ClassVar[bool]
    linear: ClassVar[bool]
    collective: ClassVar[bool]
    delivers_late: ClassVar[bool]
    kinds: ClassVar[frozenset[MessageKind]]

    def check(self, network: Network) -> None:
        """Refuse a topology that the protocol cannot run on.

        Raises:
            ValueError: It cannot; the message says what it needs.
        """

    def num_hops(self, num_members: int, links: Links = ()) -> int:
        """Return the hops of a round among so many members of a graph with these links."""

    def begin(self, start: Tensor) -> State:
        """Return what a peer remembers before the first round, given the weights it starts from."""

    def speak(self, state: State, at: Here) -> tuple[State, Sequence[Post]]:
        """Return what the peer says in this hop, and what it remembers after."""

    def listen(self, state: State, heard: Mapping[int, Sequence[Parcel]], at: Here) -> State:
        """Return what the peer remembers after it heard these parcels, by sender in order.

        Usually one parcel per sender; more where parcels are delivered late. Those of a kind that
        `kinds` does not hold never come.

        Raises:
            Unfit: A member of a collective said something else than it must, or nothing.
        """

    def model(self, state: State) -> Tensor:
        """Return the peer's model, shape (D,)."""
