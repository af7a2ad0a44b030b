"""DP-SGD (Abadi et al., 2016, https://arxiv.org/abs/1607.00133).

Each example's gradient is clipped, Gaussian noise is added to their sum, and the sum is divided by
the number of examples that a batch is to have. Conventions, validation of models and accounting are
those of Opacus (Yousefpour et al., 2021, https://arxiv.org/abs/2109.12298). Gradients of single
examples are taken by `torch.func`: each example goes through the model by itself, so that none can
reach another's gradient.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from attacks.defense import add_noise, length_of
from attacks.observation import Kind, Knowledge, Loss, Observation
from clients.defenses.noise import noise_heard
from clients.defenses.private import refuse_tellers, summed_steps
from fedsim.config import Experiment
from fedsim.defenses import Place
from fedsim.errors import ConfigError
from fedsim.privacy import Accountant, Mechanism, Share, Unit, refuse_bad_budget, settle_noise

_MOST_ENTRIES = 2**26
"""Entries of gradients of single examples that are held at once: 256 MiB of them."""
_NO_ZERO = 1e-6
"""What Opacus adds to a length before it divides by it."""


@dataclass(frozen=True, kw_only=True)
class DPSGD:
    """Clips each example's gradient and adds noise to their sum, in each step.

    Attributes:
        max_grad_norm: C, the bound on the Euclidean norm of one example's gradient.
        noise_multiplier: Standard deviation of the noise on the sum, over C; unset means 1, or
            what `epsilon` asks for.
        epsilon: What each client may spend over the whole experiment; unset where
            `noise_multiplier` says how much noise there is.
        delta: The probability with which epsilon may be exceeded; well below 1 / examples.
        accountant: How steps are added up; see `fedsim.privacy.Accountant`.
        sampling: poisson: each example is in each batch with probability B/N, as the accountants
            take it; fixed: shuffled batches of B examples, and no gain from sampling.
    """

    max_grad_norm: float = 1.0
    noise_multiplier: float | None = None
    epsilon: float | None = None
    delta: float = 1e-5
    accountant: Accountant = "rdp"
    sampling: Literal["poisson", "fixed"] = "poisson"

    place: ClassVar[Place] = Place.TRAINING
    unit: ClassVar[Unit] = "example"

    def __post_init__(self) -> None:
        """Refuse settings without meaning."""
        if not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be above 0, got {self.max_grad_norm}")
        refuse_bad_budget(self.noise_multiplier, self.epsilon, self.delta)

    def check(self, experiment: Experiment, model: nn.Module) -> None:
        """Refuse layers that mix examples or cannot be noised, and whatever else tells of data."""
        from opacus.validators import ModuleValidator  # late: it takes seconds

        errors = ModuleValidator.validate(model.train(), strict=False)
        if errors:
            raise ConfigError(
                f"dp-sgd cannot train model '{experiment.model.name}': {errors[0]} "
                "Choose a model without such layers, or another norm, such as "
                "model.options.norm = 'group' where the model has it"
            )
        refuse_tellers("dp-sgd", experiment, model)

    def tailored(self, share: Share) -> "DPSGD":
        """Settle how much noise a client with such a share adds."""
        if self.epsilon is None:
            return replace(self, noise_multiplier=self._multiplier)
        mechanism = replace(self, epsilon=None).mechanism(share)
        multiplier = settle_noise(None, self.epsilon, self.delta, mechanism)
        return replace(self, noise_multiplier=multiplier, epsilon=None)

    def mechanism(self, share: Share) -> Mechanism:
        """Return what a round's steps amount to, times the rounds.

        With fixed batches an example is in one step of each pass, and the others do not touch it.
        """
        poisson = self.sampling == "poisson"
        return Mechanism(
            noise_multiplier=self._multiplier,
            sample_rate=share.batch_size / share.num_examples if poisson else 1.0,
            num_steps=share.num_rounds * (share.num_steps if poisson else share.num_epochs),
            accountant=self.accountant,
        )

    def draw(self, num_examples: int, batch_size: int, rng: torch.Generator) -> Tensor | None:
        """Take each example with probability B/N, or leave it to the client."""
        if self.sampling == "fixed":
            return None
        taken = torch.rand(num_examples, generator=rng, dtype=torch.float64)
        return (taken < batch_size / num_examples).nonzero().flatten()

    def gradient(
        self,
        model: nn.Module,
        loss: Loss,
        inputs: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        rng: torch.Generator,
    ) -> tuple[dict[str, Tensor], float]:
        """Return the noisy sum of clipped gradients over the batch size expected, and the loss."""
        trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        total = {name: torch.zeros_like(tensor) for name, tensor in trained.items()}
        losses = 0.0
        together = max(1, _MOST_ENTRIES // sum(tensor.numel() for tensor in trained.values()))
        for start in range(0, len(inputs), together):
            some = slice(start, start + together)
            parts, values = gradients_one_by_one(model, loss, trained, inputs[some], labels[some])
            scale = (self.max_grad_norm / (_lengths(parts) + _NO_ZERO)).clamp(max=1.0)
            for name, part in parts.items():
                total[name] += torch.einsum("b,b...->...", scale.to(part.dtype), part)
            losses += float(values.sum())
        deviation = self._multiplier * self.max_grad_norm
        for name, tensor in total.items():
            noise = torch.randn(tensor.shape, generator=rng).to(tensor)
            total[name] = (tensor + deviation * noise) / batch_size
        return total, losses / max(1, len(inputs))

    def read(self, seen: Observation, known: Knowledge) -> tuple[Observation, Knowledge]:
        """Say how much noise there is, and that lengths mean nothing.

        Each example may have been clipped, by a factor that nobody tells: what is left of a batch
        points where a weighted mean of its gradients does. A multiplier that was worked out from
        epsilon depends on the client, and is estimated.
        """
        unit = _noise_per_clip(seen, known)
        if self.epsilon is not None:
            return self.estimated(seen, known).read(seen, known)
        if unit is None:
            return seen, replace(known, length_known=False)
        known = add_noise(known, dict.fromkeys(seen.update, self._deviation * unit))
        alone = self._multiplier == 0 and known.batch_size == 1 and seen.kind is Kind.GRADIENT
        if alone and length_of(seen.update) < 0.999 * self.max_grad_norm:
            return seen, known  # it was shorter, and is as it was
        return seen, replace(known, length_known=False)

    def estimated(self, seen: Observation, known: Knowledge) -> "DPSGD":
        """Read the noise off the classifier's gradient, as for plain noise.

        Clipping scales each example's gradient, so that its columns still sum to zero.
        """
        unit = _noise_per_clip(seen, known)
        heard = noise_heard(seen, known)
        multiplier = self._multiplier
        if unit is not None and heard is not None:
            multiplier = heard / (unit * self.max_grad_norm)
        return replace(self, noise_multiplier=multiplier, epsilon=None)

    @property
    def _multiplier(self) -> float:
        return 1.0 if self.noise_multiplier is None else self.noise_multiplier

    @property
    def _deviation(self) -> float:
        return self._multiplier * self.max_grad_norm


def gradients_one_by_one(
    model: nn.Module, loss: Loss, trained: Mapping[str, Tensor], inputs: Tensor, labels: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Return each example's gradient by parameter name, (B, ...), and its loss, (B,).

    Args:
        model: In training mode; dropout draws anew for each example.
        loss: Mean over the batch.
        trained: The parameters to differentiate by.
        inputs: (B, C, H, W).
        labels: (B,).
    """
    named = {name: p.detach() for name, p in model.named_parameters()}
    fixed = {name: tensor for name, tensor in named.items() if name not in trained}
    fixed |= dict(model.named_buffers())

    def one(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits: Tensor = functional_call(model, (parameters, fixed), (image.unsqueeze(0),))
        return loss(logits, label.unsqueeze(0))

    each = vmap(grad_and_value(one), in_dims=(None, 0, 0), randomness="different")
    gradients, losses = each(dict(trained), inputs, labels)
    return gradients, losses


def _lengths(parts: Mapping[str, Tensor]) -> Tensor:
    norms = [part.flatten(1).norm(dim=1) for part in parts.values()]
    lengths: Tensor = torch.stack(norms, dim=1).norm(dim=1)
    return lengths


def _noise_per_clip(seen: Observation, known: Knowledge) -> float | None:
    """Return the deviation per coordinate of what was heard, of noise with z C = 1.

    None where it cannot be told: the batch size was not granted, or how clients train.
    """
    recipe = known.recipe
    size = known.batch_size
    if recipe is not None and recipe.batch_size is not None:
        size = recipe.batch_size
    if size is None:
        return None
    if seen.kind in (Kind.GRADIENT, Kind.CHUNK):
        return 1.0 / size
    if seen.kind is Kind.AGGREGATE:  # a mean over all clients' batches: their noises add up
        everybody = seen.num_examples or known.batch_size or size
        return 1.0 / math.sqrt(size * everybody)
    if recipe is None or recipe.learning_rate is None:
        return None
    return recipe.learning_rate * summed_steps(recipe.num_steps, recipe.momentum) / size
