"""MSE, PSNR and SSIM against closed forms and reference implementations."""

import numpy as np
import pytest
import torch
from torch import Tensor

from attacks.metrics.images import PSNR_CEILING_DB, mse, psnr_db, ssim, ssim_window


@pytest.fixture
def images(rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Three noisy colour images beside the clean ones, (3, 3, 24, 17)."""
    truth = torch.rand(3, 3, 24, 17, generator=rng)
    noise = torch.tensor([0.01, 0.1, 0.5]).view(3, 1, 1, 1)
    return (truth + noise * torch.randn(truth.shape, generator=rng)).clamp(0, 1), truth


def test_mse_and_psnr_equal_the_reference_image_by_image(images: tuple[Tensor, Tensor]) -> None:
    from skimage import metrics

    guess, truth = images
    pairs = list(zip(truth.double().numpy(), guess.double().numpy(), strict=True))

    expected_mse = [metrics.mean_squared_error(one, other) for one, other in pairs]
    expected_db = [
        metrics.peak_signal_noise_ratio(one, other, data_range=1.0)  # type: ignore[no-untyped-call]
        for one, other in pairs
    ]

    np.testing.assert_allclose(mse(guess, truth), expected_mse, rtol=1e-12)
    np.testing.assert_allclose(psnr_db(guess, truth), expected_db, rtol=1e-12)


def test_a_constant_error_of_one_tenth_is_twenty_decibels() -> None:
    truth = torch.full((2, 1, 5, 5), 0.5, dtype=torch.float64)

    torch.testing.assert_close(psnr_db(truth + 0.1, truth), torch.full((2,), 20.0).double())


def test_an_exact_guess_scores_the_ceiling_and_not_infinity() -> None:
    truth = torch.rand(2, 3, 8, 8)

    assert psnr_db(truth, truth).tolist() == [PSNR_CEILING_DB] * 2
    assert psnr_db(truth.double() + 1e-9, truth).tolist() == [PSNR_CEILING_DB] * 2


@pytest.mark.parametrize("size", [(11, 11), (32, 28), (8, 8), (5, 9), (3, 3)])
def test_ssim_is_the_mean_of_the_formula_over_all_whole_windows(
    size: tuple[int, int], rng: torch.Generator
) -> None:
    truth = torch.rand(2, 3, *size, generator=rng, dtype=torch.float64)
    guess = (truth + 0.2 * torch.randn(truth.shape, generator=rng)).clamp(0, 1)

    expected = [ssim_by_the_formula(*pair) for pair in zip(guess, truth, strict=True)]

    np.testing.assert_allclose(ssim(guess, truth), expected, rtol=1e-9)


def ssim_by_the_formula(guess: Tensor, truth: Tensor) -> float:
    """SSIM written out window by window, equations (13) and (14-16) of Wang et al."""
    side = ssim_window(truth.shape[-2:])
    place = torch.arange(side, dtype=torch.float64) - side // 2
    bell = torch.exp(-place.square() / (2 * (1.5 * side / 11) ** 2))
    weight = bell.outer(bell) / bell.outer(bell).sum()
    values = []
    for one, other in zip(guess, truth, strict=True):
        for x, y in zip(
            one.unfold(0, side, 1).unfold(1, side, 1).reshape(-1, side, side),
            other.unfold(0, side, 1).unfold(1, side, 1).reshape(-1, side, side),
            strict=True,
        ):
            mean_x, mean_y = (weight * x).sum(), (weight * y).sum()
            variances = (weight * (x - mean_x) ** 2 + weight * (y - mean_y) ** 2).sum()
            covariance = (weight * (x - mean_x) * (y - mean_y)).sum()
            numerator = (2 * mean_x * mean_y + 0.01**2) * (2 * covariance + 0.03**2)
            values.append(numerator / ((mean_x**2 + mean_y**2 + 0.01**2) * (variances + 0.03**2)))
    return float(torch.stack(values).mean())


def test_ssim_equals_that_of_torchmetrics_away_from_the_border(
    images: tuple[Tensor, Tensor],
) -> None:
    functional = pytest.importorskip("torchmetrics.functional.image")
    guess, truth = (part.double() for part in images)

    _, everywhere = functional.structural_similarity_index_measure(
        guess, truth, data_range=1.0, return_full_image=True
    )

    # it pads by reflection and averages the padded border too; we count whole windows only
    inside = everywhere[..., 5:-5, 5:-5].flatten(1).mean(dim=1)
    torch.testing.assert_close(ssim(guess, truth), inside, rtol=1e-6, atol=0)


def test_ssim_of_constant_images_compares_their_brightness_alone() -> None:
    dark, bright = torch.full((1, 1, 16, 16), 0.2), torch.full((1, 1, 16, 16), 0.8)

    found = ssim(dark, bright).item()

    assert found == pytest.approx((2 * 0.2 * 0.8 + 1e-4) / (0.2**2 + 0.8**2 + 1e-4))
    assert ssim(dark, dark).item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("side", "window"), [(1, 1), (2, 1), (3, 3), (6, 5), (7, 7), (10, 7), (11, 11), (224, 11)]
)
def test_the_ssim_window_is_odd_and_fits(side: int, window: int) -> None:
    assert ssim_window((side, 300)) == window
