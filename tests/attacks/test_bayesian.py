from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attacks.bayesian import Bayesian
from attacks.defense import Family, Noise
from attacks.idlg import IDLG
from attacks.observation import AttackFailed, Budget, Knowledge, Observation
from fedsim.data.load import load_data

from .defended import gradient_heard, noisy, psnr_db, shortened
from .local_client import images

NOISE = 0.05
"""Deviation at which matching exactly fits noise."""


@pytest.fixture
def image() -> Tensor:
    return images(1)


def known_noise(seen: Observation, known: Knowledge, deviation: float) -> Knowledge:
    return replace(known, noise=Noise(deviation=dict.fromkeys(seen.update, deviation)))


def test_a_guess_as_likely_as_the_noise_allows_is_better_than_an_exact_match(
    image: Tensor, rng: torch.Generator
) -> None:
    seen, known = gradient_heard(image, 3)
    sent = noisy(seen, NOISE)

    matched = IDLG(restarts=1)(sent, known, rng=rng)
    likeliest = Bayesian(steps=200)(sent, known_noise(seen, known, NOISE), rng=rng)

    assert psnr_db(likeliest.inputs, image) > psnr_db(matched.inputs, image) + 2
    assert likeliest.notes["explained"] == "yes"
    assert likeliest.labels is not None
    assert likeliest.labels.tolist() == [3]


@pytest.mark.parametrize("number", [0, 5])
def test_an_image_rougher_than_photographs_is_not_smoothed_to_one(
    number: int, rng: torch.Generator
) -> None:
    digit = load_data("digits", options={}).train_inputs[number : number + 1]
    seen, known = gradient_heard(digit, 3)
    known = known_noise(seen, known, NOISE)
    sent = noisy(seen, NOISE)

    as_photograph = Bayesian(steps=200, smoothness=0.06)(sent, known, rng=rng)
    found = Bayesian(steps=200)(sent, known, rng=rng)

    assert psnr_db(found.inputs, digit) > psnr_db(as_photograph.inputs, digit) + 0.5


def test_what_is_exact_is_matched_exactly(image: Tensor, rng: torch.Generator) -> None:
    seen, known = gradient_heard(image, 3)

    found = Bayesian(steps=300)(seen, known, rng=rng)

    assert psnr_db(found.inputs, image) > 35  # dB; an error of 0.02 per pixel


def test_noise_that_was_not_told_is_estimated(image: Tensor, rng: torch.Generator) -> None:
    seen, known = gradient_heard(image, 3)

    found = Bayesian(steps=10)(noisy(seen, NOISE), known, rng=rng)

    assert found.notes["noise"] == pytest.approx(NOISE, rel=0.15)


def test_several_rounds_average_their_noise(image: Tensor, rng: torch.Generator) -> None:
    seen, known = gradient_heard(image, 3)
    known = known_noise(seen, known, NOISE)
    rounds = [replace(noisy(seen, NOISE, seed=k), round=k + 1) for k in range(8)]

    alone = Bayesian(steps=100)(rounds[:1], known, rng=rng)
    together = Bayesian(steps=100)(rounds, known, rng=rng)

    assert psnr_db(together.inputs, image) > psnr_db(alone.inputs, image) + 2


def test_a_length_that_means_nothing_is_fitted(image: Tensor, rng: torch.Generator) -> None:
    seen, known = gradient_heard(image, 3)

    found = Bayesian(steps=300)(shortened(seen, 0.01), replace(known, length_known=False), rng=rng)

    assert psnr_db(found.inputs, image) > 25  # dB; grey scores 19


def test_laplacian_noise_is_searched_for_after_gaussian(
    image: Tensor, rng: torch.Generator
) -> None:
    seen, known = gradient_heard(image, 3)
    noise = Noise(deviation=dict.fromkeys(seen.update, NOISE), family=Family.LAPLACIAN)

    found = Bayesian(steps=100)(noisy(seen, NOISE), replace(known, noise=noise), rng=rng)

    assert found.steps > 0
    assert psnr_db(found.inputs, image) > 15


def test_equal_seeds_give_equal_bits(image: Tensor) -> None:
    seen, known = gradient_heard(image, 3)
    once, again = (
        Bayesian(steps=20)(noisy(seen, NOISE), known, rng=torch.Generator().manual_seed(1))
        for _ in range(2)
    )

    assert once.inputs is not None
    assert again.inputs is not None
    assert torch.equal(once.inputs, again.inputs)


def test_a_spent_budget_ends_it_with_the_best_so_far(image: Tensor, rng: torch.Generator) -> None:
    seen, known = gradient_heard(image, 3)

    found = Bayesian()(noisy(seen, NOISE), known, rng=rng, budget=Budget(0.0))

    assert not found.finished
    assert found.inputs is not None


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1"):
        Bayesian(steps=0)
    with pytest.raises(ValueError, match="smoothness must be greater than 0"):
        Bayesian(smoothness=0.0)


def test_no_round_at_all_is_refused(rng: torch.Generator) -> None:
    with pytest.raises(AttackFailed, match="no round"):
        Bayesian()([], Knowledge(), rng=rng)
