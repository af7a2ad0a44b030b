"""Outpost: prune, and add noise where the Fisher information is high, less often as time passes.

Wang et al., "More than Enough is Too Much: Adaptive Defenses against Gradient Leakage in Production
Federated Learning", INFOCOM 2023 (journal version: https://ieeexplore.ieee.org/document/10477938).
A layer is at risk when its weights are spread wide: the risk is the variance of a tensor's weights,
at most 1. In each tensor the smallest entries of the gradient are set to zero. Gaussian noise goes
to the coordinates with the most Fisher information among all tensors, its deviation being `noise`
times the tensor's risk. In iteration t all this happens with probability 1 / (1 + decay t).

The paper's text was not to be had; formulas and settings are those of the public implementation.
Ours: the Fisher information of a coordinate is the square of its entry in the batch's gradient
(the empirical one, of one batch); an iteration is a round, counted from 0; after local steps, the
change of weights is treated as one gradient times the learning rate.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from attacks.defense import add_noise, change_of, surviving
from attacks.observation import Kind, Knowledge, Observation, Tensors
from fedsim.defenses import Place, Situation


@dataclass(frozen=True, kw_only=True)
class Outpost:
    """Prunes small entries, and adds noise where weights are spread and gradients are large.

    Attributes:
        noise: Standard deviation of the noise, over the variance of a tensor's weights.
        noisy_share: Coordinates that get noise, of all tensors together: those with the most
            Fisher information.
        prune_share: Entries that are set to zero, of each tensor: the smallest.
        decay: How fast the defense gets rare; 0 for never.
    """

    noise: float = 0.8
    noisy_share: float = 0.4
    prune_share: float = 0.8
    decay: float = 0.125

    place: ClassVar[Place] = Place.UPDATE

    def __post_init__(self) -> None:
        """Refuse shares that are none, and scales below zero."""
        for name in ("noise", "decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("noisy_share", "prune_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")

    def apply(self, update: Tensors, at: Situation) -> dict[str, Tensor]:
        """Perturb the update, or, by chance and later on, send it as it is."""
        chance = 1 / (1 + self.decay * (at.server_round - 1))
        if float(torch.rand((), generator=at.rng)) >= chance:
            return dict(update)
        step = 1.0 if at.kind == "gradient" else at.learning_rate
        fisher = torch.cat([tensor.detach().flatten().square() for tensor in update.values()])
        least = _largest(fisher, self.noisy_share)
        sent = {}
        for name, tensor in update.items():
            sizes = tensor.detach().abs()
            kept = tensor.masked_fill(sizes < _largest(sizes.flatten(), 1 - self.prune_share), 0)
            drawn = torch.randn(tensor.shape, generator=at.rng).to(tensor)
            noisy = tensor.detach().square() >= least
            sent[name] = kept + step * self.noise * risk(at.before[name]) * drawn * noisy
        return sent

    def read(self, seen: Observation, known: Knowledge) -> tuple[Observation, Knowledge]:
        """Weigh each tensor by its noise, which the weights heard tell.

        Pruned entries are not forgotten: that they are small is worth knowing.
        """
        step = 1.0
        if seen.kind in (Kind.DELTA, Kind.WEIGHTS):
            step = (known.recipe.learning_rate if known.recipe else None) or 1.0
        alive = surviving(change_of(seen))
        zeros = 1 - _share(alive)
        if not alive or zeros < 0.9 * max(0.0, self.prune_share - self.noisy_share):
            return seen, known  # this one was sent as it was
        noise = {
            name: step * self.noise * risk(seen.weights[name])
            for name in alive
            if seen.weights is not None and name in seen.weights
        }
        return seen, add_noise(known, noise)

    def estimated(self, seen: Observation, known: Knowledge) -> "Outpost":  # noqa: ARG002
        """Read the noise off the tensors that are noisy throughout.

        Where noise outweighs the gradient, entries over the tensor's risk are of its size; the
        tensor where they are smallest bounds it best.
        """
        change = change_of(seen)
        if seen.weights is None or seen.kind not in (Kind.GRADIENT, Kind.CHUNK, Kind.AGGREGATE):
            return self
        sizes = [
            float(tensor.double().square().mean().sqrt()) / spread
            for name, tensor in change.items()
            if name in seen.weights
            and (spread := risk(seen.weights[name])) > 0
            and float(tensor.ne(0).double().mean()) > _THROUGHOUT
        ]
        return replace(self, noise=min(sizes)) if sizes else self


_THROUGHOUT = 0.9
"""Share of entries that are not zero, from which a tensor counts as noisy throughout."""


def risk(weights: Tensor) -> float:
    """Return the variance of a tensor's weights, at most 1; 0 for a single one."""
    if weights.numel() < 2:
        return 0.0
    return min(1.0, float(weights.detach().double().var()))


def _largest(sizes: Tensor, share: float) -> Tensor:
    """Return the smallest of the largest `share` of `sizes`; infinite for none."""
    count = round(share * len(sizes))
    if count == 0:
        return sizes.new_tensor(torch.inf)
    return sizes.kthvalue(len(sizes) - count + 1).values


def _share(alive: Tensors) -> float:
    total = sum(mask.numel() for mask in alive.values())
    return sum(int(mask.sum()) for mask in alive.values()) / max(1, total)
