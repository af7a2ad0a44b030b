"""The column space of a layer's gradient, and how far vectors lie outside of it.

The gradient of a linear layer is a sum over B examples of s x^T / B, so its columns lie in a space
of at most B dimensions, that of the sensitivities s. What the gradient has beyond it is noise. The
sensitivities of a candidate must lie there, too: one equation per dimension that is left.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

EXACT = 1e-8
"""Relative error left in a recomputed number when the gradient is exact in double precision."""
CHANCE = -6.0
"""Logarithm to base 10 of the chance, in a whole run, that is allowed for a false proof."""
SIGMAS = 4.0
"""So many standard deviations a true candidate may be off."""
MOST_EQUATIONS = 20
"""Equations that count for a proof; more would only print larger numbers."""
_SPARE = 10
_SUBSPACE_STEPS = 2
_DOUBLE = 4e-16
"""Least noise: rounding in double precision, relative to the row."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Beyond:
    """What N vectors have beyond the column space.

    Attributes:
        lengths: Of the vectors, never zero, (N,).
        rest: The vectors without their parts in the space, (N, m).
        blur: How far noise in the space puts a vector that lies in it, relative, (N,).
    """

    lengths: Tensor
    rest: Tensor
    blur: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Noise:
    """What the gradient has beyond its rank, and the space that its signal lies in.

    Attributes:
        basis: Orthonormal basis of the column space, (m, R).
        strengths: The singular values of the gradient in that space, (R,).
        rows: Standard deviation of the noise of an entry, per row, (m,).
        equations: How many independent equations it is to lie in that space.
    """

    basis: Tensor
    strengths: Tensor
    rows: Tensor
    equations: int

    def beyond(self, vectors: Tensor) -> Beyond:
        """Take the parts of vectors (N, m) in the space off them."""
        lengths = vectors.norm(dim=1).clamp_min(torch.finfo(vectors.dtype).tiny)
        inner = vectors @ self.basis
        return Beyond(
            lengths=lengths,
            rest=vectors - inner @ self.basis.T,
            blur=self.rows.norm() * (inner / self.strengths).norm(dim=1) / lengths,
        )


def noise_of(gradient: Tensor, heard: Tensor, batch_size: int, rng: torch.Generator) -> Noise:
    """Split a gradient (m, D + 1) into B directions of signal and the noise beyond them.

    By subspace iteration from random directions: B is far below m and D.

    Args:
        gradient: Zero in rows that were not heard.
        heard: Which those are, (m,) bool.
        batch_size: B.
        rng: Draws the first directions.
    """
    m, width = gradient.shape
    size = min(batch_size + _SPARE, m, width)
    start = torch.randn(width, size, generator=rng, dtype=torch.float64).to(gradient.device)
    basis = torch.linalg.qr(gradient @ start).Q
    for _ in range(_SUBSPACE_STEPS):
        basis = torch.linalg.qr(gradient @ torch.linalg.qr(gradient.T @ basis).Q).Q
    turn, strengths, _ = torch.linalg.svd(basis.T @ gradient, full_matrices=False)
    basis, strengths = (basis @ turn)[:, :batch_size], strengths[:batch_size]
    beyond = gradient - basis @ (basis.T @ gradient)
    kept = (1 - basis.square().sum(1)).clamp_min(0.05)  # of a row's noise, by that projection
    rows = beyond.norm(dim=1) / (width * kept).sqrt()
    rows = rows.clamp_min(_DOUBLE * gradient.square().mean(1).sqrt())
    loudest = rows.square().sum().sqrt() + rows.max() * math.sqrt(width)
    signal = strengths > loudest
    return Noise(
        basis=basis[:, signal],
        strengths=strengths[signal],
        rows=rows,
        equations=int(heard.sum()) - int(signal.sum()),
    )


def distance_without(left_out: Tensor, beyond: Tensor, basis: Tensor) -> Tensor:
    """Return the distance of vectors from a space when some of their entries do not count.

    Args:
        left_out: Which do not, per vector, (N, m) bool.
        beyond: The vectors without their parts in the space, (N, m).
        basis: Of the space, orthonormal, (m, R).

    Returns:
        (N,): with E the entries left out and Q the projection on the space's complement,
        |r|^2 - r_E^T (Q_EE)^-1 r_E for r = beyond.
    """
    square = beyond.square().sum(1)
    most = int(left_out.sum(1).max()) if len(left_out) else 0
    if most == 0:
        return square.sqrt()
    order = left_out.to(torch.int8).argsort(dim=1, descending=True)[:, :most]
    counts = left_out.gather(1, order).to(basis)
    inside = basis[order] * counts[:, :, None]
    complement = torch.eye(most).to(basis) * (1 + EXACT) - inside @ inside.mT
    entries = beyond.gather(1, order) * counts
    solved = torch.linalg.solve(complement, entries[:, :, None])[:, :, 0]
    distance: Tensor = (square - (entries * solved).sum(1)).clamp_min(0).sqrt()
    return distance


def chance_log10(tests: int, mismatch: Tensor, equations: Tensor | int, distance: Tensor) -> Tensor:
    """Return the logarithm of the chance that any of many tests is passed by accident, (N,).

    Args:
        tests: How many candidates are tested.
        mismatch: Relative misfit in one equation, (N,).
        equations: How many more there are, one for all or (N,).
        distance: Relative misfit in each of those, (N,).
    """
    chance: Tensor = (
        math.log10(max(tests, 1))
        + mismatch.clamp_min(1e-12).log10()
        + equations * distance.clamp_min(1e-12).log10()
    )
    return chance
