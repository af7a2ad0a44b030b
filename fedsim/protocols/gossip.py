"""Gossip: in each round a peer speaks to one neighbour, drawn at random.

Pairwise averages are those of Randomized Gossip Algorithms (Boyd et al., 2006,
https://doi.org/10.1109/TIT.2006.874516); models that wander and merge are those of gossip learning
(Ormandi, Hegedus and Jelasity, 2013, https://arxiv.org/abs/1109.1396). In both, peers act one at a
time. Here all peers act in each round, so a peer may hear several others at once, and pairs are
found by asking.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.protocols.peer_protocol import Here, Links, MessageKind, Network, Parcel, Post, State
from fedsim.seeds import stream


@dataclass(frozen=True, kw_only=True)
class Gossip:
    """Step, then average with whom one meets.

    Attributes:
        style: push: send one's model to one neighbour; whoever hears n models takes the plain mean
            of them and its own, weights 1/(1+n). The mean over all peers is not conserved.
            pull: ask one neighbour for its model, and average with it half and half. The mean over
            all peers is not conserved.
            push-pull: half of the peers, by lot, ask one neighbour to average; those of the other
            half say yes to one of those who asked, by lot, and send their model; the one who asked
            replies with its own; both take the mean. Pairs are disjoint and the mean over all
            peers is conserved; about four peers in ten meet somebody in a round.

    Whom a peer draws is its own affair: the weights of the averages depend on lots that nobody else
    knows, so to an adversary messages are not linear with known coefficients.
    """

    style: Literal["push", "pull", "push-pull"] = "push"

    needs_gradient: ClassVar[bool] = False
    linear: ClassVar[bool] = False
    collective: ClassVar[bool] = False
    delivers_late: ClassVar[bool] = False
    kinds: ClassVar[frozenset[MessageKind]] = frozenset({MessageKind.MODEL, MessageKind.REQUEST})

    def check(self, network: Network) -> None:
        """To push, any graph will do; who asks must be told.

        Raises:
            ValueError: The graph is directed, and the style is not push.
        """
        if network.directed and self.style != "push":
            raise ValueError(
                f"gossip by {self.style} needs an undirected graph, got '{network.name}'; take "
                "another topology, or style = 'push'"
            )

    def num_hops(self, num_members: int, links: Links = ()) -> int:
        """One to push, two to ask and tell, three to ask, agree and tell."""
        del num_members, links
        return {"push": 1, "pull": 2, "push-pull": 3}[self.style]

    def begin(self, start: Tensor) -> State:
        """Remember the model."""
        return {"model": start}

    def speak(self, state: State, at: Here) -> tuple[State, Sequence[Post]]:
        """Hop 0: step, and send the model or ask for one. Hops 1 and 2: reply with the model."""
        if at.hop == 0:
            state = {"model": at.moved(state["model"], at.local(state["model"]))}
            to = self._asked(at)
            if self.style != "push":
                return state, _posts(to, Parcel(kind=MessageKind.REQUEST))
        else:
            answered = at.hop == 1 or "other" in state
            to = _partners(state) if answered else ()
        parcel = Parcel(kind=MessageKind.MODEL, tensors={"model": state["model"]})
        return state, _posts(to, parcel)

    def listen(self, state: State, heard: Mapping[int, Sequence[Parcel]], at: Here) -> State:
        """Remember who asked, or average with the models heard."""
        last = {peer: said[-1] for peer, said in heard.items()}
        models = {
            peer: parcel.tensors["model"]
            for peer, parcel in last.items()
            if parcel.kind == MessageKind.MODEL
        }
        own = state["model"]
        if self.style == "push":
            return {"model": _mean({**models, at.me: own})}
        if at.hop == 0:
            asking = [peer for peer in sorted(last) if last[peer].kind == MessageKind.REQUEST]
            return self._taking_requests(state, asking, at)
        asked = {peer: models[peer] for peer in self._asked(at) if peer in models}
        if self.style == "pull":
            return {"model": _mean({**asked, at.me: own})}
        if at.hop == 1:
            if not asked:
                return state
            ((partner, model),) = asked.items()
            return {"model": own, "partners": torch.tensor([partner]), "other": model}
        met = {peer: models[peer] for peer in _partners(state) if peer in models}
        if "other" in state:
            met = dict.fromkeys(_partners(state), state["other"])
        return {"model": _mean({**met, at.me: own})}

    def _taking_requests(self, state: State, asking: Sequence[int], at: Here) -> State:
        """Remember whom to answer: all who ask, or one of them to make a pair with."""
        if not asking or (self.style == "push-pull" and self._asked(at)):
            return state
        partners = torch.tensor(asking)
        if self.style == "push-pull":
            lot = torch.randint(len(asking), (1,), generator=_lots(at, "accept"))
            partners = partners[lot]
        return {**state, "partners": partners}

    def _asked(self, at: Here) -> tuple[int, ...]:
        """Return the neighbour that this peer speaks to first in this round, if any."""
        lots = _lots(at, "ask")
        waits = self.style == "push-pull" and bool(torch.randint(2, (), generator=lots))
        if waits or not at.receivers:
            return ()
        return (at.receivers[int(torch.randint(len(at.receivers), (), generator=lots))],)

    def model(self, state: State) -> Tensor:
        """Return the model."""
        return state["model"]


def _lots(at: Here, what: str) -> torch.Generator:
    """Return random numbers of this peer and round."""
    return stream(at.seed, "gossip", what, "round", at.round, "peer", at.me)


def _partners(state: State) -> tuple[int, ...]:
    """Return whom a peer answers, or has agreed with."""
    return tuple(state["partners"].tolist()) if "partners" in state else ()


def _posts(to: tuple[int, ...], parcel: Parcel) -> list[Post]:
    return [Post(to=to, parcel=parcel)] if to else []


def _mean(vectors: Mapping[int, Tensor]) -> Tensor:
    """Return the plain mean, summed in order of peer."""
    total, *others = (vectors[peer] for peer in sorted(vectors))
    for one in others:
        total = total + one
    return total / len(vectors)
