"""Magnitude pruning, as in Deep Leakage from Gradients.

Zhu et al. (2019, https://arxiv.org/abs/1906.08935) set the smallest magnitudes of a gradient to
zero and find that more than 20 % stops the attack. That is so if each layer loses that share; one
threshold for all of them spares the layers with large gradients, and does not stop it. Both are
offered. Who masks its loss to what survived undoes a part of it.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from attacks.defense import Family, add_noise, hide
from attacks.observation import Kind, Knowledge, Observation, Tensors
from clients.defenses.feedback import mixed_deviation, with_feedback
from clients.defenses.zeros import moved, sent_of, smallest, smallest_of_all, zero_share
from fedsim.defenses import Place, Situation

Scope = Literal["layer", "global"]
"""Whether each parameter loses its share, or all together."""


def dropped(update: Tensors, share: float, scope: Scope) -> dict[str, Tensor]:
    """Return True at the smallest magnitudes, bool, by name.

    Args:
        update: Not modified.
        share: How many of the coordinates of each scope, rounded to a whole number.
        scope: Which coordinates compete.
    """
    if scope == "global" and update:
        count = sum(tensor.numel() for tensor in update.values())
        return smallest_of_all(update, round(share * count))
    return {
        name: smallest(tensor, round(share * tensor.numel())) for name, tensor in update.items()
    }


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Sets the smallest magnitudes of the update to zero.

    Attributes:
        share: Share of coordinates set to zero; the number is exact, whatever is tied.
        scope: Whether each parameter loses this share, or all of them together.
        error_feedback: Whether what was not sent is added to the next update.
    """

    share: float = 0.3
    scope: Scope = "layer"
    error_feedback: bool = False

    place: ClassVar[Place] = Place.UPDATE

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must be from 0 to 1, got {self.share}")

    def apply(self, update: Tensors, at: Situation) -> dict[str, Tensor]:
        """Send what is large."""
        return (
            with_feedback(update, at, self._prune) if self.error_feedback else self._prune(update)
        )

    def read(self, seen: Observation, known: Knowledge) -> tuple[Observation, Knowledge]:
        """Leave out what is zero: it says nothing but that it was small.

        With error feedback, a coordinate was heard late: it holds what the rounds before left.
        """
        seen = moved(seen)
        if seen.kind is Kind.WEIGHTS:
            return seen, known
        masks = sent_of(seen.update, known, dropped(seen.update, self.share, self.scope))
        if self.error_feedback and seen.round > 1:
            waits = min(seen.round, 1 / max(1 - self.share, 1e-9))
            mixed = {
                name: mixed_deviation(tensor[masks[name]], waits)
                for name, tensor in seen.update.items()
            }
            known = add_noise(known, mixed, Family.GAUSSIAN)
        return hide(seen, masks), known

    def estimated(self, seen: Observation, known: Knowledge) -> "Prune":  # noqa: ARG002
        """Read the share off the zeros; if all parameters have about the same, layer by layer."""
        update = moved(seen).update
        share = zero_share(update)
        shares = torch.tensor([zero_share({"": t}) for t in update.values() if t.numel() >= _MANY])
        alike = not len(shares) or bool((shares - share).abs().max() < _ALIKE)
        return Prune(share=share, scope="layer" if alike else "global")

    def _prune(self, update: Tensors) -> dict[str, Tensor]:
        gone = dropped(update, self.share, self.scope)
        return {name: tensor.masked_fill(gone[name], 0.0) for name, tensor in update.items()}


_MANY = 100
"""Coordinates from which a parameter's share of zeros is no matter of rounding."""
_ALIKE = 0.02
"""Difference of shares that rounding, and gradients that are zero anyway, may make."""
