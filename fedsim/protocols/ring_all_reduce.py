"""Ring all-reduce (Patarasuk and Yuan, 2009, https://doi.org/10.1016/j.jpdc.2008.09.002).

Every peer ends with the mean gradient of all, having sent each of its coordinates about twice. The
gradient is cut into N chunks; in N-1 hops partial sums of chunks travel round the ring, each peer
adding its own (reduce-scatter), and in N-1 more the finished sums do (all-gather). The successor of
a peer hears one chunk of its gradient raw; the others only as sums over a run of peers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.protocols.peer_protocol import Here, Links, MessageKind, Network, Parcel, Post, State
from fedsim.protocols.summing import begun, chunk_of, ended, roll_call


@dataclass(frozen=True, kw_only=True)
class RingAllReduce:
    """Sum gradients chunk by chunk around a ring, and step along their mean.

    Hop 0 is a roll call: everybody computes its gradient and says nothing. The ring closes over
    members that fail: the others begin again at hop 1, from the gradients that they kept. Chunk c
    begins its way at the c-th member, so its sum runs over members c, c+1, ..., c-1; it is
    computed once, so all members end with the same bits.
    """

    needs_gradient: ClassVar[bool] = True
    linear: ClassVar[bool] = True
    collective: ClassVar[bool] = True
    delivers_late: ClassVar[bool] = False
    needs_same_start: ClassVar[bool] = True
    kinds: ClassVar[frozenset[MessageKind]] = frozenset(
        {MessageKind.PARTIAL_SUM, MessageKind.TOTAL}
    )

    def check(self, network: Network) -> None:
        """Refuse what is no ring in the order of the peers.

        Raises:
            ValueError: A peer has no link to the next, or to one that is not beside it.
        """
        peers = range(network.num_peers)
        forward = {(peer, (peer + 1) % network.num_peers) for peer in peers}
        both = forward | {(receiver, sender) for sender, receiver in forward}
        links = set(network.edges(1))
        if network.varies or not forward <= links <= both:
            raise ValueError(
                f"ring-all-reduce needs a ring of all peers in order, always the same, got "
                f"'{network.name}'; set topology.name to 'ring'"
            )

    def num_hops(self, num_members: int, links: Links = ()) -> int:
        """A roll call, N-1 hops of reduce-scatter, and N-1 of all-gather.

        A peer that is left alone has one idle hop, in which it steps.
        """
        del links
        return 1 + max(1, 2 * (num_members - 1))

    def begin(self, start: Tensor) -> State:
        """Remember the model."""
        return {"model": start}

    def speak(self, state: State, at: Here) -> tuple[State, Sequence[Post]]:
        """Hop 0: compute the gradient. Later: pass the next chunk on to the next member."""
        if at.hop == 0:
            return roll_call(state, at), []
        if at.hop == 1:
            state = begun(state)
        num_members, place = len(at.members), at.members.index(at.me)
        if num_members == 1:
            return state, []
        chunk, summed = _sent(place, at.hop, num_members)
        parcel = Parcel(
            kind=_kind(summed, num_members),
            tensors={"chunk": state["sum"][_chunk_at(state["sum"], chunk, num_members)]},
            chunk=chunk,
            num_chunks=num_members,
            members=_summed(at, chunk, summed),
        )
        return state, [Post(to=(at.members[(place + 1) % num_members],), parcel=parcel)]

    def listen(self, state: State, heard: Mapping[int, Sequence[Parcel]], at: Here) -> State:
        """Take in the chunk of the member before; after the last one, step along the mean."""
        if at.hop == 0:
            return state
        num_members, place = len(at.members), at.members.index(at.me)
        total = state["sum"]
        if num_members > 1:
            chunk, summed = _sent((place - 1) % num_members, at.hop, num_members)
            told = chunk_of(
                heard,
                at.members[place - 1],
                at,
                kind=_kind(summed, num_members),
                members=_summed(at, chunk, summed),
                chunk=chunk,
                num_chunks=num_members,
            )
            at_chunk = _chunk_at(total, chunk, num_members)
            if summed < num_members:
                told = told + total[at_chunk]
            total = torch.cat([total[: at_chunk.start], told, total[at_chunk.stop :]])
        if at.hop + 1 < self.num_hops(num_members):
            return {**state, "sum": total}
        return ended(state, total, at)

    def model(self, state: State) -> Tensor:
        """Return the model."""
        return state["model"]


def _chunk_at(vector: Tensor, chunk: int, num_chunks: int) -> slice:
    """Return where a chunk lies, as `torch.tensor_split` cuts."""
    size, longer = divmod(vector.shape[0], num_chunks)
    first = chunk * size + min(chunk, longer)
    return slice(first, first + size + (chunk < longer))


def _sent(place: int, hop: int, num_members: int) -> tuple[int, int]:
    """Return which chunk the member at this place sends in a hop, and how many it is a sum of."""
    return (place - hop + 1) % num_members, min(hop, num_members)


def _kind(summed: int, num_members: int) -> MessageKind:
    return MessageKind.TOTAL if summed == num_members else MessageKind.PARTIAL_SUM


def _summed(at: Here, chunk: int, count: int) -> tuple[int, ...]:
    """Return the first members on the way of a chunk, in the order of its sum."""
    return (at.members * 2)[chunk : chunk + count]
