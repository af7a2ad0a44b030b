"""Which guess is of which private image."""

from torch import Tensor

from attacks.metrics.assignment import match


def pair(guesses: Tensor, truth: Tensor) -> dict[int, int]:
    """Return, by the place of a private image, that of the guess which goes with it best.

    As scoring does it: one to one, so that the sum of the mean squared errors is least.

    Args:
        guesses: Shape (G, C, H, W).
        truth: Shape (B, C, H, W).
    """
    return dict(match(guesses[: len(truth)], truth))
