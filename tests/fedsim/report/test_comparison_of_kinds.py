"""Runs on images, texts and tables side by side: each kind on its own scale."""

from pathlib import Path

from fedsim.records import RunDirectory
from fedsim.report.comparison import compare
from tests.fedsim.report.test_page import Page
from tests.fedsim.told import table_run, text_run


def compared(runs: list[RunDirectory], folder: Path) -> Page:
    """Build and read a comparison."""
    page = Page(compare(runs, folder / "compare.html").read_text())
    assert page.open == []
    return page


def test_texts_are_compared_in_tokens(tmp_path: Path) -> None:
    page = compared([text_run(tmp_path), text_run(tmp_path, overrides=["seed=1"])], tmp_path)

    assert "25 % of the private texts, at an accuracy of 40 %" in page.text
    assert "Median leakage" in page.text
    assert "80.9 ± 0.0 %" in page.text
    assert any(">dlg: tokens at their place, %<" in chart for chart in page.charts)
    assert any(">median of tokens at their place, %<" in chart for chart in page.charts)
    assert "PSNR" not in page.text
    assert {one["class"] for one in page.all("mark")} == {"hit", "near"}


def test_kinds_that_have_no_common_scale_share_no_axis_and_no_table(
    made_once: RunDirectory, tmp_path: Path
) -> None:
    page = compared([made_once, text_run(tmp_path), table_run(tmp_path)], tmp_path)

    assert "leakage has no common scale: each kind has a table, and panels, of its own" in page.text
    assert "In 3 runs, the strongest attack of each recovered" in page.text
    assert "of the private examples" in page.text
    titles = ("dlg: PSNR, dB", "dlg: tokens at their place, %", "dlg: features right, %")
    (over_rounds,) = [chart for chart in page.charts if f">{titles[0]}<" in chart][:1]
    assert all(f">{title}<" in over_rounds for title in titles)
    upwards = ("median PSNR, dB", "median of tokens at their place, %")
    frontiers = [[f">{title}<" in chart for title in upwards] for chart in page.charts]
    assert [True, True] not in frontiers
    assert [True, False] in frontiers
    assert [False, True] in frontiers
