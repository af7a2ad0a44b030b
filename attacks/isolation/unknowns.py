"""Which vectors an adversary does not know, in the order in which rows name them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Unknowns:
    """The starts of peers, and the update of every peer in every round, as columns of a matrix.

    First come the starts: one column for all peers, or one per peer; then the updates of the first
    round by peer, those of the second, and so on.

    Attributes:
        num_peers: N.
        rounds: T.
        own_starts: Whether each peer starts from weights of its own.
    """

    num_peers: int
    rounds: int
    own_starts: bool = False

    @property
    def num_starts(self) -> int:
        """N with own starts, else 1."""
        return self.num_peers if self.own_starts else 1

    def __len__(self) -> int:
        """U."""
        return self.num_starts + self.num_peers * self.rounds

    def start(self, peer: int) -> int:
        """Return the column of the weights that a peer starts from."""
        return peer if self.own_starts else 0

    def update(self, peer: int, server_round: int) -> int:
        """Return the column of the update of a peer (from 0) in a round (from 1)."""
        return self.num_starts + (server_round - 1) * self.num_peers + peer

    def unit(self, column: int) -> np.ndarray:
        """Return the row (U,) float64 of one unknown itself."""
        row = np.zeros(len(self))
        row[column] = 1.0
        return row

    def of_peers(self, peers: Sequence[int]) -> list[int]:
        """Return the columns that belong to some peers alone, in order.

        A common start belongs to nobody, so it is not among them.
        """
        starts = [self.start(peer) for peer in peers] if self.own_starts else []
        return sorted(
            starts + [self.update(peer, one) for peer in peers for one in range(1, self.rounds + 1)]
        )

    def peer_and_round(self, column: int) -> tuple[int, int]:
        """Return whose update a column is, and of which round."""
        server_round, peer = divmod(column - self.num_starts, self.num_peers)
        return peer, server_round + 1

    def constant(self, rows: np.ndarray) -> np.ndarray:
        """Return rows (M, U) in terms of updates that are the same in all rounds, (M, S + N).

        Their columns are those of one round.
        """
        starts = rows[:, : self.num_starts]
        updates = rows[:, self.num_starts :].reshape(len(rows), self.rounds, self.num_peers)
        return np.concatenate([starts, updates.sum(axis=1)], axis=1)

    def label(self, column: int) -> str:
        """Return what a column is, in words."""
        if column < self.num_starts:
            return f"start of peer {column}" if self.own_starts else "start"
        peer, server_round = self.peer_and_round(column)
        return f"update of peer {peer} in round {server_round}"
