"""What is taken for granted of updates that cannot be computed, and how it is learned."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attacks.isolation.unknowns import Unknowns

MOST = 0.999
"""Correlations that are learned are at most this, so that nothing counts as certain."""


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What is taken for granted of the unknown vectors, per coordinate: Gaussian, of mean zero.

    The correlation of two updates is that of their rounds, `round_correlation` to the power of
    their distance, times 1 for one peer and `peer_correlation` for two. Starts depend on nothing.

    Attributes:
        update_std: Standard deviation of an update, root mean square over coordinates.
        start_std: Of a peer's own start.
        round_correlation: Of the updates of a peer in successive rounds, 0 to 1.
        peer_correlation: Of the updates of two peers in a round, 0 to 1.
    """

    update_std: float = 1.0
    start_std: float = 1.0
    round_correlation: float = 0.0
    peer_correlation: float = 0.0

    def __post_init__(self) -> None:
        for name in ("update_std", "start_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("round_correlation", "peer_correlation"):
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
        rho, gamma = self.round_correlation, self.peer_correlation
        lags = np.arange(rounds)
        in_time = np.tril(rho ** np.abs(lags[:, None] - lags[None, :]).astype(float))
        in_time[:, 1:] *= np.sqrt(1 - rho**2)
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
        round_correlation=_correlation(updates, in_time),
        peer_correlation=_correlation(updates, across),
    )


def size_of(vector: Tensor) -> float:
    """Return the root mean square of a vector over its coordinates; 0 for an empty one."""
    return float(vector.double().square().mean().sqrt()) if vector.numel() else 0.0


def _correlation(
    updates: Mapping[tuple[int, int], Tensor],
    pairs: list[tuple[tuple[int, int], tuple[int, int]]],
) -> float:
    """Return the cosine of pairs of updates of one shape, all pairs together, from 0 to MOST."""
    dots = lengths = 0.0
    for one, other in pairs:
        left, right = updates[one].double().flatten(), updates[other].double().flatten()
        if left.shape == right.shape:
            dots += float(torch.dot(left, right))
            lengths += float(left.norm() * right.norm())
    return min(max(dots / lengths, 0.0), MOST) if lengths > 0 else 0.0
