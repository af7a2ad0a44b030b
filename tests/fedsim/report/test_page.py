"""The report of one run: whole, alone, harmless, and honest about what is missing."""

import getpass
import hashlib
import re
import shutil
import socket
from base64 import b64decode, b64encode
from html.parser import HTMLParser
from pathlib import Path
from statistics import median

import pytest
from PIL import Image

from fedsim.records import RunDirectory
from fedsim.report.page import build
from fedsim.schemas.scores import Score
from tests.fedsim.conftest import MadeRun, Make

SVG = "data:image/svg+xml;base64,"
OLD_SCORE = {
    *("observation", "round", "victim", "attack", "threat", "defense", "status", "reason"),
    *("batch_size", "images", "label_accuracy", "success_rate", "success_threshold_db"),
    *("baselines", "matching_loss", "steps", "seconds"),
}
VOID = {"meta", "img", "source"}


class Page(HTMLParser):
    """Reads a page: its elements, its text, and whether all that was opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.source = text
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()
        self.text = re.sub(r"\s+", " ", self.text.replace("\u00a0", " "))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        """Attributes of every such element."""
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def charts(self) -> list[str]:
        """The drawings of the page, in every width and colour scheme."""
        images = [one["srcset"] for one in self.all("source")]
        images += [one["src"] for one in self.all("img") if one.get("class") == "chart"]
        return [b64decode(one.removeprefix(SVG)).decode() for one in images]


def page_of(run: RunDirectory) -> Page:
    """Build and read a report; every element must be closed."""
    page = Page(build(run).read_text())
    assert page.open == []
    return page


@pytest.fixture(scope="session")
def page(made_once: RunDirectory, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The report of a finished run."""
    copy = tmp_path_factory.mktemp("page") / made_once.name
    return page_of(RunDirectory(shutil.copytree(made_once.root, copy)))


def test_the_report_says_what_was_found_assumed_and_measured(
    page: Page, made_once: RunDirectory
) -> None:
    assert "The curious server recovered" in page.text
    assert "hears the weights in force when the update was computed" in page.text
    assert "nearest public image" in page.text
    assert f"{100 * made_once.rounds()[-1]['accuracy']:.1f} %" in page.text
    for name in ("best", "median", "worst", "step 0", "torch", "2.15.0", "training.batch_size"):
        assert name in page.text
    assert "round 1, client 2: 'w' holds NaN or infinity" in page.text
    assert len(set(page.charts)) == 4  # wide and narrow, light and dark


def test_the_report_says_which_defenses_were_in_force(page: Page, make_run: Make) -> None:
    chain = 'defenses=[{name="clip",options={norm=2.0}},{name="fp16"}]'

    defended = page_of(make_run(MadeRun(overrides=[chain])))

    assert "No defense was in force." in page.text
    assert "Defense in force: clip (norm = 2.0), then fp16." in defended.text


def test_the_page_stands_alone_and_runs_nothing(page: Page) -> None:
    (policy,) = [one["content"] for one in page.all("meta") if "http-equiv" in one]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "form", "base"}
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        assert "href" not in attributes
        for image in (attributes.get("src"), attributes.get("srcset")):
            assert image is None or image.startswith(("data:image/png;base64,", SVG))


def test_a_chart_has_words_for_those_who_cannot_see_it(page: Page) -> None:
    (chart,) = [one for one in page.all("img") if one.get("class") == "chart"]

    shown = "PSNR, dB; labels found, share; accuracy; loss. Attacks: dlg, IG, labels"
    assert shown in chart["alt"]


def test_a_reader_on_a_phone_in_the_dark_is_shown_that_chart_first(page: Page) -> None:
    assert [one["media"] for one in page.all("source")] == [
        "(max-width: 40rem) and (prefers-color-scheme: dark)",
        "(max-width: 40rem)",
        "(prefers-color-scheme: dark)",
    ]


def test_the_values_of_the_chart_stand_in_a_table(make_run: Make) -> None:
    run = make_run(MadeRun(rounds=2, failing=(2,)))

    page = page_of(run)

    scores = [one for one in run.scores() if one["attack"] == "dlg" and one["round"] == 1]
    values = [image["psnr_db"] for one in scores for image in one["images"]]
    mean = median(v for one in scores for v in one["baselines"]["data_mean"]["psnr_db"])
    first = run.rounds()[1]
    measured = f"{first['accuracy']:.3f}{first['loss']:.3f}"
    spread = f"{median(values):.1f}{min(values):.1f} to {max(values):.1f}{mean:.1f}"
    assert f"1{measured} dlg{spread}" in page.text
    assert "no attack on images" in page.text  # round 0
    assert re.search(r"2[\d.]+ IG\u2013\u2013", page.text)


