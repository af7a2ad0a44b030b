"""How close two images are: MSE, PSNR and SSIM, one value per image, pixels in [0, 1].

SSIM is that of Wang et al. (2004, https://doi.org/10.1109/TIP.2003.819861) as scikit-image computes
it: Gaussian window, K1 = 0.01, K2 = 0.03, data range 1, population covariance, mean over channels
and over the windows that lie wholly inside the image.
Differs from the paper: colour images are compared channel by channel, and the window shrinks for
images below 11 pixels.
"""

import torch
from torch import Tensor

PSNR_CEILING_DB = 120.0
"""Reported where the MSE is 1e-12 or less: a PSNR of infinity cannot be averaged or plotted, and
above about 80 dB only the rounding of float32 is left."""

_WINDOW = 11
_SMALL_WINDOW = 7


def mse(guess: Tensor, truth: Tensor) -> Tensor:
    """Return the mean squared error of each image.

    Shapes:
        guess, truth: (B, C, H, W), pixels in [0, 1]
        returns: (B,) float64
    """
    return (guess.double() - truth.double()).square().flatten(1).mean(dim=1)


def psnr_db(guess: Tensor, truth: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each image in dB, peak 1, at most the ceiling.

    Shapes:
        guess, truth: (B, C, H, W), pixels in [0, 1]
        returns: (B,) float64
    """
    floor = 10 ** (-PSNR_CEILING_DB / 10)
    return -10 * torch.log10(mse(guess, truth).clamp(min=floor))


def ssim(guess: Tensor, truth: Tensor) -> Tensor:
    """Return the structural similarity of each image, 1 for equal images, at least -1.

    The window is 11 x 11 (sigma 1.5). For images of less than 11 pixels on a side it is the largest
    odd size up to 7 that fits, with sigma in proportion; small images then score higher than large
    ones that look as alike, so compare only values of one image size.

    Shapes:
        guess, truth: (B, C, H, W), pixels in [0, 1]
        returns: (B,) float64, on the CPU
    """
    from skimage.metrics import structural_similarity  # importing it takes a while

    sigma = 1.5 * ssim_window(truth.shape[-2:]) / _WINDOW
    values = [
        structural_similarity(  # type: ignore[no-untyped-call]
            one,
            other,
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=sigma,
            use_sample_covariance=False,
        )
        for one, other in zip(
            guess.double().cpu().numpy(), truth.double().cpu().numpy(), strict=True
        )
    ]
    return torch.tensor(values, dtype=torch.float64)


def ssim_window(size: tuple[int, ...]) -> int:
    """Return the side of the SSIM window for images of this (H, W)."""
    side = min(size)
    return _WINDOW if side >= _WINDOW else min(_SMALL_WINDOW, side - 1 + side % 2)
