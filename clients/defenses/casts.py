"""Half precision, as in Deep Leakage from Gradients.

Zhu et al. (2019, https://arxiv.org/abs/1906.08935) find that sending gradients in IEEE half
precision or bfloat16 protects nobody: an error of 0.1 or 0.4 % is too small. It halves the bytes.

What does not fit: values above 65 504 become that number in IEEE half precision, instead of
infinity, which the server would refuse; values below about 3e-8 become zero (gradual loss of digits
begins below 6e-5). bfloat16 has the range of single precision and 8 bits of digits.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.defense import Family, add_noise
from attacks.observation import Kind, Knowledge, Observation, Tensors
from clients.defenses.zeros import moved
from fedsim.defenses import Place, Situation


@dataclass(frozen=True, kw_only=True)
class Float16:
    """Rounds the update to IEEE half precision, values beyond its range to its ends."""

    place: ClassVar[Place] = Place.UPDATE
    dtype: ClassVar[torch.dtype] = torch.float16
    smallest_exponent: ClassVar[int] = -14
    """Power of two of the smallest number with all digits."""

    def apply(self, update: Tensors, at: Situation) -> dict[str, Tensor]:  # noqa: ARG002
        """Round to the nearest number that fits; NaN and infinity stay what they are."""
        return {name: self._cast(tensor) for name, tensor in update.items()}

    def read(self, seen: Observation, known: Knowledge) -> tuple[Observation, Knowledge]:
        """Say how exact each parameter is: half of the last digit, uniform."""
        seen = moved(seen)
        if seen.kind is Kind.WEIGHTS:
            return seen, known
        deviation = {name: self._deviation(tensor) for name, tensor in seen.update.items()}
        return seen, add_noise(known, deviation, Family.UNIFORM)

    def _cast(self, tensor: Tensor) -> Tensor:
        most = torch.finfo(self.dtype).max
        inside = torch.where(tensor.isfinite(), tensor.clamp(-most, most), tensor)
        return inside.to(self.dtype).to(tensor.dtype)

    def _deviation(self, heard: Tensor) -> float:
        """Return the standard deviation of rounding errors, root mean square over coordinates."""
        digits = round(-math.log2(torch.finfo(self.dtype).eps))
        _, exponent = torch.frexp(heard.double())
        last = torch.clamp(exponent - 1, min=self.smallest_exponent) - digits
        last = torch.where(heard == 0, self.smallest_exponent - digits, last)
        steps = torch.ldexp(torch.ones_like(heard, dtype=torch.float64), last)
        return math.sqrt(float(steps.square().mean()) / 12) if heard.numel() else 0.0


@dataclass(frozen=True, kw_only=True)
class BFloat16(Float16):
    """Rounds the update to bfloat16: the range of single precision, 8 bits of digits."""

    dtype: ClassVar[torch.dtype] = torch.bfloat16
    smallest_exponent: ClassVar[int] = -126
