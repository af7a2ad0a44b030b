"""Updates of peers that tell each other sparse changes of their models, as CHOCO-SGD has it.

A peer steps, says by how much some entries differ from the copy that others hold of it, and moves
towards the copies of its neighbours: y = x + step u, q = (y - c) on the places sent, c <- c + q,
x <- y + gamma sum_j W_ij (c_j - c_i). Which places are sent depends on the values, so messages are
not linear in the updates. But whoever hears them knows the copies, hence y where it was just sent;
and x where it was sent in the round before, if it knows the copies of all neighbours as well. Where
both are known, so is the update of that one round.
"""

from collections.abc import Mapping, Sequence
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
    """

    start: Tensor
    step: float
    gamma: float
    precision: float = 2.0**-24
    copies: dict[int, Tensor] = field(default_factory=dict)
    models: dict[int, Tensor] = field(default_factory=dict)
    known: dict[int, Tensor] = field(default_factory=dict)

    def take(
        self,
        server_round: int,
        changes: Mapping[int, Mapping[str, Tensor]],
        weights: Mapping[int, Mapping[int, float]],
        heard: Sequence[int],
    ) -> list[Isolated]:
        """Take in what was said in a round; return what follows of the updates, in order of peer.

        Args:
            server_round: From 1; rounds come in order.
            changes: `values` (n,) and `places` (n,) int64, by sender.
            weights: By peer, what it gives to each peer that it hears, and to itself.
            heard: Peers whose messages are heard if they say anything.
        """
        for peer in heard:
            self.copies.setdefault(peer, self.start.double())
            self.models.setdefault(peer, self.start.double())
            self.known.setdefault(peer, torch.ones(self.start.shape, dtype=torch.bool))
        for peer, change in changes.items():
            copy = self.copies[peer].clone()
            copy[change["places"]] += change["values"].double()
            self.copies[peer] = copy
        found = [self._told(server_round, peer, changes[peer]) for peer in sorted(changes)]
        for peer in sorted(changes):
            self._mix(peer, changes, weights[peer], heard)
        return [one for one in found if one is not None]

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
        weights: Mapping[int, float],
        heard: Sequence[int],
    ) -> None:
        """Move the model of a peer as it does itself, as far as its neighbours are heard."""
        others = [other for other in sorted(weights) if other != peer]
        pull = torch.zeros_like(self.copies[peer])
        for other in others:
            if other in changes:
                pull = pull + weights[other] * (self.copies[other] - self.copies[peer])
        sent = torch.zeros(self.start.shape, dtype=torch.bool)
        sent[changes[peer]["places"]] = True
        self.models[peer] = self.copies[peer] + self.gamma * pull
        self.known[peer] = sent & torch.tensor(set(others) <= set(heard))
