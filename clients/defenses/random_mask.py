"""Random masking: a random part of each update is not sent.

Konecny et al. (2016, https://arxiv.org/abs/1610.05492) send a random subset of coordinates, new in
each round, to save bytes. Survivors may be made larger by 1 / (1 - share), so that the mean is
right. A mask that never changes keeps the same coordinates of a client secret for ever, and never
trains on them.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from attacks.defense import hide
from attacks.observation import Kind, Knowledge, Observation, Tensors
from clients.defenses.prune import dropped
from clients.defenses.zeros import moved, sent_of, zero_share
from fedsim.defenses import Place, Situation

_SEED = "seed"


@dataclass(frozen=True, kw_only=True)
class RandomMask:
    """Sets random coordinates of the update to zero.

    Attributes:
        share: Chance of each coordinate to be left out.
        fixed: Whether a client leaves out the same coordinates in all rounds.
        rescale: Whether what is sent is made larger by 1 / (1 - share), so that its mean is that of
            the whole update.
    """

    share: float = 0.5
    fixed: bool = False
    rescale: bool = False

    place: ClassVar[Place] = Place.UPDATE

    def __post_init__(self) -> None:
        """Refuse a share that is none, and to make nothing larger."""
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must be from 0 to 1, got {self.share}")
        if self.rescale and self.share == 1:
            raise ValueError("share must be below 1 where survivors are made larger, got 1")

    def apply(self, update: Tensors, at: Situation) -> dict[str, Tensor]:
        """Leave coordinates out, drawn in the order of names in the update."""
        rng = self._rng(at)
        factor = 1 / (1 - self.share) if self.rescale else 1.0
        sent = {}
        for name, tensor in update.items():
            gone = torch.rand(tensor.shape, generator=rng) < self.share
            sent[name] = (tensor * factor).masked_fill(gone.to(tensor.device), 0.0)
        return sent

    def read(self, seen: Observation, known: Knowledge) -> tuple[Observation, Knowledge]:
        """Leave out what is zero, and make the rest as small again as it was."""
        seen = moved(seen)
        if seen.kind is Kind.WEIGHTS:
            return seen, known
        guess = dropped(seen.update, self.share, "layer")
        seen = hide(seen, sent_of(seen.update, known, guess))
        if not self.rescale:
            return seen, known
        factor = 1 - self.share
        return replace(seen, update={n: t * factor for n, t in seen.update.items()}), known

    def estimated(self, seen: Observation, known: Knowledge) -> "_OfUnknownLength":  # noqa: ARG002
        """Read the share off the zeros; whether the rest was made larger does not show."""
        return _OfUnknownLength(share=zero_share(moved(seen).update))

    def _rng(self, at: Situation) -> torch.Generator:
        if not self.fixed:
            return at.rng
        if _SEED not in at.memory:
            at.memory[_SEED] = torch.randint(2**62, (1,), generator=at.rng)
        return torch.Generator().manual_seed(int(at.memory[_SEED]))


@dataclass(frozen=True, kw_only=True)
class _OfUnknownLength(RandomMask):
    """Random masking of which nobody said whether the rest was made larger."""

    def read(self, seen: Observation, known: Knowledge) -> tuple[Observation, Knowledge]:
        """Leave out what is zero, and take the direction alone of the rest."""
        seen, known = super().read(seen, known)
        return seen, replace(known, length_known=False)
