"""What images look like before anything was heard."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


def total_variation(images: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Return the mean absolute difference of horizontal plus that of vertical neighbours.

    As in Inverting Gradients. 0 for a constant image; 2 for a checkerboard of 0 and 1.

    Args:
        images: Shape (..., H, W); an axis of one pixel has no neighbours and adds nothing. Rows of
            a table, (B, D), have none either.
        smoothing: Width w of the dip around 0 where the absolute value |d| is rounded off to
            sqrt(d^2 + w^2) - w: small differences then have small slopes. 0 leaves it sharp.
    """
    total = images.new_zeros(())
    for axis in (-1, -2):
        if images.dim() > 2 and images.shape[axis] > 1:
            steps = images.diff(dim=axis)
            if smoothing > 0:
                steps = (steps.square() + smoothing**2).sqrt() - smoothing
            total = total + steps.abs().mean()
    return total


def squared_size(images: Tensor, centre: float) -> Tensor:
    """Return the mean squared distance of pixels from `centre`, as in GradInversion."""
    return (images - centre).square().mean()


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """Mean and variance of what enters a normalisation layer, per channel.

    Attributes:
        mean: Shape (C,).
        variance: Shape (C,), unbiased.
    """

    mean: Tensor
    variance: Tensor


def statistics_of(features: Tensor) -> Statistics:
    """Return the statistics of features (N, C, ...) over everything but the channels."""
    columns = features.transpose(0, 1).flatten(1)
    return Statistics(mean=columns.mean(dim=1), variance=columns.var(dim=1))


def statistics_distance(
    found: Mapping[str, Statistics], wanted: Mapping[str, Statistics], *, epsilon: float = 1e-5
) -> Tensor:
    """Return how far the statistics of several layers are from those wanted, without a unit.

    Per layer, the mean over channels of the squared difference of means, in variances wanted, and
    of the squared relative difference of variances; then the mean over layers. 0 where all agree.

    Args:
        found: By layer, those of the guess.
        wanted: By layer; the layers that count.
        epsilon: Added to variances, so that a silent channel can be compared.
    """
    layers = []
    for name, aim in wanted.items():
        scale = aim.variance + epsilon
        shift = (found[name].mean - aim.mean).square() / scale
        spread = ((found[name].variance - aim.variance) / scale).square()
        layers.append((shift + spread).mean())
    return torch.stack(layers).mean()


def registered_mean(guesses: Tensor) -> Tensor:
    """Return the mean of several guesses at the same images, each moved to fit their plain mean.

    Each image is shifted, around the borders, by the whole pixels at which its phase correlation
    with the plain mean is highest. (GradInversion registers by matching learned features.)

    Shapes:
        guesses: (R, B, C, H, W)
        returns: (B, C, H, W)
    """
    plain = guesses.mean(dim=0, keepdim=True).expand_as(guesses)
    return shifted(guesses, *offset(guesses, plain)).mean(dim=0)


def offset(images: Tensor, aims: Tensor) -> tuple[Tensor, Tensor]:
    """Return the whole pixels (down, right) by which each image must move to fit its aim.

    Phase correlation summed over channels; computed where the images are, without waiting for it.

    Shapes:
        images, aims: (..., C, H, W)
        returns: two of (...), int64
    """
    height, width = images.shape[-2:]
    cross = torch.fft.rfft2(aims) * torch.fft.rfft2(images).conj()
    phases = cross / cross.abs().clamp_min(torch.finfo(images.dtype).tiny)
    peaks = torch.fft.irfft2(phases.sum(dim=-3), s=(height, width)).flatten(-2).argmax(dim=-1)
    return peaks.div(width, rounding_mode="floor"), peaks % width


def shifted(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Move images (..., C, H, W) by (...) whole pixels, around the borders."""
    height, width = images.shape[-2:]
    rows = (torch.arange(height, device=images.device) - down[..., None]) % height
    columns = (torch.arange(width, device=images.device) - right[..., None]) % width
    places = (rows[..., :, None] * width + columns[..., None, :]).flatten(-2).unsqueeze(-2)
    pixels = images.flatten(-2)
    return pixels.gather(-1, places.expand_as(pixels)).view(images.shape)
