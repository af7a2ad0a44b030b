"""What the tests of attacks share."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.data.load import load_data
from tests.attacks.chains import DIGIT
from tests.attacks.local_client import network


@pytest.fixture
def seeded() -> Iterator[None]:
    """Networks that draw their weights from the global generator draw the same ones."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def image(rng: torch.Generator) -> Tensor:
    """One private image of the size of a digit."""
    return torch.rand(1, *DIGIT, generator=rng)


@pytest.fixture
def model(rng: torch.Generator) -> nn.Module:
    """A sigmoid network for 8x8 grey images and 10 classes, weights U(-0.5, 0.5)."""
    return network(rng)


@pytest.fixture
def blurred(rng: torch.Generator) -> Tensor:
    """One image of blurred noise, (1, 1, 8, 8)."""
    return functional.avg_pool2d(torch.rand(1, 1, 10, 10, generator=rng), 3, stride=1)


@pytest.fixture(scope="session")
def photos() -> tuple[Tensor, Tensor]:
    """Patches of photographs, (N, 3, 16, 16) float64, in a fixed, mixed order; their labels."""
    data = load_data("photos", options={"patch_size": 16})
    order = torch.randperm(len(data.train_inputs), generator=torch.Generator().manual_seed(1))
    return data.train_inputs[order].double(), data.train_labels[order]