def test_the_policy_allows_the_style_sheet_that_is_there(page: Page) -> None:
    style = page.source.partition("<style>")[2].partition("</style>")[0]
    sha256 = b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"sha256-{sha256}" in page.source


def test_text_of_a_run_cannot_become_markup(make_run: Make) -> None:
    run = make_run(MadeRun(rounds=2, failing=(2,)))
    run.append_event("<i>kind", "<img src=x onerror=alert(1)>")

    page = page_of(run)

    assert "<script>alert(1)</script>" in page.text
    assert "two labels & one <row>" in page.text
    assert "<img src=x onerror=alert(1)>" in page.text


def test_the_page_names_no_person_machine_or_folder(finished_run: RunDirectory) -> None:
    finished_run.append_event("run-failed", f"cannot write '{finished_run.root / 'x.json'}'")

    text = build(finished_run).read_text()

    assert "\u2026/x.json" in text
    assert str(finished_run.root.parent) not in text
    assert str(Path.home()) not in text
    assert "somebody" not in text
    for name in (socket.gethostname(), getpass.getuser()):
        assert len(name) < 5 or name not in text


def test_building_again_gives_the_same_bytes(finished_run: RunDirectory) -> None:
    first = build(finished_run).read_bytes()
    pictures = {path.name: path.read_bytes() for path in finished_run.pictures.iterdir()}

    again = build(finished_run).read_bytes()

    assert first == again
    assert pictures == {path.name: path.read_bytes() for path in finished_run.pictures.iterdir()}


def test_pictures_lie_beside_the_page(finished_run: RunDirectory) -> None:
    (finished_run.pictures).mkdir()
    (finished_run.pictures / "gallery-removed.png").write_bytes(b"old")

    build(finished_run)

    names = {path.name for path in finished_run.pictures.iterdir()}
    expected = {"gallery-IG.png", "gallery-dlg.png", "steps-IG.png", "steps-dlg.png"}
    assert names == expected | {"gallery.png", "curve.png"}
    for path in finished_run.pictures.iterdir():
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert picture.width > 300


def test_an_oracle_is_marked_on_the_page_and_in_the_chart(make_run: Make) -> None:
    page = page_of(make_run(MadeRun(grants='"labels"')))

    assert "Oracle. IG is told the private labels" in page.text
    assert all("PSNR, dB (oracle: an upper bound)" in chart for chart in page.charts)
    assert all(">IG (oracle)<" in chart and ">dlg<" in chart for chart in page.charts)
    # the strongest attack is dlg, which made no use of what was granted
    assert "The curious server recovered" in page.text
    assert "dlg (oracle)" not in page.text


def test_labels_that_no_attack_used_make_no_oracle(make_run: Make) -> None:
    page = page_of(make_run(MadeRun(grants='"labels"', attacks=("dlg",), rounds=1)))

    assert "Oracle." not in page.text
    assert "No attack here made use of the private labels." in page.text


def test_without_an_oracle_nobody_is_called_one(page: Page) -> None:
    assert "oracle" not in page.text.lower()
    assert not [chart for chart in page.charts if "oracle" in chart]


def test_failed_attacks_are_listed_with_their_reasons(make_run: Make) -> None:
    page = page_of(make_run(MadeRun(rounds=2, failing=(1, 2))))

    assert "that says nothing about safety" in page.text
    assert "Attacks that failed or did not finish" in page.text
    assert page.text.count("two labels & one <row>") == 3  # once per attack, for four updates each
    assert "No attack has guessed an image." in page.text


@pytest.mark.parametrize(
    "wanted",
    [
        MadeRun(rounds=0, summed_up=False),
        MadeRun(rounds=2, summed_up=False),
        MadeRun(victims=()),
        MadeRun(attacks=()),
        MadeRun(attacks=("labels-only",)),
        MadeRun(rounds=1, victims=(0,), batch_size=1, attacks=("dlg",)),
        MadeRun(rounds=2, failing=(2,)),
    ],
    ids=["started", "killed", "unheard", "unattacked", "labels", "single", "half-failed"],
)
def test_a_report_makes_do_with_what_there_is(make_run: Make, wanted: MadeRun) -> None:
    page_of(make_run(wanted))


