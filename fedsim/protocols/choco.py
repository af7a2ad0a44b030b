"""CHOCO-SGD (Koloskova et al., 2019, https://arxiv.org/abs/1902.00340), with top-k compression.

Peers send the largest entries of how far their model has moved away from the copy that others hold
of it. Everybody keeps a copy of each neighbour, brings it up to date by what it hears, and moves
towards the copies.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.protocols.peer_protocol import Here, Links, MessageKind, Network, Parcel, Post, State


@dataclass(frozen=True, kw_only=True)
class Choco:
    """Step, tell neighbours the largest changes, and move towards the copies of their models.

        y_i = x_i - lr g_i(x_i),    q_i = top-k(y_i - c_i),
        c_j <- c_j + q_j for j = i and every neighbour j,
        x_i <- y_i + gamma sum_j W_ij (c_j - c_i).

    Copies c begin at the common start, where the paper has zeros, so that the first message holds
    entries of the first step. A change that was not delivered comes later, in order; until then
    the copy is out of date and its sender plays no part in the mean: its weight goes to the peer
    itself. A change that was refused (not finite, say) never comes, and the copy stays wrong.

    Attributes:
        share: Of all coordinates, those that a message holds; at least one. 1 sends everything;
            the paper's experiments send 0.01.
        gamma: How far to move towards the copies, of the whole way; unset means `share`. The paper
            tunes it: larger is faster up to about twice the share, and far above that diverges.
    """

    share: float = 0.1
    gamma: float | None = None

    needs_gradient: ClassVar[bool] = False
    linear: ClassVar[bool] = False
    collective: ClassVar[bool] = False
    delivers_late: ClassVar[bool] = True
    needs_same_start: ClassVar[bool] = True
    kinds: ClassVar[frozenset[MessageKind]] = frozenset({MessageKind.SPARSE_CHANGE})

    def __post_init__(self) -> None:
        for name in ("share", "gamma"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {value}")

    def check(self, network: Network) -> None:
        """Any graph that stays as it is and on which everybody answers will do.

        Raises:
            ValueError: The graph changes, or is directed.
        """
        if network.varies or network.directed:
            fault = "changes from round to round" if network.varies else "is directed"
            raise ValueError(
                f"choco needs an undirected graph that stays as it is, but '{network.name}' "
                f"{fault}: peers keep a copy of every neighbour; take another topology"
            )

    def num_hops(self, num_members: int, links: Links = ()) -> int:
        """One, among any number."""
        del num_members, links
        return 1

    def begin(self, start: Tensor) -> State:
        """Remember the model, and that everybody knows it."""
        return {"model": start, "copy": start.clone()}

    def speak(self, state: State, at: Here) -> tuple[State, Sequence[Post]]:
        """Step, and send the largest changes since the copy that others hold."""
        copy = state["copy"]
        copies = {f"copy-{peer}": state.get(f"copy-{peer}", copy) for peer in at.senders}
        model = at.moved(state["model"], at.local(state["model"]))
        change = model - copy
        places = largest(change, max(1, math.ceil(self.share * len(change))))
        said = {"values": change[places], "places": places}
        parcel = Parcel(kind=MessageKind.SPARSE_CHANGE, tensors=said)
        return (
            {"model": model, "copy": _changed(copy, said), **copies},
            [Post(to=at.receivers, parcel=parcel)],
        )

    def listen(self, state: State, heard: Mapping[int, Sequence[Parcel]], at: Here) -> State:
        """Bring copies up to date, and move towards those of the neighbours heard."""
        copies = {
            f"copy-{peer}": _changed(state[f"copy-{peer}"], *(one.tensors for one in said))
            for peer, said in heard.items()
        }
        gamma = self.share if self.gamma is None else self.gamma
        copy, pull = state["copy"], torch.zeros_like(state["copy"])
        for peer in sorted(heard):
            pull = pull + at.weights[peer] * (copies[f"copy-{peer}"] - copy)
        return {**state, **copies, "model": state["model"] + gamma * pull}

    def model(self, state: State) -> Tensor:
        """Return the model."""
        return state["model"]


def largest(vector: Tensor, count: int) -> Tensor:
    """Return the places (count,) of the entries largest in magnitude, int64, ascending.

    Of entries alike, the first are taken.
    """
    size = vector.abs()
    least = size.topk(count).values[-1]
    above, alike = size > least, torch.nonzero(size == least).squeeze(1)
    chosen = above.clone()
    chosen[alike[: count - int(above.sum())]] = True
    return torch.nonzero(chosen).squeeze(1)


def _changed(copy: Tensor, *changes: Mapping[str, Tensor]) -> Tensor:
    """Return a copy with changes added, one after the other."""
    copy = copy.clone()
    for change in changes:
        copy[change["places"]] += change["values"]
    return copy
