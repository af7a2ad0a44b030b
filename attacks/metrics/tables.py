"""How close two rows of a table are: per feature, right or wrong, as TabLeak counts it.

A category is right if it is the same, a number if it is off by no more than a tolerance (Vero et
al., 2023, https://arxiv.org/abs/2210.01785).

Shapes: G guessed and T private rows of D coordinates, which encode F features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.metrics.assignment import match_by
from attacks.tabular.columns import Columns

TOLERANCE = 0.05
"""Share of its range by which a number may be off: of an age from 17 to 90, 3.65 years."""

DEVIATIONS = 0.319
"""TabLeak's tolerance, in standard deviations of the column. Where a column is normal, a guess of
its mean is right in a quarter of all rows."""

_ROUNDING = 1e-6
"""What a tolerance leaves to the rounding of float32."""


def tolerances(sample: Tensor, columns: Columns, *, deviations: float = DEVIATIONS) -> Tensor:
    """Return TabLeak's tolerance of each feature as a share of its range, (F,); 0 for categories.

    Args:
        sample: Rows whose standard deviations count, (N, D), public ones.
        columns: What their coordinates stand for.
        deviations: How many of them a number may be off.
    """
    return torch.stack(
        [
            torch.zeros((), dtype=torch.float64)
            if column.categories
            else deviations * sample[:, place].double().std(correction=0).cpu()
            for column, place in columns.places()
        ]
    )


def right(
    guess: Tensor, truth: Tensor, columns: Columns, *, tolerance: float | Tensor = TOLERANCE
) -> Tensor:
    """Return which features of a guess are right, (..., F) bool, on the CPU.

    Args:
        guess: Rows (..., D); the category is the largest of its coordinates.
        truth: Rows (..., D).
        columns: What the coordinates stand for.
        tolerance: Share of its range by which a number may be off, one for all or (F,).
    """
    guess, truth = guess.double().cpu(), truth.double().cpu()
    allowed = torch.as_tensor(tolerance, dtype=torch.float64).expand(len(columns.columns))
    found = []
    for (column, place), most in zip(columns.places(), allowed, strict=True):
        if column.categories:
            found.append(guess[..., place].argmax(dim=-1) == truth[..., place].argmax(dim=-1))
        else:
            apart = (guess[..., place.start] - truth[..., place.start]).abs()
            found.append(apart <= most + _ROUNDING)
    return torch.stack(found, dim=-1)


def match_rows(
    guesses: Tensor, truths: Tensor, columns: Columns, *, tolerance: float | Tensor = TOLERANCE
) -> list[tuple[int, int]]:
    """Pair guesses with private rows one to one, so that the most features are right.

    Among pairings that are equal in this, the one whose rows are closest is taken.

    Args:
        guesses: Shape (G, D).
        truths: Shape (T, D).
        columns: What the coordinates stand for.
        tolerance: As for `right`.

    Returns:
        min(G, T) pairs (truth, guess), in order of truth.
    """
    same = right(guesses[None], truths[:, None], columns, tolerance=tolerance)
    apart = torch.cdist(truths.double().cpu(), guesses.double().cpu(), p=1)
    # all pairs together are never further apart than this, so that no feature is given up for it
    most = truths.shape[1] * max(1, min(len(guesses), len(truths)))
    return match_by(same.logical_not().sum(dim=-1) + apart.clamp(max=truths.shape[1]) / (2 * most))


def typical_row(sample: Tensor, columns: Columns) -> Tensor:
    """Return the best single guess at any row, (D,): mode of each category, mean of each number.

    Args:
        sample: Public rows, (N, D).
        columns: What their coordinates stand for.
    """
    mean = sample.double().mean(dim=0)
    row = torch.zeros_like(mean)
    for column, place in columns.places():
        if column.categories:
            row[place.start + int(mean[place].argmax())] = 1
        else:
            row[place] = mean[place]
    return row.to(sample)


def random_rows(sample: Tensor, num: int, *, rng: torch.Generator) -> Tensor:
    """Return `num` rows of a public sample (N, D), drawn with replacement."""
    chosen = torch.randint(len(sample), (num,), generator=rng)
    return sample[chosen.to(sample.device)]


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Features of about the same confidence.

    Attributes:
        confidence: Their mean confidence.
        accuracy: The share of them that is right.
        count: How many they are.
    """

    confidence: float
    accuracy: float
    count: int


def calibration(confidence: Tensor, correct: Tensor, *, num_bins: int = 10) -> list[Bin]:
    """Return how often features of each confidence are right, least sure first.

    Args:
        confidence: What the attack said, any shape, 0 to 1.
        correct: Whether it was right, shaped alike, bool.
        num_bins: Equal parts of 0 to 1; those without a feature are left out.
    """
    sure, good = confidence.flatten().double().cpu(), correct.flatten().double().cpu()
    places = (sure * num_bins).long().clamp(0, num_bins - 1)
    return [
        Bin(
            confidence=float(sure[places == place].mean()),
            accuracy=float(good[places == place].mean()),
            count=int((places == place).sum()),
        )
        for place in sorted(set(places.tolist()))
    ]


def calibration_error(confidence: Tensor, correct: Tensor, *, num_bins: int = 10) -> float:
    """Return the mean distance of confidence from accuracy over bins, by their size (ECE).

    See `calibration` for the arguments; 0 for no feature at all.
    """
    bins = calibration(confidence, correct, num_bins=num_bins)
    total = sum(one.count for one in bins)
    return sum(one.count * abs(one.confidence - one.accuracy) for one in bins) / max(1, total)


def accuracy_of_surest(confidence: Tensor, correct: Tensor, share: float) -> float:
    """Return the accuracy among the surest `share` of all features, at least one.

    Of features that are equally sure at the end of the share, each counts in part.

    Args:
        confidence: What the attack said, any shape.
        correct: Whether it was right, shaped alike, bool.
        share: Above 0, at most 1.
    """
    sure, good = confidence.flatten().double().cpu(), correct.flatten().double().cpu()
    num = max(1, round(share * len(sure)))
    least = sure.topk(num).values[-1]
    above, level = sure > least, sure == least
    left = num - int(above.sum())
    return float((good[above].sum() + left * good[level].mean()) / num)
