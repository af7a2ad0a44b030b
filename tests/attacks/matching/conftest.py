"""A small client, and what an adversary hears of it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from attacks.observation import Knowledge, Observation
from tests.attacks.overhearing import overhear as hear_one_gradient

Overhear = Callable[[nn.Module, Tensor, Tensor], tuple[Observation, Knowledge]]


@pytest.fixture
def net(rng: torch.Generator) -> nn.Module:
    """Sigmoid network for 1x4x4 inputs and 3 classes, weights U(-0.5, 0.5)."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.Sigmoid(), nn.Flatten(), nn.Linear(64, 3)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=rng) - 0.5)
    return model


@pytest.fixture
def image(rng: torch.Generator) -> Tensor:
    """One input, (1, 1, 4, 4)."""
    return torch.rand(1, 1, 4, 4, generator=rng)


@pytest.fixture
def overhear() -> Overhear:
    """How to hear the gradient of a model, in the mode it is in, on a batch."""

    def hear(model: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Observation, Knowledge]:
        return hear_one_gradient(model, inputs, labels, num_classes=3)

    return hear
