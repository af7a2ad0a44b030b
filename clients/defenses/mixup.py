"""mixup (Zhang et al., 2018, https://arxiv.org/abs/1710.09412) of each batch, within itself.

Every image is blended with another of its batch, by one factor drawn for the batch, and the loss
is blended likewise. Huang et al. (2020, https://arxiv.org/abs/2010.02772) take it as a defense, and
Huang et al. (2021, https://arxiv.org/abs/2112.00059) measure it against gradient inversion.

Differs from the paper in nothing. As a defense it promises little: the update is the gradient of
the blends, which can be inverted as any other, and B blends of B images by one factor are B linear
equations for B unknowns; see `unmix`.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from attacks.observation import Knowledge, Loss, Observation
from attacks.text.language import LanguageModel
from fedsim.config import Experiment
from fedsim.defenses import Place
from fedsim.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Mixup:
    """Trains on blends of the images of a batch.

    Attributes:
        alpha: Of the Beta(alpha, alpha) distribution of the factor; towards 0 nothing is blended,
            1 is uniform, and large values blend half and half. 1 is what the paper takes for
            CIFAR-10.
    """

    alpha: float = 1.0

    place: ClassVar[Place] = Place.TRAINING

    def __post_init__(self) -> None:
        """Refuse a distribution that there is not."""
        if not self.alpha > 0:
            raise ValueError(f"alpha must be above 0, got {self.alpha}")

    def check(self, experiment: Experiment, model: nn.Module) -> None:
        """Refuse text, and batches in which there is nobody to blend with."""
        if isinstance(model, LanguageModel):
            raise ConfigError(
                "mixup blends the pixels of images, and tokens cannot be blended; choose another "
                "defense for text"
            )
        if experiment.training.batch_size < 2:
            raise ConfigError(
                "mixup blends the images of a batch, and training.batch_size is 1; set it to 2 or "
                "more"
            )

    def gradient(
        self,
        model: nn.Module,
        loss: Loss,
        inputs: Tensor,
        labels: Tensor,
        *,
        batch_size: int,  # noqa: ARG002 - a smaller last batch is blended within itself
        rng: torch.Generator,
    ) -> tuple[dict[str, Tensor], float]:
        """Return the gradient of the blended loss on blended images, and that loss.

        For cross-entropy the blended loss is that of blended labels.
        """
        factor, partners = self.draw_blend(len(inputs), rng)
        partners = partners.to(inputs.device)
        logits = model(blend(inputs, factor, partners))
        value = factor * loss(logits, labels) + (1 - factor) * loss(logits, labels[partners])
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        found = torch.autograd.grad(value, list(trained.values()), materialize_grads=True)
        return dict(zip(trained, found, strict=True)), float(value.detach())

    def draw_blend(self, num_images: int, rng: torch.Generator) -> tuple[float, Tensor]:
        """Return the share of each image in its blend, and its partner, (B,) int64."""
        seed = int(torch.randint(2**63 - 1, (), generator=rng))  # torch has no seeded Beta
        factor = float(np.random.default_rng(seed).beta(self.alpha, self.alpha))
        return factor, torch.randperm(num_images, generator=rng)

    def read(self, seen: Observation, known: Knowledge) -> tuple[Observation, Knowledge]:
        """Change nothing: the message is a gradient, of images that are blends.

        An attack that is given soft labels, or looks for them, finds the blends.
        """
        return seen, known


def blend(images: Tensor, factor: float, partners: Tensor) -> Tensor:
    """Return `factor` of each image and the rest of its partner, (B, C, H, W)."""
    return factor * images + (1 - factor) * images[partners]


def unmix(blends: Tensor, factor: float, partners: Tensor) -> Tensor:
    """Return the images behind a whole batch of blends, the inverse of `blend`.

    Errors of the blends grow up to |2 factor - 1|^-1 times; half and half, there may be no answer.

    Args:
        blends: (B, C, H, W), in the order of the batch.
        factor: The share of each image in its blend.
        partners: (B,) int64.
    """
    identity = torch.eye(len(blends), dtype=torch.float64, device=blends.device)
    matrix = factor * identity + (1 - factor) * identity[partners]
    solved = torch.linalg.solve(matrix, blends.double().flatten(1))
    unmixed: Tensor = solved.to(blends.dtype).view_as(blends)
    return unmixed
