"""Findings and numbers in words."""

import pytest

from fedsim.files import Record
from fedsim.records import RunDirectory
from fedsim.report.wording import (
    adversary,
    count,
    duration,
    headline,
    nothing_attacked,
    number,
    percent,
    tiny,
)
from fedsim.stages.summarize import leakage
from tests.fedsim.conftest import MadeRun, Make


def said(run: RunDirectory, threat: Record | None = None) -> str:
    """The headline of a run, with plain spaces."""
    return headline(leakage(run.scores()), threat).replace("\u00a0", " ")


def test_the_headline_counts_images_and_names_the_baseline(make_run: Make) -> None:
    run = make_run(MadeRun(rounds=1, noise=0.005, attacks=("dlg",)))

    (row,) = leakage(run.scores())
    assert row.num_recovered == 4  # noise of 0.5 and 1 percent is 46 and 40 dB
    assert said(run) == (
        "The curious server recovered 4 of 4 images to 30 dB or better (dlg); "
        f"guessing the data mean gives {row.baseline_psnr_db:.1f} dB."
    )


def test_the_headline_of_a_run_that_leaked_little_says_how_close_it_came(make_run: Make) -> None:
    run = make_run(MadeRun(rounds=1, noise=0.5, attacks=("dlg",)))

    assert said(run).startswith("The curious server recovered none of 4 images to 30 dB; dlg came")


def test_failed_attacks_are_no_finding_of_safety(make_run: Make) -> None:
    run = make_run(MadeRun(rounds=2, failing=(1, 2), attacks=("dlg",)))

    assert said(run) == "4 attacks failed and none made a guess; that says nothing about safety."


def test_labels_alone_are_called_labels(make_run: Make) -> None:
    run = make_run(MadeRun(rounds=1, attacks=("labels-only",)))

    assert said(run) == (
        "The curious server read off 100 % of the private labels (labels-only); "
        "no attack guessed images."
    )


def test_nothing_attacked_is_nothing_known(make_run: Make) -> None:
    run = make_run(MadeRun(rounds=0))

    assert said(run) == "Nothing was attacked yet, so nothing is known of what this training leaks."


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [
        ([{"rejected": 3, "clients": []}], "every one of 3 updates was refused before it was used"),
        ([{"rejected": 1}], "the only update was refused before it was used"),
        ([{"rejected": 1, "clients": [2]}], "nothing was attacked"),
        ([], "nothing was attacked"),
    ],
)
def test_a_run_without_attacks_says_why(rounds: list[Record], expected: str) -> None:
    assert nothing_attacked(rounds, ended=True, asked=True) == expected
    assert nothing_attacked([], ended=False, asked=True) == "nothing was attacked yet"
    assert nothing_attacked([], ended=True, asked=False) == "the experiment names no attack"
    assert nothing_attacked([], ended=True, asked=True, heard=False) == "nothing was heard"
    assert "encrypted" in nothing_attacked([], ended=True, asked=True, heard=False, encrypted=True)


def test_an_attack_that_used_no_granted_labels_is_no_oracle(make_run: Make) -> None:
    run = make_run(MadeRun(rounds=1, attacks=("dlg",), grants='"labels"'))
    rows = leakage(run.scores())

    assert headline(rows, {"oracle": True}).startswith("The curious server, told the private")
    assert headline(rows, {"oracle": True}, honest=["dlg"]).startswith("The curious server reco")


def test_an_oracle_is_called_one_wherever_the_adversary_is_named() -> None:
    assert adversary({"oracle": True}, "curious-server+labels") == (
        "the curious server, told the private labels (an oracle),"
    )
    assert adversary(None, "link-tap+public-sample+labels") == (
        "the link tap, granted public-sample, told the private labels (an oracle),"
    )
    assert adversary({"oracle": False}, "uplink-tap") == "the uplink tap"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (None, "\u2013"),
        (0.123, "0.12 s"),
        (59.9, "59.9 s"),
        (125, "2 min 05 s"),
        (7325, "2 h 02 min"),
    ],
)
def test_durations_are_read_at_a_glance(seconds: float | None, expected: str) -> None:
    assert duration(seconds).replace("\u00a0", " ") == expected


def test_numbers_are_short() -> None:
    assert number(-0.0001) == "0.00"
    assert tiny(1.3e-7) == "1.3e-07"
    assert tiny(0.0123) == "0.0123"
    assert tiny(0.0) == "0.0000"
    assert percent(1.0).replace("\u00a0", " ") == "100 %"
    assert percent(0.8125).replace("\u00a0", " ") == "81.2 %"
    assert (count(1, "image"), count(2, "image")) == ("1 image", "2 images")
