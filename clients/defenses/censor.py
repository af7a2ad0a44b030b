"""CENSOR: in place of each gradient, a random vector at a right angle to it.

Zhang et al., NDSS 2025, https://arxiv.org/abs/2501.15718. Tensor by tensor, several random
vectors are drawn, what they have in common with the gradient is taken out, and they are stretched
to its length; of these candidates, the one is sent after which the client's own loss is lowest.

Ours: candidates are tried with the step that will be taken, where the published code tries a step
of 1e-4. That code also subtracts the projection times the gradient's length, which is orthogonal
only to gradients of length one; here the two are orthogonal.
"""

import copy
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.defense import add_noise, change_of
from attacks.observation import Knowledge, Observation, Tensors
from fedsim.defenses import Place, Situation


@dataclass(frozen=True, kw_only=True)
class Censor:
    """Sends the best of several random vectors orthogonal to each gradient.

    Attributes:
        trials: Candidates; each costs one forward pass over the client's batch.
    """

    trials: int = 20

    place: ClassVar[Place] = Place.UPDATE
    looks_at_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse to draw nothing."""
        if self.trials < 1:
            raise ValueError(f"trials must be at least 1, got {self.trials}")

    def apply(self, update: Tensors, at: Situation) -> dict[str, Tensor]:
        """Return the candidate after which the loss is lowest."""
        model = copy.deepcopy(at.model).eval()
        step = -at.learning_rate if at.kind == "gradient" else 1.0
        best, lowest = _orthogonal(update, at.rng), math.inf
        for trial in range(self.trials):
            candidate = best if trial == 0 else _orthogonal(update, at.rng)
            value = _loss_after(model, candidate, step, at)
            if value < lowest:
                best, lowest = candidate, value
        return best

    def read(self, seen: Observation, known: Knowledge) -> tuple[Observation, Knowledge]:
        """Take every coordinate for noise as large as itself, which is all that is known of it.

        The lengths of the tensors are those of the gradient, and what was sent is orthogonal to
        it: two equations per tensor, too few for an image.
        """
        # what was sent and the gradient have equal lengths at a right angle
        apart = {
            n: math.sqrt(2) * float(t.double().square().mean().sqrt())
            for n, t in change_of(seen).items()
        }
        return seen, add_noise(known, apart)


def _orthogonal(update: Tensors, rng: torch.Generator) -> dict[str, Tensor]:
    """Return random tensors, each at a right angle to that of `update`, and as long."""
    found = {}
    for name, tensor in update.items():
        flat = tensor.detach().double().cpu().flatten()
        drawn = torch.randn(flat.shape, generator=rng, dtype=torch.float64)
        length = flat.norm()
        if length > 0:
            along = flat / length
            for _ in range(2):  # once more for what rounding left
                drawn = drawn - (drawn @ along) * along
        size = drawn.norm()
        drawn = drawn * (length / size) if size > 1e-9 else torch.zeros_like(drawn)
        found[name] = drawn.reshape(tensor.shape).to(tensor)
    return found


def _loss_after(model: nn.Module, update: Tensors, step: float, at: Situation) -> float:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(at.before[name] + step * update[name])
        return float(at.loss(model(at.inputs), at.labels))
