"""What is taken for granted of updates that cannot be computed, and how it is learned."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attacks.isolation.unknowns import Unknowns

MOST = 0.999
"""The correlation of peers that is learned is at most this, so that nobody counts as a copy."""
LEAST = 1e-14
"""The change between rounds that is learned is at least this: rounding of double precision."""


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What is taken for granted of the unknown vectors, per coordinate: Gaussian, of mean zero.

    The correlation of two updates is that of their rounds, times 1 for one peer and
    `peer_correlation` for two. Each round an update keeps all but `round_change` of itself, and so
    much of it is new, by length: of two successive rounds the correlation is
    sqrt(1 - round_change^2), of later ones a power of that. Starts depend on nothing.

    Attributes:
        update_std: Standard deviation of an update, root mean square over coordinates.
        start_std: Of a peer's own start.
        round_change: Of the updates of a peer in successive rounds, 0 to 1; 1 where they have
            nothing to do with each other.
        peer_correlation: Of the updates of two peers in a round, 0 to 1.
    """

    update_std: float = 1.0
    start_std: float = 1.0
    round_change: float = 1.0
    peer_correlation: float = 0.0

    def __post_init__(self) -> None:
        for name in ("update_std", "start_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("round_change", "peer_correlation"):
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
        change, gamma = self.round_change, self.peer_correlation
        rho = np.sqrt((1 - change) * (1 + change))
        lags = np.arange(rounds)
        in_time = np.tril(rho ** np.abs(lags[:, None] - lags[None, :]).astype(float))
        in_time[:, 1:] *= change
        # symmetric square root of (1 - gamma) I + gamma 1 1^T
        low, high = np.sqrt(1 - gamma), np.sqrt(1 - gamma + gamma * num_peers)
        mixed = np.einsum("mtk,ts->msk", updates, in_time)
        mixed = low * mixed + (high - low) * mixed.mean(axis=2, keepdims=True)
        flat = self.update_std * mixed.reshape(len(rows), rounds * num_peers)
        return np.concatenate([self.start_std * rows[:, :starts], flat], axis=1)


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
        peer_correlation=_correlation(updates, across),
    )


def size_of(vector: Tensor) -> float:
    """Return the root mean square of a vector over its coordinates; 0 for an empty one."""
    return float(vector.double().square().mean().sqrt()) if vector.numel() else 0.0


Pairs = Sequence[tuple[tuple[int, int], tuple[int, int]]]


def _change(updates: Mapping[tuple[int, int], Tensor], pairs: Pairs) -> float:
    """Return the sine of pairs of updates of one shape, all pairs together, from LEAST to 1.

    It is computed from differences: a cosine could not tell sines below 1e-8 from each other.
    """
    apart = lengths = 0.0
    for left, right in _fitting(updates, pairs):
        one, other = float(left.norm()), float(right.norm())
        apart += (float((left - right).norm()) ** 2 - (one - other) ** 2) / 2
        lengths += one * other
    if lengths <= 0:
        return 1.0
    missing = min(max(apart / lengths, 0.0), 1.0)  # what the cosine lacks to 1
    return max(float(np.sqrt(missing * (2 - missing))), LEAST)


def _correlation(updates: Mapping[tuple[int, int], Tensor], pairs: Pairs) -> float:
    """Return the cosine of pairs of updates of one shape, all pairs together, from 0 to MOST."""
    dots = lengths = 0.0
    for left, right in _fitting(updates, pairs):
        dots += float(torch.dot(left, right))
        lengths += float(left.norm() * right.norm())
    return min(max(dots / lengths, 0.0), MOST) if lengths > 0 else 0.0


def _fitting(
    updates: Mapping[tuple[int, int], Tensor], pairs: Pairs
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the pairs that tell of the same coordinates, flat and of double precision."""
    for one, other in pairs:
        left, right = updates[one].double().flatten(), updates[other].double().flatten()
        if left.shape == right.shape:
            yield left, right
