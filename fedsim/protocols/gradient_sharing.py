"""Gradient sharing: neighbours send each other the gradient of their batch.

The setting of Deep Leakage from Gradients (Zhu et al., 2019, https://arxiv.org/abs/1906.08935)
without a server: whoever trains beside you holds your gradient. On a complete graph with uniform
weights every peer takes the step that a server would; on any other graph the models of the peers
drift apart, since models are never averaged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedsim.protocols.peer_protocol import Here, Links, MessageKind, Network, Parcel, Post, State


@dataclass(frozen=True, kw_only=True)
class GradientSharing:
    """Send one's gradient, and step along the weighted mean of those heard and one's own.

    With W the mixing matrix: x_i <- x_i - lr sum_j W_ij g_j(x_j). A neighbour that was not heard
    counts for nothing, and the weights of the others are scaled up.
    """

    needs_gradient: ClassVar[bool] = True
    linear: ClassVar[bool] = True
    collective: ClassVar[bool] = False
    delivers_late: ClassVar[bool] = False
    kinds: ClassVar[frozenset[MessageKind]] = frozenset({MessageKind.GRADIENT})

    def check(self, network: Network) -> None:
        """Any graph will do."""

    def num_hops(self, num_members: int, links: Links = ()) -> int:
        """One, among any number."""
        del num_members, links
        return 1

    def begin(self, start: Tensor) -> State:
        """Remember the model."""
        return {"model": start}

    def speak(self, state: State, at: Here) -> tuple[State, Sequence[Post]]:
        """Send the gradient at one's own weights to every neighbour."""
        gradient = at.local(state["model"])
        parcel = Parcel(kind=MessageKind.GRADIENT, tensors={"gradient": gradient})
        return {**state, "gradient": gradient}, [Post(to=at.receivers, parcel=parcel)]

    def listen(self, state: State, heard: Mapping[int, Sequence[Parcel]], at: Here) -> State:
        """Step along the mean of the gradients."""
        others = {peer: said[-1].tensors["gradient"] for peer, said in heard.items()}
        return {"model": at.moved(state["model"], at.mixed(state["gradient"], others))}

    def model(self, state: State) -> Tensor:
        """Return the model."""
        return state["model"]
