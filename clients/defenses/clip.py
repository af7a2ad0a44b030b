"""Clipping: an update longer than a bound is shortened to it, all tensors together.

The control of every comparison. It changes the length of an update and not its direction, which an
attack by angles never looks at; it protects nobody without noise (Abadi et al., 2016,
https://arxiv.org/abs/1607.00133, clip in order to know how much noise is enough).
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from attacks.defense import change_of, clients_behind, length_of, unit_of_mean
from attacks.observation import Knowledge, Observation, Tensors
from fedsim.defenses import Place, Situation


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Shortens an update to a bound on its Euclidean norm.

    Attributes:
        norm: The bound, in units of the update.
    """

    norm: float = 1.0

    place: ClassVar[Place] = Place.UPDATE

    def __post_init__(self) -> None:
        """Refuse a bound that leaves nothing."""
        if not self.norm > 0:
            raise ValueError(f"norm must be above 0, got {self.norm}")

    def apply(self, update: Tensors, at: Situation) -> dict[str, Tensor]:  # noqa: ARG002
        """Scale the whole update, if it is longer than the bound."""
        length = length_of(update)
        if length <= self.norm:
            return dict(update)
        return {name: tensor * (self.norm / length) for name, tensor in update.items()}

    def read(self, seen: Observation, known: Knowledge) -> tuple[Observation, Knowledge]:
        """Take the direction alone, unless the whole of it was heard and is below the bound.

        A mean of n clients must be n times shorter: if one of them was clipped, it is longer, but
        for updates that cancel out.
        """
        exact = known.noise is None or not any(known.noise.deviation.values())
        bound = self.norm * unit_of_mean(seen, known) / clients_behind(seen, known)
        if exact and not seen.visible and length_of(change_of(seen)) < 0.999 * bound:
            return seen, known  # it was shorter, and is as it was
        return seen, replace(known, length_known=False)

    def estimated(self, seen: Observation, known: Knowledge) -> "Clip":
        """Take the length heard for the bound: whether it was clipped does not show."""
        shortest = unit_of_mean(seen, known) / clients_behind(seen, known)
        return Clip(norm=length_of(change_of(seen)) / shortest or self.norm)
