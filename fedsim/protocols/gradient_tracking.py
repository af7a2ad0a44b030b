"""Gradient tracking (Di Lorenzo and Scutari, 2016, https://arxiv.org/abs/1602.00591).

The recursion is that of DIGing (Nedic et al., 2017, https://arxiv.org/abs/1607.03218). Beside its
model x_i, a peer keeps a tracker y_i of the mean gradient of all peers:

    y_i(t) = sum_j W_ij y_j(t-1) + g_i(x_i(t)) - g_i(x_i(t-1)),    y_i(1) = g_i(x_i(1)),
    x_i(t+1) = sum_j W_ij x_j(t) - lr y_i(t).

Both x_i(t) and y_i(t) are sent in round t; so the first tracker that a neighbour hears is a raw
gradient. Where the columns of W sum to one, the trackers of all peers sum to the gradients of all
peers in every round, and a constant step reaches the minimum of the sum of all losses, which
D-PSGD does not. A message that gets lost breaks the sum, for good.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.protocols.peer_protocol import Here, Links, MessageKind, Network, Parcel, Post, State


@dataclass(frozen=True, kw_only=True)
class GradientTracking:
    """Average models and trackers with neighbours, and step along one's own tracker.

    What it remembers between rounds: `model` is x_i(t+1), `tracker` the mean of the trackers heard,
    to which the change of its gradient is yet to be added, and `gradient` its last one.
    """

    needs_gradient: ClassVar[bool] = True
    linear: ClassVar[bool] = True
    collective: ClassVar[bool] = False
    delivers_late: ClassVar[bool] = False
    kinds: ClassVar[frozenset[MessageKind]] = frozenset({MessageKind.MODEL_AND_TRACKER})

    def check(self, network: Network) -> None:
        """Any graph on which everybody answers will do: the columns of its weights sum to one.

        Raises:
            ValueError: The graph is directed.
        """
        if network.directed:
            raise ValueError(
                f"gradient-tracking needs an undirected graph, got '{network.name}': its trackers "
                "sum to the gradients only where columns of the mixing matrix sum to one; take "
                "another topology, or the protocol 'push-sum'"
            )

    def num_hops(self, num_members: int, links: Links = ()) -> int:
        """One, among any number."""
        del num_members, links
        return 1

    def begin(self, start: Tensor) -> State:
        """Remember the model; nothing has been tracked yet."""
        nothing = torch.zeros_like(start)
        return {"model": start, "tracker": nothing, "gradient": nothing.clone()}

    def speak(self, state: State, at: Here) -> tuple[State, Sequence[Post]]:
        """Bring the tracker up to date, and send it with the model to every neighbour."""
        gradient = at.local(state["model"])
        said = {
            "model": state["model"],
            "tracker": state["tracker"] + gradient - state["gradient"],
        }
        parcel = Parcel(kind=MessageKind.MODEL_AND_TRACKER, tensors=said)
        return {**said, "gradient": gradient}, [Post(to=at.receivers, parcel=parcel)]

    def listen(self, state: State, heard: Mapping[int, Sequence[Parcel]], at: Here) -> State:
        """Average models and step along the tracker; then average trackers."""

        def mean(what: str) -> Tensor:
            return at.mixed(state[what], {peer: s[-1].tensors[what] for peer, s in heard.items()})

        return {
            "model": at.moved(mean("model"), state["tracker"]),
            "tracker": mean("tracker"),
            "gradient": state["gradient"],
        }

    def model(self, state: State) -> Tensor:
        """Return the model."""
        return state["model"]
