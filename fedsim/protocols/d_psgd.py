"""D-PSGD (Lian et al., 2017, https://arxiv.org/abs/1705.09056) and its diffusion forms.

A peer steps along its own gradient and averages models with its neighbours. Which comes first is
`order`; Cattivelli and Sayed (2010, https://doi.org/10.1109/TSP.2009.2033729) name the two serial
ones. What a neighbour hears is the same weights, half a round apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from fedsim.protocols.peer_protocol import Here, Links, MessageKind, Network, Parcel, Post, State


@dataclass(frozen=True, kw_only=True)
class DecentralisedPSGD:
    """Average models with neighbours, and step along one's own gradient.

    Attributes:
        order: adapt-then-combine: y = x - lr g(x) is sent, x is the mean of the y heard.
            combine-then-adapt: x is sent, m is the mean of the x heard, x = m - lr g(m).
            at-once: x is sent, x = m - lr g(x), as the paper has it.
    """

    order: Literal["adapt-then-combine", "combine-then-adapt", "at-once"] = "adapt-then-combine"

    needs_gradient: ClassVar[bool] = False
    linear: ClassVar[bool] = True
    collective: ClassVar[bool] = False
    delivers_late: ClassVar[bool] = False
    kinds: ClassVar[frozenset[MessageKind]] = frozenset({MessageKind.MODEL})

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
        """Send the model to every neighbour, before or after a step."""
        model = state["model"]
        if self.order == "adapt-then-combine":
            model = at.moved(model, at.local(model))
        parcel = Parcel(kind=MessageKind.MODEL, tensors={"model": model})
        return {"model": model}, [Post(to=at.receivers, parcel=parcel)]

    def listen(self, state: State, heard: Mapping[int, Sequence[Parcel]], at: Here) -> State:
        """Average with the models heard, and step if that has not been done."""
        own = state["model"]
        mean = at.mixed(own, {peer: said[-1].tensors["model"] for peer, said in heard.items()})
        if self.order == "adapt-then-combine":
            return {"model": mean}
        return {"model": at.moved(mean, at.local(mean if self.order != "at-once" else own))}

    def model(self, state: State) -> Tensor:
        """Return the model."""
        return state["model"]
