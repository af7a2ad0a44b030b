"""What is taken for granted of updates that cannot be computed, and how it is learned."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attacks.isolation.unknowns import Unknowns

MOST = 0.999
"""Correlations of peers, and of changes, that are learned are at most this, so that nobody counts
as a copy, and no change as one that lasts."""
LEAST = 1e-14
"""The change between rounds that is learned is at least this: rounding of double precision."""


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What is taken for granted of the unknown vectors, per coordinate: Gaussian, of mean zero.

    The correlation of two updates is that of their rounds, times 1 for one peer and
    `peer_correlation` for two. Each round an update keeps all but `round_change` of itself, and so
    much of it is new, by length. What is new in successive rounds has the correlation
    `change_correlation`: 0 where updates jump about, near 1 where they drift, as gradients of
    smooth losses do. Without it, the correlation of two successive updates is
    sqrt(1 - round_change^2), of later ones a power of that. Starts depend on nothing.

    Attributes:
        update_std: Standard deviation of an update, root mean square over coordinates.
        start_std: Of a peer's own start.
        round_change: Of the updates of a peer in successive rounds, 0 to 1; 1 where they have
            nothing to do with each other.
        change_correlation: Of the changes of a peer's update in successive rounds, 0 to 1.
        peer_correlation: Of the updates of two peers in a round, 0 to 1.
    """

    update_std: float = 1.0
    start_std: float = 1.0
    round_change: float = 1.0
    change_correlation: float = 0.0
    peer_correlation: float = 0.0

    def __post_init__(self) -> None:
        for name in ("update_std", "start_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("round_change", "change_correlation", "peer_correlation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")

    def stds(self, unknowns: Unknowns) -> np.ndarray:
        """Return the standard deviation of each unknown, (U,)."""
        stds = np.full(len(unknowns), self.update_std)
        stds[: unknowns.num_starts] = self.start_std
        return stds

    def factor(self, unknowns: Unknowns, rows: np.ndarray) -> np.ndarray:
        """Return rows @ F, (M, U), where F F^T is the covariance of the unknowns.

        Rows of the result are the rows in terms of independent unknowns of unit variance.
        """
        starts, num_peers, rounds = unknowns.num_starts, unknowns.num_peers, unknowns.rounds
        updates = rows[:, starts:].reshape(len(rows), rounds, num_peers)
        gamma, in_time = self.peer_correlation, self._in_time(rounds)
        # symmetric square root of (1 - gamma) I + gamma 1 1^T
        low, high = np.sqrt(1 - gamma), np.sqrt(1 - gamma + gamma * num_peers)
        mixed = np.einsum("mtk,ts->msk", updates, in_time)
        mixed = low * mixed + (high - low) * mixed.mean(axis=2, keepdims=True)
        flat = self.update_std * mixed.reshape(len(rows), rounds * num_peers)
        return np.concatenate([self.start_std * rows[:, :starts], flat], axis=1)

    def _in_time(self, rounds: int) -> np.ndarray:
        """Return F (T, T), where F F^T is the correlation of the updates of a peer over rounds.

        The first column is the update of the first round, each other what is new in one.
        """
        change, lasts = self.round_change, self.change_correlation
        kept = _powers(np.sqrt((1 - change) * (1 + change)), rounds)
        kept[:, 1:] *= change
        if lasts:
            new = _powers(lasts, rounds - 1)
            new[:, 1:] *= np.sqrt(1 - lasts**2)
            kept[:, 1:] = kept[:, 1:] @ new
            kept /= np.linalg.norm(kept, axis=1, keepdims=True)  # of one size in all rounds
        return kept


def _powers(base: float, count: int) -> np.ndarray:
    """Return base^(i - j) below the diagonal and on it, (count, count)."""
    lags = np.arange(count)
    return np.tril(base ** np.abs(lags[:, None] - lags[None, :]).astype(float))


def learned(updates: Mapping[tuple[int, int], Tensor], start_std: float) -> Prior:
    """Return the prior that fits updates which are known, by method of moments.

    Args:
        updates: By peer and round, each (D,), or the part of it that is known.
        start_std: Root mean square of a start.
    """
    if not updates:
        return Prior(start_std=start_std)
    mean_square = float(np.mean([size_of(one) ** 2 for one in updates.values()]))
    pairs = sorted(updates)
    in_time = [(one, (one[0], one[1] + 1)) for one in pairs if (one[0], one[1] + 1) in updates]
    across = [
        (one, other) for one in pairs for other in pairs if one[1] == other[1] and one[0] < other[0]
    ]
    return Prior(
        update_std=max(mean_square**0.5, 1e-30),
        start_std=start_std,
        round_change=_change(updates, in_time),
        change_correlation=_correlation(_changes(updates, in_time)),
        peer_correlation=_correlation(_fitting(updates, across)),
    )


def size_of(vector: Tensor) -> float:
    """Return the root mean square of a vector over its coordinates; 0 for an empty one."""
    return float(vector.double().square().mean().sqrt()) if vector.numel() else 0.0


Pairs = Sequence[tuple[tuple[int, int], tuple[int, int]]]


def _change(updates: Mapping[tuple[int, int], Tensor], pairs: Pairs) -> float:
    """Return what is new in the second of each pair, all pairs together, from LEAST to 1.

    A change of length counts like one of direction, so that updates which shrink are not taken to
    stay as they are. All is computed from differences: a cosine could not tell changes below 1e-8
    from each other.
    """
    apart = lengths = 0.0
    for left, right in _fitting(updates, pairs):
        apart += float((left - right).norm()) ** 2
        lengths += float(left.norm()) ** 2 + float(right.norm()) ** 2
    if lengths <= 0:
        return 1.0
    missing = min(apart / lengths, 1.0)  # what the correlation lacks to 1
    return max(float(np.sqrt(missing * (2 - missing))), LEAST)


def _correlation(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return the cosine of pairs of vectors, all pairs together, from 0 to MOST."""
    dots = lengths = 0.0
    for left, right in pairs:
        dots += float(torch.dot(left, right))
        lengths += float(left.norm() * right.norm())
    return min(max(dots / lengths, 0.0), MOST) if lengths > 0 else 0.0


def _changes(
    updates: Mapping[tuple[int, int], Tensor], pairs: Pairs
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what changed from one update of a peer to the next, and from there to the one after."""
    after = dict(pairs)
    for one, later in pairs:
        if (last := after.get(later)) is not None:
            triple = [updates[key].double().flatten() for key in (one, later, last)]
            if len({len(update) for update in triple}) == 1:
                yield triple[1] - triple[0], triple[2] - triple[1]


def _fitting(
    updates: Mapping[tuple[int, int], Tensor], pairs: Pairs
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the pairs that tell of the same coordinates, flat and of double precision."""
    for one, other in pairs:
        left, right = updates[one].double().flatten(), updates[other].double().flatten()
        if left.shape == right.shape:
            yield left, right