def test_a_report_makes_do_without_any_document_but_the_experiment(
    finished_run: RunDirectory,
) -> None:
    names = ("threat.json", "environment.json", "summary.json", "rounds.jsonl", "events.jsonl")
    for name in names:
        (finished_run.root / name).unlink()

    page = page_of(finished_run)

    assert "this run does not record what it was granted" in page.text
    assert len(page.charts) == 4


def test_a_run_without_evaluation_has_leakage_alone(finished_run: RunDirectory) -> None:
    rounds = [{"round": record["round"], "accuracy": None} for record in finished_run.rounds()]
    finished_run.rewrite_log("rounds", rounds)

    page = page_of(finished_run)

    assert "not evaluated" in page.text
    assert len(page.charts) == 4


def test_a_run_whose_truth_was_taken_out_still_has_a_report(finished_run: RunDirectory) -> None:
    for path in (finished_run.root / "truth").iterdir():
        path.unlink()

    assert page_of(finished_run).all("img")


def test_a_run_whose_updates_were_all_refused_says_so(make_run: Make) -> None:
    run = make_run(MadeRun(rounds=0))
    run.append_round({"round": 1, "clients": [], "replies": 3, "rejected": 3})

    page = page_of(run)

    assert "Every one of 3 updates was refused before it was used" in page.text
    assert "Nothing was attacked" not in page.text


def test_more_measures_stand_in_a_table_and_a_missing_one_has_its_reason(page: Page) -> None:
    assert "More measures" in page.text
    assert "among 100 others" in page.text
    assert "No LPIPS: the weights of AlexNet are not on this machine" in page.text


def test_a_false_certificate_is_seen(finished_run: RunDirectory) -> None:
    scores = finished_run.scores()
    for score in scores:
        if score["attack"] == "dlg":
            score |= {"certified": 2, "certified_wrong": int(score["round"] == 3)}
    finished_run.rewrite_log("scores", scores)

    page = page_of(finished_run)

    assert "dlg says that it has proved 12 guesses; 2 of them are wrong." in page.text
    assert [cell["class"] for cell in page.all("td") if "bad" in cell.get("class", "")]
    assert "122 wrong" in page.text  # 12, and small below it, 2 wrong


def test_copies_are_said_beside_the_attack_whose_numbers_they_flatter(
    finished_run: RunDirectory,
) -> None:
    scores = finished_run.scores()
    scores[0]["copies"] = {"private": 1, "guesses": 2, "public": 1}
    finished_run.rewrite_log("scores", scores)

    text = page_of(finished_run).text

    assert "1 private image repeats another one of the same batch:" in text
    assert "2 guesses repeat an earlier guess" in text
    assert "1 guess is a copy of a public image" in text


def test_scores_of_an_earlier_version_still_make_a_page(finished_run: RunDirectory) -> None:
    new = set(Score.model_fields) - OLD_SCORE
    scores = [{k: v for k, v in one.items() if k not in new} for one in finished_run.scores()]
    for score in scores:
        for image in score["images"]:
            for key in ("registered_psnr_db", "lpips", "identified", "certified"):
                del image[key]
        for quality in score["baselines"].values():
            del quality["registered_psnr_db"]
    finished_run.rewrite_log("scores", scores)

    assert "34.9" in page_of(finished_run).text


def test_alarms_and_tampered_rounds_are_named(finished_run: RunDirectory) -> None:
    alarm = {"client": 1, "check": "dead-layer", "message": "layer 'fc' <is> silent"}
    finished_run.append_round({"round": 3, "tampered": [1], "alarms": [alarm, alarm]})

    text = page_of(finished_run).text

    assert "Checks of clients raised 2 alarms in 1 round" in text
    assert "2 alarms of the checks that clients make" in text
    assert "layer 'fc' <is> silent" in text
    assert "Tampered. In 1 round clients were sent other weights" in text
    assert "round 3 (1 client)" in text


def test_an_interrupted_run_says_so(make_run: Make) -> None:
    assert "Not finished." in page_of(make_run(MadeRun(summed_up=False))).text
