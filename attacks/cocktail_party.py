"""Cocktail Party (Kariyappa et al., 2023, arXiv 2209.05578): independent components of a batch.

Each row of the first linear layer's gradient is a mixture of the B inputs. Whitened, the inputs
are directions: those whose projection is far from Gaussian, smooth as an image, and different from
each other. Unmixing vectors are found by gradient descent on those three; no weights are used.

Differs from the paper: the bias gradient is one more pixel of the mixtures, and that pixel is 1 in
every image, which gives each its sign and scale; the input range does where that fails. The
published code leaves the term for Gaussianity out of its loss; here it is in, and its weight is a
setting. For images alone: no embeddings inside a network, no labels.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from attacks.column_space import noise_of
from attacks.first_layer import layer_gradient
from attacks.linear import layer_that_sees_the_input
from attacks.network import known_architecture, trace
from attacks.observation import (
    AttackFailed,
    Budget,
    Knowledge,
    Observation,
    Reconstruction,
    gradient_of,
    only,
    require_one_step,
)
from attacks.threats import Capability

_OFF = 0.1
"""The bias is believed when it puts an image so far out of the range at most, root mean square."""
_GAUSSIAN = 0.37457
"""Mean of log cosh of a standard normal number."""


@dataclass(frozen=True, kw_only=True)
class CocktailParty:
    """Unmix the gradient of the first linear layer into as many images as the batch has.

    Attributes:
        steps: Adam steps.
        step_size: Of Adam, on the unmixing matrix.
        gaussianity_weight: Of the negentropy of each image.
        tv_weight: Of total variation of the images, whitened scale.
        decorrelation_weight: Of unmixing vectors that point the same way.
        decorrelation_slope: How sharply that grows, T in exp(T |cos|).
    """

    steps: int = 25_000
    step_size: float = 1e-3
    gaussianity_weight: float = 1.0
    tv_weight: float = 3.1
    decorrelation_weight: float = 1.47
    decorrelation_slope: float = 12.4

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if self.steps < 1 or not self.step_size > 0:
            raise ValueError(
                f"steps must be at least 1 and step_size positive, got {self.steps} and "
                f"{self.step_size}"
            )
        for name in ("gaussianity", "tv", "decorrelation"):
            weight = getattr(self, f"{name}_weight")
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name}_weight must be at least 0 and finite, got {weight}")
        if not 0 < self.decorrelation_slope < math.inf:
            raise ValueError(
                f"decorrelation_slope must be positive and finite, got {self.decorrelation_slope}"
            )

    @property
    def needs(self) -> frozenset[Capability]:
        """The model, what inputs look like, and how many there are; no weights."""
        return frozenset({Capability.ARCHITECTURE, Capability.INPUT_DOMAIN, Capability.BATCH_SIZE})

    def check(self, known: Knowledge) -> None:
        """Refuse several steps, and models in which no linear layer sees the input."""
        require_one_step(known.recipe)
        layer_that_sees_the_input(trace(*known_architecture(known)))

    def __call__(
        self,
        seen: Observation | Sequence[Observation],
        known: Knowledge,
        *,
        rng: torch.Generator,
        budget: Budget | None = None,
    ) -> Reconstruction:
        """Guess the batch behind one update.

        Shapes:
            returns .inputs: (B, C, H, W)
            returns .labels: None

        Raises:
            AttackFailed: No linear layer with a bias sees the image, its gradient was not heard,
                or it mixes fewer images than the batch has.
        """
        start = time.monotonic()
        seen = only(seen)
        if not known.batch_size:
            raise AttackFailed("the number of images to unmix is unknown; grant 'batch-size'")
        model, shape = known_architecture(known)
        layer, constants = layer_that_sees_the_input(trace(model, shape))
        weight, bias, heard = layer_gradient(
            gradient_of(seen, known.recipe), layer.name, seen.visible
        )
        noise = noise_of(weight, heard, known.batch_size, rng)
        rank = len(noise.strengths)
        if rank < known.batch_size:
            raise AttackFailed(
                f"the gradient mixes {rank} images that can be told from noise, "
                f"the batch has {known.batch_size}"
            )
        unmixing, loss, steps, finished = self._unmix(noise.basis.T @ weight, shape, rng, budget)
        unmixing = unmixing @ noise.basis.T
        images = (unmixing @ weight).view(-1, *shape)
        ones = (unmixing @ bias).view(-1, *(1 for _ in shape))
        mean, std = images.new_zeros(1), images.new_ones(1)
        if constants is not None:
            mean, std = (constant.to(images) for constant in constants)
        images = _into_range(images, ones, (mean, std), known.input_range)
        if not bool(images.isfinite().all()):
            raise AttackFailed("the images cannot be told from each other: unmixing did not end")
        return Reconstruction(
            inputs=images.to(next(iter(seen.update.values())).dtype),
            labels=None,
            matching_loss=loss,
            steps=steps,
            seconds=time.monotonic() - start,
            finished=finished,
        )

    def _unmix(
        self,
        mixed: Tensor,
        shape: tuple[int, ...],
        rng: torch.Generator,
        budget: Budget | None,
    ) -> tuple[Tensor, float, int, bool]:
        """Find unmixing vectors for mixtures (B, D) of images; steps in float32.

        Returns:
            The vectors, (B, B), float64; the loss; steps taken; False if the budget ended it.
        """
        centre = mixed.mean(1, keepdim=True)
        turn, strengths, right = torch.linalg.svd(mixed - centre, full_matrices=False)
        scale = (mixed.shape[1] - 1) ** 0.5
        white = (right * scale).float()
        level = (turn.T @ centre / strengths[:, None] * scale).float()
        size = len(white)
        vectors = torch.eye(size) + 1e-3 * torch.randn(size, size, generator=rng)
        vectors = vectors.to(white).requires_grad_()
        optimizer = torch.optim.Adam([vectors], lr=self.step_size)
        step, finished = 0, True
        value = torch.tensor(torch.inf)
        while step < self.steps:
            if budget is not None and budget.spent:
                finished = False
                break
            with torch.enable_grad():
                value = self._loss(vectors, white, level, shape)
            (vectors.grad,) = torch.autograd.grad(value, vectors)
            optimizer.step()
            step += 1
        unit = functional.normalize(vectors.detach(), dim=1)
        whitening = turn.T / strengths[:, None] * scale
        return unit.double() @ whitening, float(value.detach()), step, finished

    def _loss(
        self, vectors: Tensor, white: Tensor, level: Tensor, shape: tuple[int, ...]
    ) -> Tensor:
        """Return what unmixing vectors (B, B) should make small."""
        unit = functional.normalize(vectors, dim=1)
        images = unit @ white
        log_cosh = images.abs() + torch.log1p(torch.exp(-2 * images.abs())) - math.log(2)
        negentropy = (log_cosh.mean(1) - _GAUSSIAN).square().mean()
        rough = images.new_zeros(())
        if len(shape) == 3:  # coordinates of a row have no neighbours
            pictures = (images + unit @ level).view(-1, *shape)
            rough = (pictures[..., 1:, :] - pictures[..., :-1, :]).abs().mean()
            rough = rough + (pictures[..., 1:] - pictures[..., :-1]).abs().mean()
        cosines = (unit @ unit.T).abs()
        alike = torch.expm1(self.decorrelation_slope * cosines) / math.exp(self.decorrelation_slope)
        alike = alike.fill_diagonal_(0).mean() * math.exp(self.decorrelation_slope)
        total: Tensor = (
            -self.gaussianity_weight * negentropy
            + self.tv_weight * rough
            + self.decorrelation_weight * alike
        )
        return total


def _into_range(
    images: Tensor, ones: Tensor, constants: tuple[Tensor, Tensor], box: tuple[float, float]
) -> Tensor:
    """Give images (B, C, H, W) known up to sign and scale a place in the input range.

    Args:
        images: As the layer sees them, times a number each.
        ones: That number, (B, 1, 1, 1), as the bias tells it.
        constants: Mean and standard deviation that the inputs were normalised by.
        box: The input range.
    """
    low, high = box
    mean, std = constants
    told = images / torch.where(ones.abs() > 0, ones, 1e-30) * std + mean
    inside = told.clamp(low, high)
    axes = tuple(range(1, images.dim()))
    off = (told - inside).square().mean(axes, keepdim=True).sqrt()
    least, greatest = images.amin(axes, True), images.amax(axes, True)
    positive = greatest.abs() >= least.abs()
    upright = torch.where(positive, images, -images)
    least, greatest = upright.amin(axes, True), upright.amax(axes, True)
    stretched = low + (high - low) * (upright - least) / (greatest - least).clamp_min(1e-30)
    return torch.where(off <= _OFF * (high - low), inside, stretched)
