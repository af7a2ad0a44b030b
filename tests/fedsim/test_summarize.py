"""What the summary of a run says."""

from collections.abc import Callable
from statistics import fmean, median, stdev
from typing import Any

import pytest

from fedsim.files import Record, read_json
from fedsim.records import RunDirectory
from fedsim.stages.spreads import spread
from fedsim.stages.summarize import leakage, summarize, utility


def image(psnr_db: float | None) -> Record:
    """One scored image; its SSIM and MSE follow the PSNR."""
    guessed = psnr_db is not None
    return {
        "truth": 0,
        "guess": 0 if guessed else None,
        "mse": 10 ** (-psnr_db / 10) if psnr_db is not None else None,
        "psnr_db": psnr_db,
        "ssim": psnr_db / 100 if psnr_db is not None else None,
        "label": 1,
        "guessed_label": None,
        "recovered": psnr_db is not None and psnr_db >= 30,
    }


def one_score(*values: float | None, **changes: Any) -> Record:
    """A score of these images."""
    quality = {"mse": [0.1] * len(values), "psnr_db": [10.0] * len(values), "ssim": []}
    score: Record = {
        "attack": "dlg",
        "threat": "curious-server",
        "defense": "none",
        "status": "done",
        "batch_size": len(values),
        "images": [image(value) for value in values],
        "label_accuracy": None,
        "success_threshold_db": 30.0,
        "baselines": dict.fromkeys(("random_guess", "data_mean", "nearest_public"), quality),
        "seconds": 2.0,
    }
    return score | changes


def failed(batch_size: int) -> Record:
    """The score of a failed attack."""
    return one_score(*[None] * batch_size, status="failed", images=[], seconds=4.0)


def test_spreads_are_over_images_and_not_over_batches() -> None:
    (row,) = leakage([one_score(40.0, 20.0, 30.0), one_score(10.0)])

    values = [40.0, 20.0, 30.0, 10.0]
    assert row.psnr_db is not None
    assert row.psnr_db.model_dump() == {
        "mean": fmean(values),
        "median": median(values),
        "best": 40.0,
        "worst": 10.0,
        "std": pytest.approx(stdev(values)),
    }
    assert (row.num_images, row.num_recovered, row.success_rate) == (4, 2, 0.5)


def test_the_best_error_is_the_lowest() -> None:
    (row,) = leakage([one_score(40.0, 20.0)])

    assert row.mse is not None
    assert row.mse.best == pytest.approx(1e-4)
    assert row.mse.worst == pytest.approx(1e-2)


def test_failed_attacks_and_missed_images_lower_the_success_rate() -> None:
    (row,) = leakage([one_score(50.0, None), failed(2)])

    assert (row.victims, row.failed, row.num_images, row.num_guessed) == (2, 1, 4, 1)
    assert row.success_rate == 0.25
    assert row.seconds_per_victim == 3.0


def test_an_attack_that_only_failed_has_a_rate_of_zero_and_no_spread() -> None:
    (row,) = leakage([failed(3)])

    assert row.success_rate == 0.0
    assert row.psnr_db is None
    assert row.baseline_psnr_db == 10.0


def test_an_attack_on_labels_has_no_success_rate() -> None:
    scores = [
        one_score(None, None, None, images=[], label_accuracy=1.0),
        one_score(None, images=[], label_accuracy=0.0),
    ]

    (row,) = leakage(scores)

    assert row.success_rate is None
    assert row.label_accuracy == 0.75  # three of four labels, not the mean of two batches


def test_unscored_attacks_are_left_out() -> None:
    unscored = one_score(status="unscored", batch_size=None, images=[])

    assert leakage([unscored]) == []
    assert leakage([unscored, one_score(35.0)]) == leakage([one_score(35.0)])


def test_attacks_threats_and_defenses_each_have_a_row() -> None:
    scores = [one_score(35.0), one_score(12.0, defense="pruned"), one_score(35.0, attack="idlg")]

    assert [(row.attack, row.defense) for row in leakage(scores)] == [
        ("dlg", "none"),
        ("dlg", "pruned"),
        ("idlg", "none"),
    ]


def test_one_value_has_no_standard_deviation() -> None:
    only = spread([7.0, None])

    assert only is not None
    assert only.std is None
    assert spread([None]) is None


def test_utility_is_that_of_the_last_evaluation() -> None:
    rounds = [{"round": 0, "accuracy": 0.1, "loss": 2.0}, {"round": 1, "accuracy": 0.5}]

    assert utility([*rounds, {"round": 2, "accuracy": None}]).model_dump() == {
        "accuracy": 0.5,
        "loss": None,
        "round": 1,
    }
    assert utility([]).accuracy is None


def test_the_summary_is_written_and_returned(finished_run: RunDirectory) -> None:
    found = summarize(
        finished_run,
        experiment="digits",
        engine="ray",
        seed=4,
        weights_sha256=None,
        status="interrupted",
        seconds={"training": 1.0, "attacks": 2.0, "total": 3.0},
    )

    assert found == read_json(finished_run.summary)
    assert (found["rounds"], found["status"], found["seed"]) == (3, "interrupted", 4)
    assert [row["attack"] for row in found["leakage"]] == ["IG", "dlg", "labels-only"]
    assert found["unfinished_attacks"] == 6
    assert found["views_sha256"] == finished_run.views_sha256()


def test_a_run_without_anything_has_a_summary(make_empty: Callable[[], RunDirectory]) -> None:
    run = make_empty()

    found = summarize(
        run,
        experiment="digits",
        engine="in-process",
        seed=0,
        weights_sha256=None,
        status="failed",
        seconds={"training": 0.0, "attacks": 0.0, "total": 0.0},
    )

    assert found["leakage"] == []
    assert found["utility"] == {"accuracy": None, "loss": None, "round": None}
    assert found["rounds"] == 0


@pytest.fixture
def make_empty(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], RunDirectory]:
    """Return what makes a run directory that holds nothing yet."""
    return lambda: RunDirectory.create(tmp_path_factory.mktemp("empty"), "empty")


def test_rounds_that_changed_nothing_and_alarms_are_counted(finished_run: RunDirectory) -> None:
    alarm = {"client": 0, "check": "x", "message": "y", "value": 1.0, "threshold": 0.5}
    for number, clients, alarms in ((1, [0], [alarm]), (2, [], [alarm, alarm]), (3, [], [])):
        finished_run.append_round({"round": number, "clients": clients, "alarms": alarms})

    summary = summarize(
        finished_run,
        experiment="x",
        engine="in-process",
        seed=0,
        weights_sha256=None,
        status="done",
        seconds={"training": 1.0, "attacks": 1.0, "total": 1.0},
    )

    assert (summary["rounds_without_update"], summary["alarms"]) == (2, 3)
