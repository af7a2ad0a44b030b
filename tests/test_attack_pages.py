"""Every attack has a page, a picture, and an experiment in which it runs in the main job."""

import math
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from attacks import ATTACKS
from attacks.observation import Attack
from docs.pictures import ATTACK_PAGES, experiments, run_page
from fedsim.catalog import load
from fedsim.config import read_experiment
from fedsim.quality import baseline_values, examples, modality_of
from fedsim.stages.prepare import check

SECTIONS = ("Threat model", "Needs", "Cost", "When it works", "When it fails")


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_has_a_page_a_picture_and_an_experiment(name: str) -> None:
    page = (ATTACK_PAGES / f"{name}.md").read_text()

    assert [title for title in SECTIONS if f"## {title}" not in page] == []
    assert f"({name}.png)" in page
    assert (ATTACK_PAGES / f"{name}.png").is_file()
    assert name in [attack.name for attack in read_experiment(experiments()[name]).attacks]


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_module_names_its_paper_or_says_that_there_is_none(name: str) -> None:
    attack = load(ATTACKS[name])
    module = __import__(attack.__module__, fromlist=["_"]).__doc__ or ""

    assert isinstance(attack(), Attack)
    cited = re.search(r"https?://|arxiv|arXiv|USENIX|No paper", module)
    assert cited, f"{attack.__module__} cites nothing"


@pytest.mark.parametrize("name", ATTACKS)
def test_the_experiment_of_every_attack_is_sound(name: str) -> None:
    check(read_experiment(experiments()[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_does_in_the_main_job_what_its_page_shows(name: str, tmp_path: Path) -> None:
    configs = read_experiment(experiments()[name]).attacks
    titles = [config.title for config in configs if config.name == name]

    result = run_page(name, tmp_path)

    scores = [score for score in result.scores if score["attack"] in titles]
    assert scores
    assert [score["reason"] for score in scores if score["status"] == "failed"] == []
    assert better_than_nothing(name, scores)


CLEARLY_BETTER_DB = 3.0
"""An error half as large as that of the data mean."""
HALF_OF_THE_LABELS = 0.5
CLEARLY_MORE = 0.25
"""Of the tokens of a text, or the features of a row."""
TELLS_NO_ORDER = ("bag-of-words",)
"""Attacks on text that say which words there are, and not where."""
SHOWS_A_DIFFERENCE = {
    "gradinversion": "no recognisable picture of so narrow a network in so few steps, as its page "
    "says; what it shows is that batch statistics help",
}
"""Attacks whose page shows no good picture but what a setting is worth, and why."""


def better_than_nothing(name: str, scores: list[dict[str, Any]]) -> bool:
    """Whether the guesses are clearly better than what needs no attack.

    Of an attack that guesses images: the median image of all, misses included, is 3 dB better than
    the median of the data mean; of an attack whose page compares settings, the best image is so
    much better than the worst. Of one that guesses labels alone: half of the labels. Of texts and
    rows: the median accuracy of all is better by a quarter of the tokens or features.
    """
    if any(modality_of(score) != "image" for score in scores):
        field = "rouge1" if name in TELLS_NO_ORDER else "accuracy"
        shares = [one[field] or 0.0 for score in scores for one in examples(score)]
        guesses = [value for score in scores for value in baseline_values(score)]
        return bool(statistics.median(shares) > statistics.median(guesses) + CLEARLY_MORE)
    images = [image for score in scores for image in score["images"]]
    if not images:
        found = [score["label_accuracy"] for score in scores if score["batch_size"]]
        right = [0.0 if share is None else share for share in found]
        return bool(right) and statistics.fmean(right) >= HALF_OF_THE_LABELS
    missed = sum(score["batch_size"] for score in scores if not score["images"])
    quality = [-math.inf if one["psnr_db"] is None else one["psnr_db"] for one in images]
    floors = [
        floor
        for score in scores
        if score["images"]
        for floor in score["baselines"]["data_mean"]["psnr_db"]
    ]
    if name in SHOWS_A_DIFFERENCE:
        return bool(max(quality) > min(quality) + CLEARLY_BETTER_DB)
    median = statistics.median(quality + [-math.inf] * missed)
    return bool(median > statistics.median(floors) + CLEARLY_BETTER_DB)


def scored(quality: list[float | None], *, mean: float = 10.0) -> dict[str, Any]:
    """Return a score with images of this PSNR."""
    return {
        "images": [{"psnr_db": one} for one in quality],
        "batch_size": len(quality),
        "baselines": {"data_mean": {"psnr_db": [mean] * len(quality)}},
        "label_accuracy": None,
    }


def labelled(share: float | None) -> dict[str, Any]:
    """Return a score with labels alone."""
    return {"images": [], "batch_size": 4, "baselines": {}, "label_accuracy": share}


def test_one_good_image_among_bad_ones_is_not_enough() -> None:
    one_of_four, most = [scored([30.0, 9.0, None, 8.0])], [scored([30.0, 20.0]), scored([18.0])]

    assert better_than_nothing("dlg", most)
    assert not better_than_nothing("dlg", one_of_four)
    assert not better_than_nothing("dlg", [scored([12.0, 12.9, 12.9])])
    assert not better_than_nothing("dlg", [scored([30.0, None, None])])


def test_a_page_that_compares_settings_shows_a_difference() -> None:
    assert better_than_nothing("gradinversion", [scored([12.0]), scored([6.0])])
    assert not better_than_nothing("gradinversion", [scored([12.0]), scored([11.0])])
    assert set(SHOWS_A_DIFFERENCE) <= set(ATTACKS)


def test_of_labels_alone_half_must_be_right() -> None:
    assert better_than_nothing("label", [labelled(1.0), labelled(0.0)])
    assert not better_than_nothing("label", [labelled(0.0)])
    assert not better_than_nothing("label", [labelled(None)])
    assert not better_than_nothing("label", [labelled(0.9), labelled(0.0)])
