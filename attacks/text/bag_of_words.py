"""The words of a batch, without their order, off the token embedding's gradient.

The first half of FILM (Gupta et al., NeurIPS 2022, https://arxiv.org/abs/2205.08514; noted before
by Melis et al., 2019): a token that is in no example has a row of zeros. Where the output layer's
weight is the embedding's, as most language models have it, every token's row has a part from the
softmax, and the tokens of the batch, or those to be predicted, are those with much longer rows.

Differs from the paper: no beam search for the order, which 'dager' tells exactly and 'lamp' by
likelihood; longer rows in place of zeros where weights are tied.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from attacks.network import all_visible
from attacks.observation import (
    AttackFailed,
    Budget,
    Knowledge,
    Observation,
    Reconstruction,
    only,
)
from attacks.text.evidence import heard_of, padded
from attacks.text.language import text_known
from attacks.threats import Capability

_ROUNDING = 3e-7
"""Singular values below this, relative to the largest, are rounding in single precision."""


@dataclass(frozen=True, kw_only=True)
class BagOfWords:
    """Read off which tokens a batch is made of.

    Attributes:
        gap: With tied weights, by what factor the rows of tokens of the batch must be longer than
            those of others.
    """

    gap: float = 1.5

    needs: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.ARCHITECTURE, Capability.INPUT_DOMAIN, Capability.BATCH_SIZE}
    )

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if self.gap <= 1:
            raise ValueError(f"gap must be above 1, got {self.gap}")

    def check(self, known: Knowledge) -> None:
        """Refuse tasks that are no text."""
        text_known(known)

    def __call__(
        self,
        seen: Observation | Sequence[Observation],
        known: Knowledge,
        *,
        rng: torch.Generator,  # noqa: ARG002, as every attack is called
        budget: Budget | None = None,  # noqa: ARG002
    ) -> Reconstruction:
        """Read the tokens behind one update.

        Shapes:
            returns .inputs: tokens (b, T), those of the whole batch one after the other: the start
                of a sentence first, its end last, between them the longest rows first

        Raises:
            AttackFailed: The embedding's gradient was not heard, or no row stands out.
        """
        start = time.monotonic()
        seen = only(seen)
        model, tokens = text_known(known)
        if known.input_shape is None or known.batch_size is None:
            raise AttackFailed("the bag of words needs the length of an example and the batch size")
        weight = model.token_embedding.weight
        name = next(
            (name for name, p in cast(nn.Module, model).named_parameters() if p is weight), ""
        )
        heard, _ = heard_of(seen, known)
        if name not in heard or not all_visible(seen.visible, name):
            raise AttackFailed(
                f"the whole gradient of the token embedding '{name}' was not heard: no row tells "
                "which tokens there are"
            )
        lengths = heard[name].double().norm(dim=1).cpu()
        if not bool(lengths.isfinite().all()) or not bool(lengths.any()):
            raise AttackFailed(f"the gradient of '{name}' is zero or not finite")
        most = known.batch_size * known.input_shape[0]
        order = lengths.argsort(descending=True, stable=True)
        bag = order[: int((lengths > 0).sum())].tolist()
        tied = len(bag) > most
        if tied:
            bag = self._standing_out(heard[name].double().cpu(), order, most)
        bag.sort(key=lambda token: (token != tokens.start, token == tokens.end))
        (width,) = known.input_shape
        rows = [bag[first : first + width] for first in range(0, len(bag), width)]
        return Reconstruction(
            inputs=padded(rows[: known.batch_size], width, tokens.pad),
            labels=None,
            seconds=time.monotonic() - start,
            notes={"tokens": float(len(bag)), "tied": float(tied)},
        )

    def _standing_out(self, gradient: Tensor, order: Tensor, most: int) -> list[int]:
        """Return the tokens whose rows are not like most rows, the longest first.

        Raises:
            AttackFailed: There are none.
        """
        usual = gradient[order[len(order) // 2 :]]  # the shorter half
        _, values, vectors = torch.linalg.svd(
            torch.linalg.qr(usual, mode="r").R, full_matrices=False
        )
        space = vectors[values > _ROUNDING * values[0]]
        found = self._outliers(gradient.norm(dim=1), most)
        if len(space) < min(usual.shape):  # else noise fills it
            beyond = (gradient - gradient @ space.T @ space).norm(dim=1)
            found |= self._outliers(beyond, most)
        if not found:
            raise AttackFailed(
                f"all {len(order)} tokens have a gradient, as where the output layer's weight is "
                "the embedding's or where noise was added, and no row stands out by a factor of "
                f"gap = {self.gap}; 'dager' reads tokens off attention"
            )
        return [token for token in order.tolist() if token in found]

    def _outliers(self, lengths: Tensor, most: int) -> set[int]:
        """Return the rows that are longer than all others by the gap; at most so many."""
        ordered, order = lengths.sort(descending=True)
        ordered = ordered[: most + 1].clamp_min(1e-300)
        drops = ordered[:-1] / ordered[1:]
        best = int(drops.argmax())
        return set(order[: best + 1].tolist()) if float(drops[best]) >= self.gap else set()
