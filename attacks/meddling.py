"""What an active neighbour says in place of its own model (Pasquini, Raynal and Troncoso, 2023).

"On the (In)security of Peer-to-Peer Decentralized Machine Learning", IEEE S&P 2023,
https://arxiv.org/abs/2205.08443. Peers average models, so whoever speaks last, having heard what
the others say, has a say in what the average comes to.

Differs from the paper: states are overridden for gradient inversion, so that the weights at which
the victim computes its next update are known, or made for an attack; the paper's aim is membership.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor


class Meddling(Protocol):
    """A way to choose what to say to one victim.

    Attributes:
        takes_target: Whether it brings the victim to weights that somebody may choose.
    """

    takes_target: ClassVar[bool]

    def __call__(
        self,
        heard: Mapping[int, Tensor],
        weights: Mapping[int, float],
        *,
        me: int,
        victim: int,
        target: Tensor,
    ) -> Tensor:
        """Return what to say to the victim, shape (D,).

        Args:
            heard: What peers say in this hop, (D,) each, by sender: that of the victim among them.
            weights: What the victim gives to each peer that it hears, and to itself.
            me: The adversary's own peer.
            victim: To whom this is said.
            target: The weights that the victim is to come to, (D,).
        """


@dataclass(frozen=True, kw_only=True)
class Echo:
    """Say to the victim what it says itself: it moves less, towards itself, and stays apart."""

    takes_target: ClassVar[bool] = False

    def __call__(
        self,
        heard: Mapping[int, Tensor],
        weights: Mapping[int, float],
        *,
        me: int,
        victim: int,
        target: Tensor,
    ) -> Tensor:
        """Return the victim's own model; see `Meddling`."""
        del weights, me, target
        return heard[victim]


@dataclass(frozen=True, kw_only=True)
class StateOverride:
    """Say what makes the victim's average come to chosen weights.

    Exact where all that the victim hears is heard; a peer that is not is taken to say what the
    victim says, and what it says otherwise goes into the victim's state with its weight.
    """

    takes_target: ClassVar[bool] = True

    def __call__(
        self,
        heard: Mapping[int, Tensor],
        weights: Mapping[int, float],
        *,
        me: int,
        victim: int,
        target: Tensor,
    ) -> Tensor:
        """Return (target - sum over others of weight times model) / own weight; see `Meddling`."""
        left = target.double()
        for peer in sorted(weights):
            if peer != me:
                left = left - weights[peer] * heard.get(peer, heard[victim]).double()
        return (left / weights[me]).to(target.dtype)


MEDDLING: dict[str, Meddling] = {"echo": Echo(), "state-override": StateOverride()}
"""By the name that experiments use."""
