"""Noise of the size asked for, and what an adversary makes of it."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from attacks.observation import Kind, Knowledge, Observation
from clients.defenses.noise import GaussianNoise, LaplacianNoise
from fedsim.defenses import Situation

MakeSituation = Callable[..., Situation]


def heard(update: dict[str, torch.Tensor]) -> Observation:
    return Observation(round=1, sender="a", receiver="b", kind=Kind.GRADIENT, update=update)


@pytest.mark.parametrize("noise", [GaussianNoise, LaplacianNoise])
@pytest.mark.parametrize(("scale_is", "deviation"), [("deviation", 0.01), ("variance", 0.1)])
def test_the_noise_has_the_deviation_asked_for(
    noise: type[GaussianNoise], scale_is: str, deviation: float, situation: MakeSituation
) -> None:
    defense = noise(scale=0.01, scale_is=scale_is)  # type: ignore[arg-type]
    found = defense.apply({"w": torch.zeros(200, 500)}, situation())["w"]
    assert float(found.std()) == pytest.approx(deviation, rel=0.02)
    assert abs(float(found.mean())) < 0.02 * deviation


def test_laplacian_noise_has_heavier_tails_than_gaussian(situation: MakeSituation) -> None:
    def kurtosis(noise: GaussianNoise) -> float:
        found = noise.apply({"w": torch.zeros(200_000)}, situation())["w"].double()
        return float((found**4).mean() / (found**2).mean() ** 2)

    assert kurtosis(GaussianNoise()) == pytest.approx(3, abs=0.1)
    assert kurtosis(LaplacianNoise()) == pytest.approx(6, abs=0.4)


def test_equal_seeds_give_equal_noise_and_others_do_not(situation: MakeSituation) -> None:
    update = {"w": torch.zeros(5)}
    one, again, other = (GaussianNoise().apply(update, situation(seed))["w"] for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not update["w"].any()


def test_who_knows_it_knows_how_exact_each_coordinate_is() -> None:
    seen, known = GaussianNoise(scale=3e-3).read(heard({"w": torch.zeros(2)}), Knowledge())
    _, twice = GaussianNoise(scale=4e-3).read(seen, known)
    assert twice.noise is not None
    assert twice.noise.deviation == {"w": pytest.approx(5e-3)}  # variances add


@pytest.mark.parametrize("noise", [GaussianNoise, LaplacianNoise])
@pytest.mark.parametrize("scale", [1e-1, 1e-3])
def test_the_scale_is_read_off_a_classifier_trained_by_cross_entropy(
    noise: type[GaussianNoise], scale: float, situation: MakeSituation
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 400), nn.Sigmoid(), nn.Linear(400, 10))
    value = functional.cross_entropy(model(torch.rand(3, 3, 2, 2)), torch.tensor([1, 2, 2]))
    gradient = torch.autograd.grad(value, list(model.parameters()))
    names = [name for name, _ in model.named_parameters()]
    sent = noise(scale=scale).apply(dict(zip(names, gradient, strict=True)), situation())
    known = Knowledge(model=model, input_shape=(3, 2, 2), num_classes=10)
    assert noise().estimated(heard(sent), known).scale == pytest.approx(scale, rel=0.15)


def test_a_scale_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="scale must be 0 or more, got -1"):
        GaussianNoise(scale=-1)
