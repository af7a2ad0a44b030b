"""Stochastic gradient push (Assran et al., 2019, https://arxiv.org/abs/1811.10792).

Push-sum (Kempe et al., 2003, https://doi.org/10.1109/SFCS.2003.1238221) with steps of SGD. Peers
pass on shares of a numerator and of a mass, each the same part of both; the quotient is the model.
Nobody needs to know who speaks to it, or that weights are doubly stochastic: a directed graph in
which everybody reaches everybody is enough.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.protocols.peer_protocol import Here, Links, MessageKind, Network, Parcel, Post, State


@dataclass(frozen=True, kw_only=True)
class PushSum:
    """Step, keep a share of numerator and mass, and send each receiver as much.

    With d receivers the share is 1/(1+d); weights of the topology play no part. The gradient is
    taken at the quotient z, and the step moves the numerator: u <- u - lr g(z). Numerators and
    masses that are on their way belong to nobody, so what cannot be delivered is delivered later;
    between rounds, the sums over all peers and all that is on its way never change but by steps.
    Who did not answer in the round before is no receiver: a peer that stays dead takes its own mass
    and the shares of one round out of circulation, and no more.
    """

    needs_gradient: ClassVar[bool] = False
    linear: ClassVar[bool] = True
    collective: ClassVar[bool] = False
    delivers_late: ClassVar[bool] = True
    kinds: ClassVar[frozenset[MessageKind]] = frozenset({MessageKind.SHARE})

    def check(self, network: Network) -> None:
        """Any graph will do, directed or not."""

    def num_hops(self, num_members: int, links: Links = ()) -> int:
        """One, among any number."""
        del num_members, links
        return 1

    def begin(self, start: Tensor) -> State:
        """Remember the model as a numerator of mass one."""
        return {"numerator": start, "mass": torch.ones(1, dtype=torch.float64)}

    def speak(self, state: State, at: Here) -> tuple[State, Sequence[Post]]:
        """Step, and hand out shares."""
        receivers = tuple(peer for peer in at.receivers if peer not in at.absent)
        share = 1 / (1 + len(receivers))
        numerator = at.moved(state["numerator"], at.local(self.model(state)))
        part = {"numerator": share * numerator, "mass": share * state["mass"]}
        return part, [Post(to=receivers, parcel=Parcel(kind=MessageKind.SHARE, tensors=part))]

    def listen(self, state: State, heard: Mapping[int, Sequence[Parcel]], at: Here) -> State:
        """Add up what was kept and every share heard, in order of sender."""
        shares = {peer: [parcel.tensors for parcel in said] for peer, said in heard.items()}
        shares[at.me] = [state]
        total: State | None = None
        for peer in sorted(shares):
            for one in shares[peer]:
                total = one if total is None else {what: total[what] + one[what] for what in total}
        return total or state

    def model(self, state: State) -> Tensor:
        """Return the quotient."""
        return state["numerator"] / float(state["mass"])
