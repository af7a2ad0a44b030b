"""Intervals against their closed forms."""

import numpy as np
import pytest

from fedsim.sweep.statistics import (
    RESAMPLES,
    exact_share,
    mean_interval,
    median_interval,
    resampled,
    upper_bound,
)


def test_fifty_nine_trials_without_a_loss_show_five_percent() -> None:
    assert upper_bound(0, 59, 0.95) <= 0.05 < upper_bound(0, 58, 0.95)
    assert upper_bound(0, 59, 0.95) == pytest.approx(1 - 0.05 ** (1 / 59))


def test_the_exact_interval_of_no_loss_has_its_closed_form() -> None:
    found = exact_share(0, 10, 0.95)

    assert found is not None
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 10))
    assert exact_share(0, 0, 0.95) is None
    assert upper_bound(0, 0, 0.95) == 1.0


def test_a_bootstrap_of_the_mean_agrees_with_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(10.0, 2.0, 400).tolist()

    found = mean_interval(values, 0.95)

    assert found is not None
    half = 1.96 * np.std(values, ddof=1) / 20
    assert found.low == pytest.approx(np.mean(values) - half, abs=0.05)
    assert found.high == pytest.approx(np.mean(values) + half, abs=0.05)


def test_an_interval_holds_its_value_and_one_value_has_none() -> None:
    spread = median_interval([1.0, 2.0, 100.0], 0.9)
    equal = median_interval([3.0, 3.0], 0.9)
    single = median_interval([3.0], 0.9)

    assert spread is not None
    assert spread.low is not None
    assert spread.high is not None
    assert spread.low <= spread.value == 2.0 <= spread.high
    assert equal is not None
    assert (equal.low, equal.high) == (3.0, 3.0)
    assert single is not None
    assert (single.low, single.high) == (None, None)
    assert median_interval([], 0.9) is None


def test_resamples_are_the_same_every_time() -> None:
    first, second = resampled([1.0, 2.0, 5.0], np.mean), resampled([1.0, 2.0, 5.0], np.mean)

    assert first.shape == (RESAMPLES,)
    assert (first == second).all()
