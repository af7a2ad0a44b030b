"""What the tests of attacks share."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.attacks.chains import DIGIT


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
