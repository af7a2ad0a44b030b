"""Several runs in one page."""

from pathlib import Path
from statistics import fmean, stdev

import pytest

from fedsim.errors import ConfigError
from fedsim.report.comparison import compare, over_seeds
from fedsim.stages.summarize import leakage
from tests.fedsim.conftest import AMONG_PEERS, MadeRun, Make
from tests.fedsim.report.test_page import Page


def test_runs_of_several_seeds_are_summed_up_over_seeds(make_run: Make, tmp_path: Path) -> None:
    runs = [make_run(MadeRun(seed=seed, rounds=2, attacks=("dlg",))) for seed in (0, 1, 2)]

    page = Page(compare(runs, tmp_path / "compare.html").read_text())

    medians = [row.psnr_db.median for run in runs for row in leakage(run.scores()) if row.psnr_db]
    assert f"{fmean(medians):.1f} ± {stdev(medians):.1f} dB" in page.text
    assert "digits-0001, digits-0002, digits-0003" in page.text


def test_only_what_differs_is_listed(make_run: Make, tmp_path: Path) -> None:
    runs = [make_run(MadeRun(batch_size=size, rounds=1)) for size in (1, 2)]

    page = Page(compare(runs, tmp_path / "compare.html").read_text())

    assert page.open == []
    assert "training.batch_size" in page.text
    assert "training.learning_rate" not in page.text
    assert "Over seeds" not in page.text


def test_every_run_and_attack_has_a_row_and_every_run_a_gallery(
    make_run: Make, tmp_path: Path
) -> None:
    runs = [make_run(MadeRun(rounds=2)), make_run(MadeRun(name="other", rounds=2, failing=(1, 2)))]

    page = Page(compare(runs, tmp_path / "deep" / "compare.html").read_text())

    for text in (
        "digits-0001",
        "other-0001",
        "dlg",
        "IG",
        "labels-only",
        "Utility against leakage",
    ):
        assert text in page.text
    assert "No attack has guessed an image." in page.text
    assert len(page.charts) == 2 * 4
    assert len(page.all("img")) == 3 * 4 + 2


def test_the_headline_speaks_of_the_runs_that_attacked_images(
    make_run: Make, tmp_path: Path
) -> None:
    runs = [make_run(MadeRun(rounds=1)), make_run(MadeRun(rounds=1, attacks=()))]

    page = Page(compare(runs, tmp_path / "compare.html").read_text())

    assert "In 1 of 2 runs, the strongest attack of each recovered" in page.text


def test_an_oracle_is_marked_beside_the_attack_that_is_one(make_run: Make, tmp_path: Path) -> None:
    runs = [make_run(MadeRun(rounds=1)), make_run(MadeRun(rounds=1, grants='"labels"'))]

    page = Page(compare(runs, tmp_path / "compare.html").read_text())

    assert "Oracle." in page.text
    assert page.text.count("IGoracle") == 1
    assert "dlgoracle" not in page.text
    for chart in page.charts:
        assert ">digits-0002 (oracle)<" in chart  # by IG
        assert ">digits-0002<" in chart
        assert ">digits-0001 (oracle)<" not in chart


def test_each_panel_has_the_data_mean_of_the_runs_that_it_shows(
    make_run: Make, tmp_path: Path
) -> None:
    made = [("dlg", 1), ("IG", 0), ("IG", 2)]
    runs = [make_run(MadeRun(seed=seed, rounds=1, attacks=(name,))) for name, seed in made]
    means = [f"{leakage(run.scores())[0].baseline_psnr_db:.1f}\u00a0dB" for run in runs]
    assert means[1] != means[2]

    page = Page(compare(runs, tmp_path / "compare.html").read_text())

    charts = [chart for chart in page.charts if "data mean" in chart]
    assert len(charts) == 4  # wide and narrow, light and dark
    for chart in charts:
        assert f">data mean {means[0]}<" in chart
        assert f">data mean {means[1]}, digits-0002<" in chart
        assert f">data mean {means[2]}, digits-0003<" in chart


def test_runs_of_one_name_are_told_apart(make_run: Make, tmp_path: Path) -> None:
    run = make_run(MadeRun(rounds=1))

    page = Page(compare([run, run], tmp_path / "compare.html").read_text())

    assert "digits-0001 (2)" in page.text
    assert "Nothing: their settings are equal." in page.text


@pytest.mark.parametrize(
    "wanted", [MadeRun(rounds=0, summed_up=False), MadeRun(attacks=("labels-only",), rounds=1)]
)
def test_a_comparison_makes_do_with_what_there_is(
    make_run: Make, tmp_path: Path, wanted: MadeRun
) -> None:
    page = Page(compare([make_run(wanted)], tmp_path / "compare.html").read_text())

    assert page.open == []


def test_nothing_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one run"):
        compare([], tmp_path / "compare.html")


def test_one_value_has_a_mean_and_no_deviation() -> None:
    assert (over_seeds([2.0, None]).mean, over_seeds([2.0]).std) == (2.0, None)
    assert over_seeds([None]).mean is None


def test_runs_with_and_without_a_server_stand_in_one_page(make_run: Make, tmp_path: Path) -> None:
    runs = [make_run(MadeRun(name="centre", rounds=3)), make_run(AMONG_PEERS)]

    page = Page(compare(runs, tmp_path / "compare.html").read_text())

    assert page.open == []
    assert "Without a server" in page.text
    assert (
        "d-psgdringcurious-neighbourhears 22.2 % of the links4 told apart exactly, 8 estimated"
        in page.text
    )
    assert len(page.charts) == 3 * 4  # the frontier, over distances, over rounds
    assert any("links from the adversary" in chart for chart in page.charts)
    assert "protocol.name" in page.text  # among what differs


def test_without_such_runs_nothing_is_said_of_peers(make_run: Make, tmp_path: Path) -> None:
    page = Page(compare([make_run(MadeRun(rounds=1))], tmp_path / "compare.html").read_text())

    assert "Without a server" not in page.text
