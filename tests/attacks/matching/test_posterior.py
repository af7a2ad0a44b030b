import math

import pytest
import torch

from attacks.defense import Family
from attacks.matching.posterior import Likelihood, Prior, prior_of
from attacks.observation import Knowledge


@pytest.fixture
def heard() -> dict[str, torch.Tensor]:
    return {"a": torch.tensor([1.0, 2.0, -2.0]), "b": torch.tensor([0.5])}


def test_gaussian_errors_cost_half_their_square_in_deviations(
    heard: dict[str, torch.Tensor],
) -> None:
    likelihood = Likelihood(deviation={"a": 0.5, "b": 0.1})
    guess = {"a": heard["a"] + torch.tensor([1.0, 0.0, 0.0]), "b": heard["b"] + 0.3}

    assert float(likelihood(guess, heard)) == pytest.approx((2**2 + 3**2) / 2)


def test_laplacian_errors_cost_their_size(heard: dict[str, torch.Tensor]) -> None:
    likelihood = Likelihood(deviation={"a": 0.01, "b": 0.01}, family=Family.LAPLACIAN)
    guess = {"a": heard["a"] + torch.tensor([1.0, 0.0, 0.0]), "b": heard["b"]}

    assert float(likelihood(guess, heard)) == pytest.approx(math.sqrt(2) * 100, rel=0.01)


def test_an_unknown_length_is_fitted(heard: dict[str, torch.Tensor]) -> None:
    guess = {name: 7 * tensor for name, tensor in heard.items()}
    opposite = {name: -tensor for name, tensor in heard.items()}
    known, unknown = (
        Likelihood(deviation={"a": 0.1, "b": 0.2}, scaled=scaled) for scaled in (False, True)
    )

    assert float(unknown(guess, heard)) == pytest.approx(0, abs=1e-6)
    assert float(known(guess, heard)) > 1_000
    assert float(unknown(opposite, heard)) > 100  # no negative length


def test_where_signs_are_all_only_wrong_signs_count(heard: dict[str, torch.Tensor]) -> None:
    likelihood = Likelihood(deviation={"a": 1.0, "b": 1.0}, signs=True)
    same = {"a": torch.tensor([9.0, 0.1, -5.0]), "b": torch.tensor([0.01])}
    wrong = {**same, "b": torch.tensor([-0.01])}

    assert float(likelihood(same, heard)) == pytest.approx(0, abs=1e-6)
    assert float(likelihood(wrong, heard)) > 1


def test_noise_explains_noise_and_not_a_small_parameter_that_is_off() -> None:
    rng = torch.Generator().manual_seed(0)
    heard = {"large": torch.randn(10_000, generator=rng), "small": torch.randn(10, generator=rng)}
    counts = {"large": 10_000, "small": 10}
    likelihood = Likelihood(deviation={"large": 1.0, "small": 1.0})
    zero = {name: torch.zeros_like(tensor) for name, tensor in heard.items()}
    off = {**zero, "small": heard["small"] + 3}

    assert likelihood.explains(zero, heard, counts)
    assert not likelihood.explains(off, heard, counts)


def test_smooth_images_inside_the_range_are_likelier() -> None:
    prior = Prior(input_range=(0.0, 2.0))
    plain = torch.ones(1, 1, 8, 8)
    checked = plain + 0.5 * (-1.0) ** torch.arange(8)
    beyond = plain + 3

    assert float(prior(plain)) == pytest.approx(0, abs=1e-5)
    assert float(prior(checked)) > 10
    assert float(prior(beyond)) > 10


def test_images_that_are_rougher_than_expected_throughout_are_not_smoothed_as_photographs() -> None:
    fixed, fits = Prior(), Prior(rougher=True)
    smooth = torch.linspace(0, 1, 64).reshape(1, 1, 8, 8) / 4
    rough = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    slopes = []
    for prior in (fixed, fits):
        point = rough.clone().requires_grad_()
        slopes.append(torch.autograd.grad(prior(point), point)[0])

    assert float(fits(smooth)) == float(fixed(smooth))
    assert float(fits(rough)) < float(fixed(rough))
    # the same direction, as strong as for the roughness that it has: a third, and not 0.06
    ratio = 0.06 / float(
        torch.cat([rough.diff(dim=axis).flatten() for axis in (2, 3)]).abs().mean()
    )
    assert torch.allclose(slopes[1], ratio * slopes[0], rtol=0.05, atol=1e-3)


def test_the_prior_has_no_step_where_it_begins_to_be_fitted() -> None:
    images = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    prior, fixed = Prior(rougher=True), Prior()
    shares = torch.linspace(0.1, 0.4, 61)  # the scale is 0.06 about halfway
    values = torch.stack([prior(share * images) for share in shares])
    plain = torch.stack([fixed(share * images) for share in shares])

    assert torch.equal(values[:10], plain[:10])
    assert bool((values[-10:] < plain[-10:]).all())
    assert float(values.diff(n=2).abs().max()) < 0.05 * float(values.diff().abs().max())


def test_a_public_sample_tells_how_smooth_images_are() -> None:
    sample = torch.zeros(5, 1, 8, 8)
    sample[..., ::2, ::2] = 1.0

    rough = prior_of(Knowledge(input_shape=(1, 8, 8), public_sample=sample))

    assert rough.smoothness == pytest.approx(0.5)
    assert prior_of(Knowledge(input_shape=(1, 8, 8))).smoothness == pytest.approx(0.06)
    assert prior_of(Knowledge(input_shape=(64,))).smoothness is None
