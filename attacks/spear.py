"""SPEAR: a whole batch from the sparsity of one layer (Dimitrov et al., 2024, arXiv 2403.03945).

For z = W x + b followed by a ReLU, the gradient of (W, b) is S X^T / B with sensitivities S (m, B)
that are zero where a row is not active, and inputs X. Its factors are known up to an invertible
B x B matrix: S / B = U Q for a basis U of the column space. A column of Q is orthogonal to every
row of U in which its example is not active, so B - 1 such rows give it away. Rows are guessed; a
direction q is right if U q has many zeros, where a wrong one has the B - 1 that were asked for.
With all columns, the bias gradient gives their lengths, and X follows by solving with Q.

As in the paper, the best set is searched greedily by how well signs of W X + b agree with zeros
of S. Differs from the paper: rows are not guessed uniformly, but rather those that W and b make
inactive for a grey image, of any brightness; a direction is read off all of its zeros, and thrown
away if they do not determine it, as those of a mixture do not; sampling ends when a whole set is
found; the last column follows from the others, which show its image; labels come from recomputing
S, which also proves each image.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.column_space import Noise, noise_of
from attacks.first_layer import FirstLayer
from attacks.observation import AttackFailed, Budget, Knowledge, Observation, Reconstruction
from attacks.sparse_layer import SparseLayerAttack, sparse_gradient

_ZERO = 1e-9
"""Entries of a unit vector below this are zero, if there is no noise."""
_LOUD = 6.0
"""And below so many standard deviations of the noise, if there is."""
_SAME = 1e-3
"""Directions whose sines are below this are the same."""
_MORE_ZEROS = 4
"""Zeros beyond those that were asked for."""
_CONSIDERED = 256
"""Directions of one round that are looked at more closely, the sparsest."""
_KEPT = 5
"""Directions that are kept, times the rank."""
_WITNESSES = 1.5
"""Effective number of rows that must tell a direction from its nearest mixture."""
_PROVED = 1e-3
"""Largest relative misfit of a proved image's recomputed sensitivities, beyond the noise's."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Space:
    """The column space of a gradient, on the rows that are not dead.

    Attributes:
        basis: U, (m', R), close to orthonormal.
        right: R of gradient = U R, (R, D + 1).
        noise: Standard deviation of the noise in a row of U q for the length of q, (m', R).
        rows: Which rows of the layer these are, (m',).
    """

    basis: Tensor
    right: Tensor
    noise: Tensor
    rows: Tensor

    def zeros(self, directions: Tensor) -> Tensor:
        """Return which entries of U q are zero up to noise, (n, m') bool, for q (n, R)."""
        spread = (self.noise.square() @ directions.square().T).sqrt().T
        found: Tensor = (directions @ self.basis.T).abs() <= _ZERO + _LOUD * spread
        return found


