"""Updates of peers that tell each other sparse changes of their models, as CHOCO-SGD has it.

A peer steps, says by how much some entries differ from the copy that others hold of it, and moves
towards the copies of its neighbours: y = x + step u, q = (y - c) on the places sent, c <- c + q,
x <- y + gamma sum_j W_ij (c_j - c_i). Which places are sent depends on the values, so messages are
not linear in the updates. But whoever hears them knows the copies, hence y where it was just sent;
and x where it was sent in the round before, if it knows the copies of all neighbours as well. Where
both are known, so is the update of that one round.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attacks.isolation.prior import size_of
from attacks.isolation.updates import Isolated


@dataclass(kw_only=True, eq=False)
class SparseChanges:
    """What whoever hears them knows of the peers.

    Attributes:
        start: Weights that all begin with, (D,); every copy begins as it.
        step: What an update is multiplied by before it is added to weights.
        gamma: How far peers move towards the copies, of the whole way.
        precision: Relative error of a number that was heard.
        copies: Of each peer that was heard, (D,).
        models: Of each peer, the weights before its next update, (D,), best guess.
        known: Of each peer, where `models` is exact, (D,) bool.
        taken: Messages that were taken in, by sender and round.
        owed: Of each peer that did not listen, whose changes it is still to be told.
        broken: Peers of which a change got lost for good: their copies stay wrong.
    """

    start: Tensor
    step: float
    gamma: float
    precision: float = 2.0**-24
    copies: dict[int, Tensor] = field(default_factory=dict)
    models: dict[int, Tensor] = field(default_factory=dict)
    known: dict[int, Tensor] = field(default_factory=dict)
    taken: set[tuple[int, int]] = field(default_factory=set)
    owed: dict[int, set[int]] = field(default_factory=dict)
    broken: set[int] = field(default_factory=set)

    def take(
        self,
        server_round: int,
        said: Mapping[tuple[int, int], Mapping[str, Tensor] | None],
        weights: Mapping[int, Mapping[int, float]],
        *,
        deaf: Collection[int] = (),
    ) -> list[Isolated]:
        """Take in what was heard in a round; return what follows of the updates, in order of peer.

        Args:
            server_round: From 1; rounds come in order.
            said: `values` (n,) and `places` (n,) int64, by sender and the round in which it was
                said, which is an earlier one where it came late; None where nobody could take it.
            weights: By peer whose messages are heard if it says anything, what it gives to each
                peer that it hears, and to itself.
            deaf: Peers that spoke in this round and are known not to have listened.
        """
        for peer in weights:
            self.copies.setdefault(peer, self.start.double())
            self.models.setdefault(peer, self.start.double())
            self.known.setdefault(peer, torch.ones(self.start.shape, dtype=torch.bool))
        self.broken |= {peer for (peer, _), change in said.items() if change is None}
        changes: dict[int, Mapping[str, Tensor]] = {}
        for (peer, number), change in sorted(said.items(), key=lambda item: item[0]):
            if change is None or (peer, number) in self.taken:
                continue
            self.taken.add((peer, number))
            copy = self.copies[peer].clone()
            copy[change["places"]] += change["values"].double()
            self.copies[peer] = copy
            if number == server_round:
                changes[peer] = change
            else:  # whoever was told in time has moved by it since, and so has its sender
                self._forget([other for other in weights if peer in weights[other]])
        self._forget(self.broken)
        found = [self._told(server_round, peer, changes[peer]) for peer in sorted(changes)]
        for peer in sorted(weights):
            if peer in changes:
                self._mix(peer, changes, weights, deaf=peer in deaf)
            if peer not in changes or peer in deaf:
                self.owed.setdefault(peer, set()).update(set(weights[peer]) & set(changes) - {peer})
        return [one for one in found if one is not None]

    def _forget(self, peers: Collection[int]) -> None:
        for peer in peers:
            self.known[peer] = torch.zeros(self.start.shape, dtype=torch.bool)

    def _told(self, server_round: int, peer: int, change: Mapping[str, Tensor]) -> Isolated | None:
        sent = torch.zeros(self.start.shape, dtype=torch.bool)
        sent[change["places"]] = True
        visible = sent & self.known[peer]
        if not bool(visible.any()):
            return None
        update = torch.where(visible, (self.copies[peer] - self.models[peer]) / self.step, 0.0)
        size = size_of(update[visible])
        error = self.precision * size_of(self.copies[peer][visible]) / abs(self.step)
        sure = bool(self.known[peer].all())
        return Isolated(
            peer=peer,
            round=server_round,
            update=update,
            visible=None if bool(visible.all()) else visible,
            expected_error=error / size if size else 0.0,
            noise_gain=error / size / self.precision if size else 0.0,
            weights=self.models[peer],
            weights_how="exact" if sure else "estimated",
            num_heard=1,
        )

    def _mix(
        self,
        peer: int,
        changes: Mapping[int, Mapping[str, Tensor]],
        weights: Mapping[int, Mapping[int, float]],
        *,
        deaf: bool,
    ) -> None:
        """Move the model of a peer as it does itself, as far as its neighbours are heard."""
        others = [other for other in sorted(weights[peer]) if other != peer]
        pull = torch.zeros_like(self.copies[peer])
        for other in others:
            if other in changes:
                pull = pull + weights[peer][other] * (self.copies[other] - self.copies[peer])
        sent = torch.zeros(self.start.shape, dtype=torch.bool)
        sent[changes[peer]["places"]] = True
        if deaf:
            self.models[peer], self.known[peer] = self.copies[peer], sent
            return
        # what it is told late moves it as well, whether its sender speaks in this round or not
        in_time = self.owed.pop(peer, set()) <= set(changes)
        self.models[peer] = self.copies[peer] + self.gamma * pull
        self.known[peer] = sent & torch.tensor(in_time and set(others) <= set(weights))
