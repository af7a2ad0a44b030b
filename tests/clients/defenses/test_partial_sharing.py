"""Partial sharing: which layers are sent, and what is left of a message."""

import pytest
import torch
from torch import nn

from attacks.observation import Kind, Knowledge, Observation
from clients.defenses.partial_sharing import PartialSharing
from fedsim.config import parse_experiment
from fedsim.errors import ConfigError
from fedsim.stages.prepare import check

from .conftest import MakeSituation

ALL = {"1.weight", "1.bias", "3.weight", "3.bias", "5.weight", "5.bias"}


def network() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(4, 5),
        nn.ReLU(),
        nn.Linear(5, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )


@pytest.mark.parametrize(
    ("defense", "sent"),
    [
        (PartialSharing(), ALL - {"5.weight", "5.bias"}),
        (PartialSharing(part="classifier"), {"5.weight", "5.bias"}),
        (PartialSharing(part="first"), {"1.weight", "1.bias"}),
        (PartialSharing(part="last", layers=2), ALL - {"1.weight", "1.bias"}),
        (PartialSharing(part="named", names=("*.bias",)), {n for n in ALL if "bias" in n}),
    ],
)
def test_only_the_layers_asked_for_are_sent(
    defense: PartialSharing, sent: set[str], situation: MakeSituation
) -> None:
    model = network()
    update = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    found = defense.apply(update, situation(model=model, inputs=torch.zeros(2, 1, 2, 2)))
    assert found.keys() == ALL
    assert {name for name, tensor in found.items() if tensor.any()} == sent
    assert all(tensor.all() for name, tensor in found.items() if name in sent)
    seen = Observation(round=1, sender="a", receiver="b", kind=Kind.GRADIENT, update=found)
    read, _ = defense.read(seen, Knowledge())
    assert read.update.keys() == sent
    assert read.kind is Kind.CHUNK


EXPERIMENT = 'name = "x"\n[[defenses]]\nname = "partial-sharing"\noptions = {options}\n'


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("{part = 'named', names = ['conv*', 'fc']}", "no parameter is called 'fc'"),
        ("{part = 'named'}", "names must be given for part 'named'"),
        ("{part = 'first', layers = 0}", "layers must be at least 1, got 0"),
    ],
)
def test_what_leaves_nothing_to_send_is_refused_before_a_run(options: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(parse_experiment(EXPERIMENT.replace("{options}", options)))


def test_what_fits_the_model_is_accepted() -> None:
    check(parse_experiment(EXPERIMENT.replace("{options}", "{part = 'first', layers = 2}")))
    check(parse_experiment(EXPERIMENT.replace("{options}", "{}")))


def test_a_model_without_a_classifier_is_refused() -> None:
    experiment = parse_experiment('name = "x"\n')
    headless = nn.Sequential(nn.Conv2d(1, 2, 8), nn.Flatten())
    with pytest.raises(ConfigError, match="part 'body' of Sequential holds no parameter"):
        PartialSharing().check(experiment, headless)
