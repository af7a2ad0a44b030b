"""Local differential privacy: sensitivity, noise, account."""

import pytest
import torch
from opacus.accountants import RDPAccountant
from torch import nn

from attacks.defense import length_of
from attacks.observation import Kind, Knowledge, LocalRecipe, Observation
from clients.defenses.local_dp import LocalDP
from fedsim.config import parse_experiment
from fedsim.errors import ConfigError
from fedsim.privacy import Share, epsilon_of

from .conftest import MakeSituation

SHARE = Share(num_examples=20, batch_size=4, num_steps=5, num_epochs=1, num_rounds=7)


def heard(update: dict[str, torch.Tensor], kind: Kind = Kind.GRADIENT) -> Observation:
    return Observation(
        round=1, sender="client-1", receiver="server", kind=kind, update=update, num_examples=40
    )


def test_an_update_is_clipped_as_a_whole_before_noise_is_added(situation: MakeSituation) -> None:
    bare = LocalDP(max_norm=2.0, noise_multiplier=0.0)
    update = {"w": torch.full((100,), 3.0), "b": torch.full((5,), -3.0)}

    clipped = bare.apply(update, situation())

    assert length_of(clipped) == pytest.approx(2.0)
    assert torch.allclose(clipped["w"] / clipped["w"][0], update["w"] / 3)


def test_noise_has_the_deviation_that_the_account_is_for(situation: MakeSituation) -> None:
    found = LocalDP(max_norm=2.0, noise_multiplier=1.5).apply(
        {"w": torch.zeros(100_000)}, situation()
    )
    assert float(found["w"].std()) == pytest.approx(3.0, rel=0.02)


@pytest.mark.parametrize(("neighbours", "apart"), [("replace", 2.0), ("zero", 1.0)])
def test_two_updates_are_as_far_apart_as_the_account_takes_them_to_be(
    neighbours: str, apart: float, situation: MakeSituation
) -> None:
    defense = LocalDP(max_norm=1.0, noise_multiplier=4.0, neighbours=neighbours)  # type: ignore[arg-type]
    accountant = RDPAccountant()
    for _ in range(SHARE.num_rounds):
        accountant.step(noise_multiplier=4.0 / apart, sample_rate=1.0)

    found = epsilon_of(defense.mechanism(SHARE), 1e-5)

    assert found == accountant.get_epsilon(1e-5)
    here, there = {"w": torch.tensor([9.0])}, {"w": torch.tensor([-9.0 if apart == 2 else 0.0])}
    bare = LocalDP(max_norm=1.0, noise_multiplier=0.0)
    one, other = (bare.apply(update, situation())["w"] for update in (here, there))
    assert float((one - other).abs()) == apart


@pytest.mark.parametrize("neighbours", ["replace", "zero"])
def test_the_noise_that_epsilon_asks_for_is_found(neighbours: str) -> None:
    defense = LocalDP(epsilon=2.0, neighbours=neighbours).tailored(SHARE)  # type: ignore[arg-type]
    assert 1.97 < epsilon_of(defense.mechanism(SHARE), 1e-5) <= 2.0


def test_frozen_layers_stay_as_they_are(situation: MakeSituation) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    update = {name: torch.zeros_like(p) for name, p in model.named_parameters()}

    sent = LocalDP().apply(update, situation(model=model))

    assert not sent["0.weight"].any()
    assert sent["1.weight"].all()


def test_running_statistics_would_leave_undefended_and_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    with pytest.raises(ConfigError, match=r"running statistics.*'1\.running_mean'"):
        LocalDP().check(parse_experiment('name = "x"'), model)


def test_who_knows_it_knows_the_noise_and_forgets_the_length() -> None:
    known = Knowledge(batch_size=40, recipe=LocalRecipe(batch_size=10))
    defense = LocalDP(max_norm=0.5, noise_multiplier=0.2)

    _, alone = defense.read(heard({"w": torch.ones(3)}), known)
    _, of_four = defense.read(heard({"w": torch.ones(3)}, Kind.AGGREGATE), known)

    assert alone.noise is not None
    assert of_four.noise is not None
    assert alone.noise.deviation == {"w": pytest.approx(0.1)}
    assert of_four.noise.deviation == {"w": pytest.approx(0.05)}  # a mean of four is as exact
    assert not alone.length_known


def test_noise_on_a_change_of_weights_is_larger_in_a_mean_that_is_heard_as_a_gradient() -> None:
    known = Knowledge(recipe=LocalRecipe(batch_size=10, learning_rate=0.1))
    defense = LocalDP(max_norm=0.5, noise_multiplier=0.2)

    _, mean = defense.read(heard({"w": torch.ones(3)}, Kind.AGGREGATE), known)

    assert mean.noise is not None
    assert mean.noise.deviation == {"w": pytest.approx(0.5)}


@pytest.mark.parametrize("options", [{"max_norm": 0.0}, {"delta": 0.0}, {"epsilon": -1.0}])
def test_settings_without_meaning_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        LocalDP(**options)  # type: ignore[arg-type]
