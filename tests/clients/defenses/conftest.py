"""A situation to defend in."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedsim.defenses import Situation

MakeSituation = Callable[..., Situation]


@pytest.fixture
def situation() -> MakeSituation:
    """Return situations with nothing in particular about what is not given."""

    def make(seed: int = 0, **given: object) -> Situation:
        model = given.pop("model", None) or nn.Linear(2, 2)
        assert isinstance(model, nn.Module)
        usual: dict[str, object] = {
            "kind": "gradient",
            "model": model,
            "before": {name: p.detach().clone() for name, p in model.named_parameters()},
            "loss": functional.cross_entropy,
            "inputs": torch.zeros(1, 2),
            "labels": torch.zeros(1, dtype=torch.int64),
            "learning_rate": 0.1,
            "server_round": 1,
            "num_rounds": 10,
            "memory": {},
            "rng": torch.Generator().manual_seed(seed),
        }
        return Situation(**(usual | given))  # type: ignore[arg-type]

    return make
