"""A small client that sends one gradient, and defenses as an adversary knows them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from attacks.defense import Family, add_noise, hide
from attacks.observation import Knowledge, Observation, Tensors

from .local_client import NUM_CLASSES, network
from .overhearing import overhear


def mlp() -> nn.Sequential:
    """A network whose first layer is linear, for 8x8 grey images, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.Tanh(), nn.Linear(100, 10))


def gradient_heard(
    image: Tensor, label: int, model: nn.Module | None = None, *, server_round: int = 1
) -> tuple[Observation, Knowledge]:
    """Return the gradient of one example (1, 1, 8, 8) as it is heard, and what is known."""
    model = network() if model is None else model
    return overhear(model, image, [label], server_round=server_round, num_classes=NUM_CLASSES)


def noisy(seen: Observation, deviation: float, *, seed: int = 0) -> Observation:
    """Return what was heard with Gaussian noise on it."""
    rng = torch.Generator().manual_seed(seed)
    update = {
        name: tensor + deviation * torch.randn(tensor.shape, generator=rng)
        for name, tensor in seen.update.items()
    }
    return replace(seen, update=update)


def shortened(seen: Observation, factor: float) -> Observation:
    """Return what was heard, times a number."""
    return replace(seen, update={name: factor * its for name, its in seen.update.items()})


@dataclass(frozen=True, kw_only=True)
class KnownNoise:
    """Gaussian noise of a known deviation."""

    deviation: float

    def read(self, seen: Observation, known: Knowledge) -> tuple[Observation, Knowledge]:
        """Say how exact each coordinate is."""
        return seen, add_noise(known, dict.fromkeys(seen.update, self.deviation), Family.GAUSSIAN)


@dataclass(frozen=True, kw_only=True)
class KnownClip:
    """A length that means nothing."""

    def read(self, seen: Observation, known: Knowledge) -> tuple[Observation, Knowledge]:
        """Take the direction alone."""
        return seen, replace(known, length_known=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class KnownMask:
    """Coordinates that say nothing."""

    masks: Tensors = field(default_factory=dict)

    def read(self, seen: Observation, known: Knowledge) -> tuple[Observation, Knowledge]:
        """Leave them out."""
        return hide(seen, self.masks), known


def pruned(seen: Observation, share: float) -> tuple[Observation, KnownMask]:
    """Return what was heard without the smallest share of each parameter, and how it is read."""
    masks: Mapping[str, Tensor] = {
        name: tensor.abs() > tensor.abs().flatten().quantile(share)
        for name, tensor in seen.update.items()
    }
    update = {name: tensor * masks[name] for name, tensor in seen.update.items()}
    return replace(seen, update=update), KnownMask(masks=masks)


def psnr_db(found: Tensor | None, truth: Tensor) -> float:
    """Return the peak signal-to-noise ratio of images in the same order."""
    assert found is not None
    return float(-10 * (found - truth).square().mean().log10())
