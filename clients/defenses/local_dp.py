"""Local differential privacy of whole updates: clip, and add Gaussian noise, at the client.

The Gaussian mechanism (Dwork and Roth, 2014, appendix A) on a client's update, as local DP-FedAvg
has it (Geyer et al., 2017, https://arxiv.org/abs/1712.07557, whose noise is the server's; Naseri et
al., 2022, https://arxiv.org/abs/2009.03561). It hides all of a client's data at once, from
everybody who hears its update.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from attacks.defense import add_noise, error_in_mean
from attacks.observation import Knowledge, Observation, Tensors
from clients.defenses.clip import Clip
from clients.defenses.noise import GaussianNoise
from clients.defenses.private import refuse_tellers
from fedsim.config import Experiment
from fedsim.defenses import Place, Situation
from fedsim.privacy import Accountant, Mechanism, Share, Unit, refuse_bad_budget, settle_noise


@dataclass(frozen=True, kw_only=True)
class LocalDP:
    """Clips the whole update and adds Gaussian noise to it.

    Attributes:
        max_norm: C, the bound on the Euclidean norm of the update, in its units: of a gradient, or
            of a change of weights.
        noise_multiplier: Standard deviation of the noise, over C; unset means 1, or what `epsilon`
            asks for.
        epsilon: What each client may spend over the whole experiment; unset where
            `noise_multiplier` says how much noise there is.
        delta: The probability with which epsilon may be exceeded.
        accountant: How rounds are added up; see `fedsim.privacy.Accountant`.
        neighbours: What cannot be told apart. replace: any two sets of data of this client, as
            local privacy demands; updates are up to 2 C apart. zero: this client's update, and
            none at all; they are up to C apart.
    """

    max_norm: float = 1.0
    noise_multiplier: float | None = None
    epsilon: float | None = None
    delta: float = 1e-5
    accountant: Accountant = "rdp"
    neighbours: Literal["replace", "zero"] = "replace"

    place: ClassVar[Place] = Place.UPDATE
    unit: ClassVar[Unit] = "client"

    def __post_init__(self) -> None:
        """Refuse settings without meaning."""
        if not self.max_norm > 0:
            raise ValueError(f"max_norm must be above 0, got {self.max_norm}")
        refuse_bad_budget(self.noise_multiplier, self.epsilon, self.delta)

    def check(self, experiment: Experiment, model: nn.Module) -> None:
        """Refuse whatever else tells of a client's data."""
        refuse_tellers("local-dp", experiment, model)

    def tailored(self, share: Share) -> "LocalDP":
        """Settle how much noise a client with such a share adds."""
        mechanism = replace(self, noise_multiplier=None, epsilon=None).mechanism(share)
        multiplier = self._multiplier
        if self.epsilon is not None:
            multiplier = self._sensitivity * settle_noise(None, self.epsilon, self.delta, mechanism)
        return replace(self, noise_multiplier=multiplier, epsilon=None)

    def mechanism(self, share: Share) -> Mechanism:
        """Return one use of the Gaussian mechanism per round."""
        return Mechanism(
            noise_multiplier=self._multiplier / self._sensitivity,
            sample_rate=1.0,
            num_steps=share.num_rounds,
            accountant=self.accountant,
        )

    def apply(self, update: Tensors, at: Situation) -> dict[str, Tensor]:
        """Clip all tensors together, and add noise to those that are trained."""
        clipped = Clip(norm=self.max_norm).apply(update, at)
        frozen = {name for name, p in at.model.named_parameters() if not p.requires_grad}
        return {
            name: tensor
            if name in frozen
            else tensor + self._deviation * torch.randn(tensor.shape, generator=at.rng).to(tensor)
            for name, tensor in clipped.items()
        }

    def read(self, seen: Observation, known: Knowledge) -> tuple[Observation, Knowledge]:
        """Say how much noise there is, and that the length of what is left means nothing.

        A multiplier that was worked out from epsilon depends on the client, and is estimated.
        """
        if self.epsilon is not None:
            return self.estimated(seen, known).read(seen, known)
        deviation = self._deviation * error_in_mean(seen, known)
        known = add_noise(known, dict.fromkeys(seen.update, deviation))
        return Clip(norm=self.max_norm).read(seen, known)

    def estimated(self, seen: Observation, known: Knowledge) -> "LocalDP":
        """Read the noise off the classifier's gradient, as for plain noise."""
        noise = GaussianNoise(scale=self._deviation).estimated(seen, known)
        return replace(self, noise_multiplier=noise.deviation / self.max_norm, epsilon=None)

    @property
    def _sensitivity(self) -> float:
        """How far two updates may be apart, over C."""
        return 2.0 if self.neighbours == "replace" else 1.0

    @property
    def _multiplier(self) -> float:
        return 1.0 if self.noise_multiplier is None else self.noise_multiplier

    @property
    def _deviation(self) -> float:
        return self._multiplier * self.max_norm
