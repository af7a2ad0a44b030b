"""What the page of a sweep says; how it is built is tested with the sweep."""

import pytest

from fedsim.report.sweep_page import finding, headline, lacking
from fedsim.schemas.statistics import Interval
from fedsim.schemas.sweep import AttackerRow, SweepCell, SweepSeed

SCORED = AttackerRow(
    attack="dlg",
    time_budget_s=20.0,
    victims=4,
    num_images=4,
    psnr_db=Interval(value=12.0, low=11.0, high=13.0),
)


def cell(number: int, accuracy: float, **attackers: AttackerRow) -> SweepCell:
    return SweepCell(
        number=number,
        label=f"cell {number}",
        family="none",
        levels={},
        defense="none",
        status="done",
        seeds=[0],
        accuracy=Interval(value=accuracy),
        baseline_accuracy=0.9,
        attackers=attackers,
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "not broken by plain (dlg) within 20.0 s per update: none of 4 images to 20 dB"),
        ({"num_recovered": 3}, "broken by plain (dlg): 3 of 4 images to 20 dB within 20.0 s"),
        ({"failed": 4}, "every attack of plain (dlg) failed, which says nothing about safety"),
        ({"refused": "no model"}, "plain (dlg) cannot attack this: no model"),
        ({"num_images": 0}, "plain (dlg) was not run"),
    ],
)
def test_a_finding_says_what_was_measured(changes: dict[str, object], said: str) -> None:
    found = finding("plain", SCORED.model_copy(update=changes), 20.0).replace("\u00a0", " ")

    assert said in found


def test_the_headline_names_the_most_useful_cell_that_nobody_broke() -> None:
    broken = SCORED.model_copy(update={"num_recovered": 1})
    cells = [
        cell(1, 0.9, plain=broken),
        cell(2, 0.8, plain=SCORED, auto=broken),
        cell(3, 0.7, plain=SCORED),
        cell(4, 0.5, plain=SCORED),
    ]

    said = headline(cells, 20.0).replace("\u00a0", " ")

    assert said == (
        "2 of 4 settings gave images away to 20 dB; the most useful of the others is cell 3, at "
        "70 % accuracy against 90 % undefended."
    )


def test_the_headline_praises_no_cell_in_which_every_attack_failed() -> None:
    lost = SCORED.model_copy(update={"failed": 4})
    cells = [cell(1, 0.9, plain=lost, auto=lost), cell(2, 0.7, plain=SCORED, auto=lost)]

    said = headline(cells, 20.0).replace("\u00a0", " ")

    assert "of the others is cell 2, at 70 %" in said
    assert "(in 1 every attack failed, which says nothing)" in said


def test_the_headline_of_a_sweep_without_scores_claims_nothing() -> None:
    unknown = SCORED.model_copy(update={"num_images": 0})

    assert "No attack" in headline([cell(1, 0.9, plain=unknown)], 20.0)
    assert "4 of" not in headline([cell(1, 0.9, plain=unknown)], 20.0)


@pytest.mark.parametrize(
    ("status", "runs", "said"),
    [
        ("done", [("run", "other")], ""),
        ("missing", [("", ""), ("", "")], "not run"),
        ("failed", [("", "")], "failed"),
        ("missing", [("run", ""), ("run", "")], "missing: utility"),
        ("missing", [("run", ""), ("", "")], "missing: attacks and utility of seed 1, utility of"),
        ("partial", [("run", "run"), ("", ""), ("", "")], "missing: attacks and utility of seeds"),
    ],
)
def test_a_cell_says_what_is_not_there_of_it(
    status: str, runs: list[tuple[str, str]], said: str
) -> None:
    row = cell(1, 0.9).model_copy(update={"status": status})
    seeds = [
        SweepSeed(number=1, label="", seed=seed, status="done", run=run, utility_run=other)
        for seed, (run, other) in enumerate(runs)
    ]

    found = lacking(row, seeds)

    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_the_headline_of_a_sweep_that_was_stopped_counts_what_has_scores() -> None:
    unknown = SCORED.model_copy(update={"num_images": 0})

    said = headline([cell(1, 0.9, plain=SCORED), cell(2, 0.8, plain=unknown)], 20.0)

    assert said.startswith("Of 2 settings 1 has scores, and 0 gave images away")
