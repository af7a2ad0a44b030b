"""The report of a run on texts or on a table."""

from pathlib import Path

import pytest

from fedsim.records import RunDirectory
from fedsim.report.calibration import bins_of
from tests.fedsim.report.test_page import Page, page_of
from tests.fedsim.told import table_run, text_run


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The report of a run on texts."""
    return page_of(text_run(tmp_path_factory.mktemp("texts")))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The report of a run on a table."""
    return page_of(table_run(tmp_path_factory.mktemp("rows")))


def test_a_run_on_texts_is_told_in_tokens_with_its_baseline(texts: Page) -> None:
    assert (
        "The curious server recovered 2 of 8 texts to 90 % of tokens at their place or better "
        "(dlg); guessing the data mean gives 25 %." in texts.text
    )
    assert "Median of tokens at their place80.9 %data mean: 25 %" in texts.text
    assert "ROUGE-1, -2, -L 92 / 41 / 82; data mean 25 %" in texts.text
    assert "nearest public text" in texts.text
    for said in ("PSNR", "SSIM", "dB", "image"):
        assert said not in texts.text


def test_a_run_on_a_table_is_told_in_features(rows: Page) -> None:
    assert "recovered 2 of 8 rows to 90 % of features right or better (dlg)" in rows.text
    assert "33.3 to 100.0" in rows.text
    for said in ("PSNR", "SSIM", "dB", "image", "ROUGE"):
        assert said not in rows.text


def test_axes_are_in_percent_and_reach_to_a_hundred(texts: Page, rows: Page) -> None:
    assert all(">tokens at their place, %<" in chart for chart in texts.charts)
    assert all(">data mean 25\u00a0%<" in chart for chart in texts.charts)
    assert all(">counts as recovered, 90\u00a0%<" in chart for chart in texts.charts)
    assert any(">features right, %<" in chart for chart in rows.charts)


def test_the_best_and_the_worst_text_stand_beside_their_guesses_with_marks(texts: Page) -> None:
    assert "best, client-0, round 1, text 0" in texts.text
    assert "worst, client-1, round 2, text 0" in texts.text
    marks = {one["class"] for one in texts.all("mark")}
    assert marks == {"hit", "near"}
    assert "the patient was treated for early signs of asthma." in texts.text


def test_a_mark_is_seen_without_colour(texts: Page) -> None:
    style = texts.source.partition("<style>")[2].partition("</style>")[0]

    for mark, line in (("hit", "underline"), ("near", "dotted"), ("miss", "line-through")):
        rule = style.partition(f"mark.{mark} {{")[2].partition("}")[0]
        assert line in rule


def test_the_steps_of_the_median_text_stand_in_a_table(texts: Page) -> None:
    assert "Step by step, for client-0, round 2, text 1, its median guess; the last" in texts.text
    assert "00 of 10" in texts.text  # the number of the step, and below it how many
    assert "208 of 10" in texts.text
    assert "[UNK] [UNK] [UNK]" in texts.text


def test_features_and_the_confidence_in_them_stand_in_cells(rows: Page) -> None:
    assert "Feature" in rows.text
    assert "marital status" in rows.text
    assert {one["class"] for one in rows.all("mark")} == {"hit", "miss"}
    assert "42 %" in rows.text


def test_confidence_is_held_against_what_was_right(rows: Page, tmp_path: Path) -> None:
    run = table_run(tmp_path)

    low, high = bins_of(run.scores(), "dlg")

    assert (low.low, low.number, low.right) == (0.4, 12, 0.0)
    assert (high.high, high.number, high.right) == (1.0, 36, 1.0)
    assert "How sure, and how right" in rows.text
    assert "40 to 50 %120 %" in rows.text
    assert any(">confidence of the attack, %<" in chart for chart in rows.charts)


def test_an_attack_that_does_not_say_how_sure_it_is_has_no_such_chart(tmp_path: Path) -> None:
    page = page_of(table_run(tmp_path, sure=False))

    assert "How sure, and how right" not in page.text


def test_words_of_a_vocabulary_cannot_become_markup(tmp_path: Path) -> None:
    run = text_run(tmp_path)
    told = run.data.read_text().replace('"asthma"', '"<script>alert(1)</script>"')
    run.data.write_text(told)

    page = page_of(run)

    assert "<script" not in page.source
    assert "<script>alert(1)</script>" in page.text


@pytest.mark.parametrize("make", [text_run, table_run])
def test_a_report_makes_do_without_truth_or_words(make: type, tmp_path: Path) -> None:
    run: RunDirectory = make(tmp_path)
    run.data.unlink()
    for path in (run.root / "truth").iterdir():
        path.unlink()

    assert "not kept in this run" in page_of(run).text
