"""Which guess is meant for which private image: a batch has no order."""

import torch
from torch import Tensor


def match(guesses: Tensor, truths: Tensor) -> list[tuple[int, int]]:
    """Pair guesses with truths one to one, so that the sum of the MSEs is the least possible.

    No guess serves twice: pairing with replacement would credit one good guess to every similar
    private image. Where there are fewer guesses than truths, some truths stay unpaired.

    Args:
        guesses: Shape (G, C, H, W), finite.
        truths: Shape (T, C, H, W), finite.

    Returns:
        min(G, T) pairs (truth, guess), in order of truth.
    """
    from scipy.optimize import linear_sum_assignment  # importing it takes a while

    # not by way of matrix products: those lose the small distances that matter here
    distance = torch.cdist(
        truths.double().flatten(1),
        guesses.double().flatten(1),
        compute_mode="donot_use_mm_for_euclid_dist",
    )
    rows, columns = linear_sum_assignment(distance.square().cpu().numpy())
    return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True)]


def multiset_overlap(guesses: Tensor, truths: Tensor) -> float:
    """Return the share of `truths` that `guesses` names, each guess counted once, order ignored.

    Args:
        guesses: Labels, shape (G,), int64.
        truths: Labels, shape (T,), int64.
    """
    classes = int(torch.cat([guesses, truths]).max()) + 1
    counts = (torch.bincount(labels, minlength=classes) for labels in (guesses, truths))
    return int(torch.minimum(*counts).sum()) / len(truths)
