"""Images of peers far down a line, by what its first peer hears."""

import torch

from benchmarks.far_nodes import Setting, listen, summary


def test_in_double_precision_and_small_steps_images_come_back_from_distance_28() -> None:
    # the distance that El Mrini, Cyffers and Bellet (2024) report for a line of 31
    setting = Setting(dtype=torch.float64, learning_rate=1e-12, rounds=100)
    assert summary(listen(setting, seed=0))[0] >= 28


def test_in_single_precision_and_common_steps_they_do_not() -> None:
    setting = Setting(dtype=torch.float32, learning_rate=1e-2, rounds=31, start=0.1)
    got = listen(setting, seed=0)
    assert 4 <= summary(got)[0] < 12
    assert got["expected_error"][27] > 0.9


def test_nobody_further_away_than_rounds_is_told_of() -> None:
    setting = Setting(dtype=torch.float64, learning_rate=1e-12, rounds=5)
    got = listen(setting, seed=0)
    assert summary(got)[0] == 5
    assert max(got["expected_error"][:5]) < 1e-6
    assert min(got["expected_error"][5:]) > 0.9  # peers are alike, and that is all