@dataclass(frozen=True, kw_only=True)
class Spear(SparseLayerAttack):
    """Recover a whole batch from the gradient of its first linear layer, followed by a ReLU.

    Attributes:
        samples: Guesses of rows before it gives up; the time grows with their number.
        at_once: Guesses computed together.
        preference: For rows that a grey image leaves inactive; 0 guesses uniformly, as
            published.
        least_zeros: Share of the rows in which an example must be inactive.
    """

    samples: int = 2_000_000
    at_once: int = 2_048
    preference: float = 1.5
    least_zeros: float = 0.05

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if self.samples < 1 or self.at_once < 1 or self.preference < 0:
            raise ValueError(
                "samples and at_once must be at least 1 and preference at least 0, got "
                f"{self.samples}, {self.at_once} and {self.preference}"
            )
        if not 0 < self.least_zeros < 1:
            raise ValueError(f"least_zeros must be between 0 and 1, got {self.least_zeros}")

    def __call__(
        self,
        seen: Observation | Sequence[Observation],
        known: Knowledge,
        *,
        rng: torch.Generator,
        budget: Budget | None = None,
    ) -> Reconstruction:
        """Recover the batch behind one update.

        Shapes:
            returns .inputs: (b, C, H, W), b = B unless images are there several times
            returns .labels: (b,) int64
            returns .certified: (b,), where recomputed sensitivities are those found

        Raises:
            AttackFailed: Too few sparse directions were found, or the layer cannot be attacked so.
        """
        start = time.monotonic()
        heard = sparse_gradient(seen, known)
        layer, batch_size = heard.layer, heard.batch_size
        noise = noise_of(heard.gradient, heard.heard, batch_size, rng)
        space = _space(heard.gradient, noise)
        rank = space.basis.shape[1]
        blur = _PROVED + float(noise.rows.norm() / noise.strengths.min())

        def read(directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            inputs, parts = _solve(space, directions)
            return inputs, *_labels(space, layer, inputs, parts * batch_size)

        def proved(directions: Tensor) -> bool:
            chosen = _completed(space, layer, directions[_sparsest(directions)])
            return len(chosen) == rank and bool((read(chosen)[2] <= blur).all())

        directions, tried, finished = self._search(space, layer, proved, rng, budget)
        chosen = _completed(space, layer, directions[_sparsest(directions)])
        if len(chosen) < rank:
            raise AttackFailed(
                f"found {len(chosen)} of {rank} sparse directions in {tried} guesses; "
                + ("try more samples" if finished else "the time allowed ended it")
            )
        if not proved(directions):
            chosen = _swap(space, layer, directions, chosen)
        inputs, labels, misfit = read(chosen)
        images = layer.to_pixels(inputs)
        return Reconstruction(
            inputs=images.to(heard.dtype),
            labels=labels,
            steps=tried,
            seconds=time.monotonic() - start,
            finished=finished,
            certified=misfit <= blur,
            notes={
                "agreement": _agreement(space, layer, chosen),
                "rank": float(rank),
                "misfit": float(misfit.max()),
            },
        )

    def _search(
        self,
        space: _Space,
        layer: FirstLayer,
        proved: Callable[[Tensor], bool],
        rng: torch.Generator,
        budget: Budget | None,
    ) -> tuple[Tensor, int, bool]:
        """Guess rows until the sparse directions found prove a whole batch.

        Returns:
            Directions, (n, R), the sparsest first; guesses made; False if the budget ended it.
        """
        rank = space.basis.shape[1]
        if rank == 1:
            return space.basis.new_ones(1, 1), 0, True
        found = space.basis.new_empty(0, rank)
        black, white = layer.outputs(torch.stack([layer.low, layer.high]))[:, space.rows]
        tried = 0
        while tried < self.samples:
            if budget is not None and budget.spent:
                return found, tried, False
            grey = torch.rand(self.at_once, 1, generator=rng).to(black)
            outputs = black + grey * (white - black)
            wanted = -self.preference * outputs / outputs.std(dim=1, keepdim=True)
            candidates = _null_vectors(space.basis, wanted, rng)
            tried += self.at_once
            found = self._keep(space, torch.cat([found, candidates]))
            if proved(found):
                break
        return found, tried, True

    def _keep(self, space: _Space, candidates: Tensor) -> Tensor:
        """Return the directions that are sparse, each once, read off all their zeros."""
        rank = space.basis.shape[1]
        least = max(self.least_zeros * len(space.basis), rank + _MORE_ZEROS)
        for _ in range(2):
            counts = space.zeros(candidates).sum(1)
            candidates = _each_once(candidates[counts >= least], counts[counts >= least])
            zeros = space.zeros(candidates[:_CONSIDERED]).to(candidates)
            candidates, second = _orthogonal_to(space.basis, zeros)
            # A mixture of two columns is zero where both are, and so are all their mixtures: some
            # rows alone would tell it from them.
            tells = (second @ space.basis.T * zeros).square()
            number = tells.sum(1).square() / tells.square().sum(1).clamp_min(1e-300)
            loud = (tells * ~space.zeros(second)).sum(1) > 0
            candidates = candidates[loud & (number > _WITNESSES)]
        return _each_once(candidates, space.zeros(candidates).sum(1))[: _KEPT * rank]


def _each_once(directions: Tensor, counts: Tensor) -> Tensor:
    """Return directions (n, R) with the highest counts first, none of them twice."""
    directions = directions[counts.argsort(descending=True, stable=True)]
    alike = (directions @ directions.T).abs() > 1 - _SAME**2 / 2
    return directions[~alike.tril(-1).any(1)]


def _space(gradient: Tensor, noise: Noise) -> _Space:
    """Return the column space, without rows in which nothing is heard."""
    right = noise.basis.T @ gradient
    signal = (gradient.square().mean(1)).sqrt() > 3 * noise.rows
    rows = signal.nonzero().flatten()
    if len(rows) <= 2 * len(right) or not len(right):
        raise AttackFailed(
            f"{len(rows)} live rows are too few to find {len(right)} sparse directions; "
            "the layer is too narrow for the batch, or the gradient is noise"
        )
    return _Space(
        basis=noise.basis[rows],
        right=right,
        noise=noise.rows[rows, None] / noise.strengths,
        rows=rows,
    )


def _null_vectors(basis: Tensor, wanted: Tensor, rng: torch.Generator) -> Tensor:
    """Return unit vectors orthogonal to R - 1 random rows of `basis` (m, R), (n, R).

    Args:
        basis: U.
        wanted: Logarithm of each row's weight in the draws without replacement, (n, m).
        rng: Draws the rows.
    """
    gumbel = -torch.rand(wanted.shape, generator=rng).log().neg().log().to(basis)
    picks = (wanted + gumbel).topk(basis.shape[1] - 1, dim=1).indices
    null: Tensor = torch.linalg.qr(basis[picks].mT, mode="complete").Q[:, :, -1]
    return null


def _orthogonal_to(basis: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Minimise the weighted sum of (U q)^2 over unit vectors q, for weights (n, m).

    Returns:
        The best q, and the best one orthogonal to it, each (n, R).
    """
    rank = basis.shape[1]
    if not len(weights):
        return basis.new_empty(0, rank), basis.new_empty(0, rank)
    products = (basis[:, :, None] * basis[:, None, :]).flatten(1)
    vectors = torch.linalg.eigh((weights @ products).view(-1, rank, rank)).eigenvectors
    return vectors[:, :, 0], vectors[:, :, 1]


def _solve(space: _Space, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inputs (R, D) and sensitivities / B (R, m') that a full set of columns implies."""
    columns = directions.T
    bias = space.right[:, -1]
    lengths = torch.linalg.solve(columns, bias)
    safe = torch.where(lengths.abs() > 0, lengths, torch.finfo(lengths.dtype).tiny)
    right = torch.linalg.solve(columns, space.right[:, :-1])
    return right / safe[:, None], (space.basis @ (columns * lengths)).T


def _agreement(space: _Space, layer: FirstLayer, directions: Tensor) -> float:
    """Return how many signs of W X + b agree with the zeros of U Q, as a share."""
    inputs, _ = _solve(space, directions)
    if not bool(inputs.isfinite().all()):
        return 0.0
    active = layer.outputs(inputs)[:, space.rows] > 0
    return float((active == ~space.zeros(directions)).double().mean())


def _sparsest(directions: Tensor) -> list[int]:
    """Return the first directions (n, R), the sparsest, that are linearly independent."""
    chosen: list[int] = []
    rank = directions.shape[1]
    taken = directions.new_empty(0, rank)
    for index in range(len(directions)):
        rest = directions[index] - taken.T @ (taken @ directions[index])
        if len(chosen) < rank and float(rest.norm()) > _SAME:
            chosen.append(index)
            taken = torch.cat([taken, (rest / rest.norm())[None]])
    return chosen


def _completed(space: _Space, layer: FirstLayer, directions: Tensor) -> Tensor:
    """Add the last of R directions when the others are there.

    What is orthogonal to all others shows the last image alone, scaled by its bias entry; its
    sensitivities, for the label that puts them into the space, are the direction.
    """
    rank = space.basis.shape[1]
    if len(directions) != rank - 1:
        return directions
    alone = torch.linalg.qr(directions.T, mode="complete").Q[:, -1] @ space.right
    outputs = layer.outputs((alone[:-1] / alone[-1])[None]).expand(layer.num_classes, -1)
    targets = torch.arange(layer.num_classes, device=outputs.device)
    s = layer.sensitivities(outputs, targets)[:, space.rows]
    inner = s @ space.basis
    share = inner.norm(dim=1) / s.norm(dim=1).clamp_min(torch.finfo(s.dtype).tiny)
    last = inner[share.argmax()]
    return torch.cat([directions, (last / last.norm())[None]])


def _swap(space: _Space, layer: FirstLayer, directions: Tensor, chosen: Tensor) -> Tensor:
    """Swap chosen directions (R, R) for others while more signs agree with zeros."""
    best = _agreement(space, layer, chosen)
    for other in directions:
        for place in range(len(chosen)):
            swapped = torch.cat([chosen[:place], other[None], chosen[place + 1 :]])
            if float(torch.linalg.svdvals(swapped)[-1]) > _SAME:
                agreement = _agreement(space, layer, swapped)
                if agreement > best:
                    chosen, best = swapped, agreement
    return chosen


def _labels(
    space: _Space, layer: FirstLayer, inputs: Tensor, found: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the label whose sensitivities are closest to those found, and how far they are off.

    Args:
        space: Which rows.
        layer: The model in force.
        inputs: (R, D).
        found: Sensitivities (R, m').

    Returns:
        Labels, (R,); the misfit relative to `found`, (R,).
    """
    outputs = layer.outputs(inputs)
    misfits = []
    for label in range(layer.num_classes):
        targets = torch.full((len(outputs),), label, device=outputs.device)
        recomputed = layer.sensitivities(outputs, targets)[:, space.rows]
        misfits.append((recomputed - found).norm(dim=1) / found.norm(dim=1))
    misfit, labels = torch.stack(misfits, 1).min(1)
    return labels, misfit
