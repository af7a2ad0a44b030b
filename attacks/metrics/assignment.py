"""Which guess is meant for which private example: a batch has no order."""

from torch import Tensor

from attacks.metrics.neighbours import distances


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
    return match_by(distances(truths, guesses))


def match_by(costs: Tensor) -> list[tuple[int, int]]:
    """Pair truths with guesses one to one, so that the sum of their costs is the least possible.

    Args:
        costs: What each truth costs with each guess, (T, G), finite.

    Returns:
        min(G, T) pairs (truth, guess), in order of truth.
    """
    from scipy.optimize import linear_sum_assignment  # importing it takes a while

    rows, columns = linear_sum_assignment(costs.cpu().numpy())
    return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True)]
