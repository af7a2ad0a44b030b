"""A small client, and what an adversary hears of it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.observation import Kind, Knowledge, Observation

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
        named = dict(model.named_parameters())
        loss = functional.cross_entropy(model(inputs), labels)
        gradient = torch.autograd.grad(loss, list(named.values()))
        seen = Observation(
            round=1,
            sender="client-0",
            receiver="server",
            kind=Kind.GRADIENT,
            update=dict(zip(named, gradient, strict=True)),
            weights={name: p.detach().clone() for name, p in named.items()},
        )
        known = Knowledge(
            model=model, input_shape=tuple(inputs.shape[1:]), num_classes=3, batch_size=len(inputs)
        )
        return seen, known

    return hear
