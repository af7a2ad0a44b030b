"""Peel a batch off the first layer, image by image (Shariati and Meybodi, 2026, arXiv 2609.09659).

For z = W x + b followed by a ReLU, the gradient (G, h) of (W, b) is the sum over the examples of
s (x, 1)^T / B, s = dL/dz being zero where z < 0. A row j in which one example alone is active is
that example: x = G_j / h_j. Whether it is one example is not known, but can be proved: run the
candidate through the network, compute its s for every label, and compare. Then take all that was
proved off the gradient, which leaves further rows with one example alone, and repeat.

Differs from the paper:

- A candidate must pass two tests. At its own row, B h_j = s_j for a label: one equation. And all
  of its s, one number per row, must lie in the column space of the gradient, which has at most B
  of m dimensions: m - B equations, which leave nothing to chance and tell close labels apart.
- Tolerances follow from the noise in the gradient, which is what it has beyond rank B: rounding
  in transport or noise that was added. Nothing is assumed about the number format.
- Proved images are polished: all rows that they explain together determine them in least squares,
  so that errors do not pile up from round to round.
- An image that is in the batch several times is found with all its labels.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.column_space import noise_of
from attacks.lone_rows import Found, RowSearch
from attacks.observation import AttackFailed, Budget, Knowledge, Observation, Reconstruction
from attacks.sparse_layer import SparseGradient, SparseLayerAttack, sparse_gradient


@dataclass(frozen=True, kw_only=True, eq=False)
class Peeled:
    """Examples proved to be in the batch; n of them, showing u different images.

    Attributes:
        inputs: Inputs of the layer, (n, D), float64.
        labels: (n,), int64.
        chance: Logarithm to base 10 of the chance that a proof is a coincidence, (n,).
        residual: Norm of what is left of the layer's gradient, relative to all of it.
        noise: Norm of the noise in the layer's gradient, relative to all of it.
        rounds: Rounds of peeling.
        finished: False when the budget ended it.
    """

    inputs: Tensor
    labels: Tensor
    chance: Tensor
    residual: float
    noise: float
    rounds: int
    finished: bool


def cascade(
    heard: SparseGradient,
    *,
    rng: torch.Generator,
    copies: int = 2,
    budget: Budget | None = None,
) -> Peeled:
    """Peel off all examples that can be proved; see the module.

    Args:
        heard: The gradient of the first layer.
        rng: Draws the directions that find the column space.
        copies: How often one image may be in the batch.
        budget: Ends it early, with what is proved so far.
    """
    layer, gradient, batch_size = heard.layer, heard.gradient, heard.batch_size
    noise = noise_of(gradient, heard.heard, batch_size, rng)
    search = RowSearch(layer, gradient, heard.heard, noise, batch_size, rng)
    found = Found.nothing(gradient, len(layer.low))
    rounds, finished, together = 0, True, 1
    while len(found) < batch_size and together <= copies:
        if budget is not None and budget.spent:
            finished = False
            break
        more = search.peel(found, together)
        rounds += 1
        together = 1 if len(more) > len(found) else together + 1
        found = search.polish(more)
    return Peeled(
        inputs=found.inputs[found.owners],
        labels=found.labels,
        chance=found.chance[found.owners],
        residual=float(search.left(found).gradient.norm() / gradient.norm()),
        noise=float(noise.rows.norm() * math.sqrt(gradient.shape[1]) / gradient.norm()),
        rounds=rounds,
        finished=finished,
    )


@dataclass(frozen=True, kw_only=True)
class Cascade(SparseLayerAttack):
    """Recover, with a proof, as many images of a batch as rows show alone.

    Attributes:
        copies: How often one image may be in the batch; searching for copies takes one more
            round, and K^copies comparisons per row.
    """

    copies: int = 2

    def __post_init__(self) -> None:
        """Refuse a number of copies that means nothing."""
        if self.copies < 1:
            raise ValueError(f"copies must be at least 1, got {self.copies}")

    def __call__(
        self,
        seen: Observation | Sequence[Observation],
        known: Knowledge,
        *,
        rng: torch.Generator,
        budget: Budget | None = None,
    ) -> Reconstruction:
        """Recover the examples behind one update that can be proved.

        Shapes:
            returns .inputs: (n, C, H, W), n <= B
            returns .labels: (n,) int64
            returns .certified: (n,), all True

        Raises:
            AttackFailed: Nothing could be proved, or the first layer cannot be attacked so.
        """
        start = time.monotonic()
        heard = sparse_gradient(seen, known)
        peeled = cascade(heard, rng=rng, copies=self.copies, budget=budget)
        if not len(peeled.labels) and not peeled.finished:
            raise AttackFailed("the time allowed ended it before anything was proved")
        if not len(peeled.labels):
            raise AttackFailed(
                f"no row of layer '{heard.layer.name}' shows one example alone that could be "
                f"proved: noise is {peeled.noise:.1e} of the gradient; the batch may be too large "
                f"for {len(heard.heard)} rows, or the gradient too noisy, or not of this model"
            )
        images = heard.layer.to_pixels(peeled.inputs)
        return Reconstruction(
            inputs=images.to(heard.dtype),
            labels=peeled.labels,
            steps=peeled.rounds,
            seconds=time.monotonic() - start,
            finished=peeled.finished,
            certified=torch.ones_like(peeled.labels, dtype=torch.bool),
            notes={
                "proved": float(len(peeled.labels)),
                "not_found": float(heard.batch_size - len(peeled.labels)),
                "chance_log10": float(peeled.chance.max()),
                "residual": peeled.residual,
                "noise": peeled.noise,
            },
        )
