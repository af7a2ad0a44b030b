"""Intervals of what a sweep or a gate measures; all seeded, so that equal runs give equal pages."""

from collections.abc import Sequence
from statistics import fmean, median

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, bootstrap

from fedsim.schemas.statistics import Interval

RESAMPLES = 2_000
"""Of every bootstrap."""


def resampled(values: Sequence[float], statistic: object, seed: int = 0) -> NDArray[np.float64]:
    """Return the statistic of so many resamples of the values; one value resamples to itself.

    Args:
        values: At least one.
        statistic: `np.mean` or `np.median`: takes `axis`.
        seed: Of the resampling.

    Shapes:
        returns (RESAMPLES,)
    """
    if len(set(values)) == 1:  # scipy warns of what cannot vary
        return np.full(RESAMPLES, values[0], dtype=np.float64)
    found = bootstrap(
        (np.asarray(values, dtype=np.float64),),
        statistic,
        n_resamples=RESAMPLES,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return np.asarray(found.bootstrap_distribution, dtype=np.float64)


def mean_interval(values: Sequence[float], confidence: float) -> Interval | None:
    """Return the mean with its percentile bootstrap interval; None for no value."""
    return _interval(values, fmean, np.mean, confidence)


def median_interval(values: Sequence[float], confidence: float) -> Interval | None:
    """Return the median with its percentile bootstrap interval; None for no value."""
    return _interval(values, median, np.median, confidence)


def _interval(
    values: Sequence[float], plain: object, statistic: object, confidence: float
) -> Interval | None:
    if not values:
        return None
    value = float(plain(values))  # type: ignore[operator]
    if len(values) == 1:
        return Interval(value=value)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(resampled(values, statistic), [tail, 100 - tail])
    return Interval(value=value, low=min(value, float(low)), high=max(value, float(high)))


def exact_share(count: int, total: int, confidence: float) -> Interval | None:
    """Return a share with its two-sided exact interval (Clopper and Pearson, 1934)."""
    if not total:
        return None
    limits = binomtest(count, total).proportion_ci(confidence_level=confidence, method="exact")
    return Interval(value=count / total, low=float(limits.low), high=float(limits.high))


def upper_bound(count: int, total: int, confidence: float) -> float:
    """Return the one-sided exact upper bound of a share; 1 for no trial."""
    if not total:
        return 1.0
    test = binomtest(count, total, alternative="less")
    return float(test.proportion_ci(confidence_level=confidence, method="exact").high)
