"""signSGD (Bernstein et al., 2018, https://arxiv.org/abs/1802.04434): one bit per coordinate.

The sign of each coordinate is sent, times the mean magnitude of its tensor, so that the length
makes sense; the server averages what it receives. Differs from the paper: there is no vote of the
majority, and the paper sends 1 and -1 (`scale = "one"`; the learning rate is then the step of every
weight). With error feedback and the mean magnitude it is EF-signSGD (Karimireddy et al., 2019,
https://arxiv.org/abs/1901.09847), which trains where plain signs do not.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from attacks.defense import Family, add_noise
from attacks.observation import Kind, Knowledge, Observation, Tensors
from clients.defenses.feedback import with_feedback
from clients.defenses.zeros import moved
from fedsim.defenses import Place, Situation

_SPREAD = math.sqrt(math.pi / 2 - 1)
"""Standard deviation of the magnitude of a normal number, over its mean."""


@dataclass(frozen=True, kw_only=True)
class Sign:
    """Sends the sign of each coordinate, times one number per tensor.

    Attributes:
        scale: The number: the mean magnitude of the tensor, or one.
        error_feedback: Whether what magnitudes differ by is added to the next update.
    """

    scale: Literal["mean", "one"] = "mean"
    error_feedback: bool = False

    place: ClassVar[Place] = Place.UPDATE

    def __post_init__(self) -> None:
        """Refuse feedback of errors that grow without bound."""
        if self.error_feedback and self.scale == "one":
            raise ValueError("error_feedback must be false for scale 'one': errors would pile up")

    def apply(self, update: Tensors, at: Situation) -> dict[str, Tensor]:
        """Send signs; a coordinate of zero stays zero."""
        if self.error_feedback:
            return with_feedback(update, at, self._compress)
        return self._compress(update)

    def read(self, seen: Observation, known: Knowledge) -> tuple[Observation, Knowledge]:
        """Take signs alone: neither lengths nor magnitudes mean anything.

        For who compares values all the same: normal numbers lie about their mean magnitude with
        0.76 of it.
        """
        seen = moved(seen)
        if seen.kind is Kind.WEIGHTS:
            return seen, known
        deviation = {
            name: _SPREAD * float(tensor.double().abs().mean()) if tensor.numel() else 0.0
            for name, tensor in seen.update.items()
        }
        known = add_noise(known, deviation, Family.UNIFORM)
        return seen, replace(known, length_known=False, signs_only=True)

    def _compress(self, update: Tensors) -> dict[str, Tensor]:
        return {name: self._signs(tensor) for name, tensor in update.items()}

    def _signs(self, tensor: Tensor) -> Tensor:
        signs = torch.sign(tensor) + 0.0  # no minus zero
        if self.scale == "one" or not tensor.numel():
            return signs
        return signs * tensor.double().abs().mean().to(tensor.dtype)
