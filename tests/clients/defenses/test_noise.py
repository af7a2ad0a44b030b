"""Noise of the size asked for, and what an adversary makes of it."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from attacks.defense import Untold, length_of, read_defenses
from attacks.observation import Kind, Knowledge, LocalRecipe
from clients.defenses.clip import Clip
from clients.defenses.noise import GaussianNoise, LaplacianNoise

from .conftest import MakeSituation
from .hearing import heard


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


def gradient() -> tuple[dict[str, torch.Tensor], Knowledge, dict[str, torch.Tensor]]:
    """Return a mean gradient of three examples, what is known, and the weights in force."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 400), nn.Sigmoid(), nn.Linear(400, 10))
    value = functional.cross_entropy(model(torch.rand(3, 3, 2, 2)), torch.tensor([1, 2, 2]))
    found = torch.autograd.grad(value, list(model.parameters()))
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    known = Knowledge(model=model, input_shape=(3, 2, 2), num_classes=10)
    return dict(zip(weights, found, strict=True)), known, weights


@pytest.mark.parametrize("noise", [GaussianNoise, LaplacianNoise])
@pytest.mark.parametrize("scale", [1e-1, 1e-3])
def test_the_scale_is_read_off_a_classifier_trained_by_cross_entropy(
    noise: type[GaussianNoise], scale: float, situation: MakeSituation
) -> None:
    update, known, _ = gradient()
    sent = noise(scale=scale).apply(update, situation())
    assert noise().estimated(heard(sent), known).scale == pytest.approx(scale, rel=0.15)


def test_the_scale_is_read_off_new_weights_too(situation: MakeSituation) -> None:
    update, known, weights = gradient()
    change = {name: -0.5 * tensor for name, tensor in update.items()}
    sent = GaussianNoise(scale=1e-2).apply(change, situation())
    after = {name: weights[name] + tensor for name, tensor in sent.items()}
    seen = replace(heard(after), kind=Kind.WEIGHTS, weights=weights)

    assert GaussianNoise().estimated(seen, known).scale == pytest.approx(1e-2, rel=0.15)


def test_noise_that_was_shortened_with_the_update_is_as_large_as_it_is_heard(
    situation: MakeSituation,
) -> None:
    update, known, _ = gradient()
    sent = GaussianNoise(scale=1e-2).apply(update, situation())
    clip = Clip(norm=0.1 * length_of(sent))
    seen = heard(clip.apply(sent, situation()))

    _, left = read_defenses(seen, replace(known, defenses=(GaussianNoise(scale=1e-2), clip)))

    assert left.noise is not None
    assert set(left.noise.deviation) == set(update)
    assert left.noise.deviation["1.weight"] == pytest.approx(1e-3, rel=0.15)
    assert not left.length_known


def test_noise_whose_size_was_not_told_is_not_counted_twice(situation: MakeSituation) -> None:
    update, known, _ = gradient()
    one, other = GaussianNoise(scale=3e-3), GaussianNoise(scale=4e-3)
    seen = heard(other.apply(one.apply(update, situation(1)), situation(2)))

    _, left = read_defenses(seen, replace(known, defenses=(Untold(defense=one), other)))

    assert left.noise is not None
    assert left.noise.deviation["1.weight"] == pytest.approx(5e-3, rel=0.1)


@pytest.mark.parametrize(("rate", "unit"), [(None, 1.0), (0.1, 10.0)])
@pytest.mark.parametrize("told", [True, False])
def test_the_mean_of_four_clients_has_half_their_noise(
    rate: float | None, unit: float, told: bool, situation: MakeSituation
) -> None:
    update, known, _ = gradient()
    noise = GaussianNoise(scale=1e-2)
    sent = [noise.apply(update, situation(seed)) for seed in range(4)]
    mean = {n: unit * torch.stack([one[n] for one in sent]).mean(dim=0) for n in update}
    seen = replace(heard(mean), kind=Kind.AGGREGATE, num_examples=12)
    known = replace(known, recipe=LocalRecipe(batch_size=3, learning_rate=rate))

    link = noise if told else Untold(defense=GaussianNoise())
    _, left = link.read(seen, known)

    assert left.noise is not None  # a change of weights over the rate is a gradient
    assert left.noise.deviation["1.weight"] == pytest.approx(unit * 5e-3, rel=0.15)


def test_a_scale_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="scale must be 0 or more, got -1"):
        GaussianNoise(scale=-1)
