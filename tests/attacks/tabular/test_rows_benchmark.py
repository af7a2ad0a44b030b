"""Rows of real tables from one gradient, as the benchmark measures them."""

from pathlib import Path

import pytest

from benchmarks.tables import SETTINGS, Setting, attack, markdown


def test_rows_of_an_embedded_table_come_back_exactly_and_beat_guessing() -> None:
    got = attack(Setting(data="wine", batch_size=4, attack="spear"), seed=0, root="")

    assert got["accuracy"] == got["exact"] == 1
    assert max(got["typical"], got["random"]) < 0.7  # a quarter of a column, paired at best


def test_the_table_has_a_row_per_setting_and_a_curve_where_confidence_was_told() -> None:
    run = {"accuracy": 0.9, "exact": 0.5, "typical": 0.5, "random": 0.4, "seconds": 3.0}
    sure = {"surest": [1.0, 0.9], "calibration_error": 0.1}
    table = {"shares": [0.5, 1.0], "found": {"a | 8 | b | c": [run | sure], "d | 8 | e | f": [run]}}

    lines = markdown(table).splitlines()

    assert sum(line.startswith("| a |") for line in lines) == 2
    assert sum(line.startswith("| d |") for line in lines) == 1
    assert "90.0 % | 50.0 % | 50.0 % | 40.0 % | 3" in lines[2]


@pytest.mark.slow
def test_tableak_reads_most_of_eight_rows_of_adult(real_data: Path) -> None:
    setting = next(one for one in SETTINGS if (one.data, one.batch_size) == ("adult", 8))

    got = attack(setting, seed=0, root=str(real_data / "tabular"))

    assert got["accuracy"] >= 0.95  # 100 % when measured
    assert got["typical"] < 0.7
    assert got["surest"][1] >= got["accuracy"] - 0.01
