"""The page in a real browser; skipped where there is none."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fedsim.files import append_line, replace_json, replace_tensors
from fedsim.records import RunDirectory
from fedsim.truth import seal
from tests.fedsim.conftest import MadeRun, Make
from tests.fedsim.told import SENTENCES, table_run, text_run, tokens_of
from tests.fedsim.watch.browser import Tab, find_browser, open_tab
from tests.fedsim.watch.serving import Serving
from tests.fedsim.watch.synthetic import Made, hostile_table, hostile_text, job

pytestmark = pytest.mark.slow

Serve = Callable[[Path], Serving]

PROGRAM = find_browser()

SAYS = "document.getElementById('{}').innerText"
PICTURES = "[...document.images].filter((one) => one.complete && one.naturalWidth > 0).length"
BROKEN = """
[...document.images].filter((one) => one.complete && !one.naturalWidth).map((one) => one.src)
"""
TOO_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
SMALLEST = """
Math.min(...[...document.querySelectorAll('body *')]
  .filter((one) => one.checkVisibility())
  .filter((one) => [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
  .map((one) => parseFloat(getComputedStyle(one).fontSize) * (one.getScreenCTM?.()?.a ?? 1)))
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Tab]:
    if PROGRAM is None:
        pytest.skip("there is no Chromium or Chrome on this machine")
    with open_tab(PROGRAM) as tab:
        yield tab


@pytest.fixture
def tab(browser: Tab, serve: Serve) -> Iterator[Tab]:  # that is left before what it shows ends
    """A page, at whose end nothing was complained of."""
    browser.errors.clear()
    browser.look(1400)
    yield browser
    browser.open("about:blank")
    assert browser.errors == []


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return what serves runs until the test ends."""
    found: list[Serving] = []

    def start(path: Path) -> Serving:
        found.append(Serving(path))
        return found[-1]

    yield start
    for one in found:
        if one.thread.is_alive():
            one.stop()


def says(part: str) -> str:
    return SAYS.format(part)


def test_a_finished_run_is_shown_whole(tab: Tab, serve: Serve, finished_run: RunDirectory) -> None:
    tab.open(serve(finished_run.root).address)

    tab.wait_for(f"{says('badge')} === 'done'")
    tab.wait_for("document.querySelectorAll('.card').length === 12")
    tab.wait_for("!document.getElementById('spotlight').hidden")
    tab.evaluate("scrollTo(0, document.getElementById('gallery').offsetTop)")
    tab.wait_for(f"{PICTURES} >= 20")

    assert tab.evaluate(BROKEN) == []
    assert "images" in tab.evaluate(says("headline"))
    assert tab.evaluate("document.querySelectorAll('#panel-leak .line').length") >= 2
    assert tab.evaluate("document.querySelectorAll('#graph .node').length") == 4
    assert "reply-refused" in tab.evaluate(says("events"))
    assert "labels-only" in tab.evaluate(says("attacks"))


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_reads_well_on_narrow_and_wide_screens(
    tab: Tab, serve: Serve, made_among_peers: RunDirectory, width: int, dark: bool
) -> None:
    tab.look(width, dark=dark)
    tab.open(serve(made_among_peers.root).address)
    tab.wait_for("document.querySelectorAll('.card').length > 3")
    tab.wait_for("document.querySelectorAll('#panel-leak .line').length > 0")
    time.sleep(0.3)

    assert tab.evaluate(TOO_WIDE) == 0
    assert tab.evaluate("document.body.clientWidth") <= width
    assert tab.evaluate(SMALLEST) >= 9  # CSS pixels
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(21, 22, 26)" if dark else "rgb(251, 250, 247)")


def test_a_run_that_has_not_begun_fills_the_page_when_it_does(
    tab: Tab, serve: Serve, tmp_path: Path
) -> None:
    made = Made(tmp_path / "run", rounds=10, clients=4)
    for width in (400, 1400):
        tab.look(width)
        tab.open(serve(made.run.root).address)
        tab.wait_for(f"{says('badge')} === 'waiting'")
        assert tab.evaluate(TOO_WIDE) == 0
    assert "Waiting for the run to begin" in tab.evaluate(says("headline"))

    made.begin()
    tab.wait_for(f"{says('badge')} === 'training'")
    made.play(0, heard=False)
    made.play(1)

    tab.wait_for(f"{says('figures')}.includes('1 of 10')")
    tab.wait_for("document.querySelectorAll('.card').length === 4")
    assert "waiting" in tab.evaluate(says("cards"))


def test_it_follows_a_run_and_takes_no_text_for_markup(
    tab: Tab, serve: Serve, tmp_path: Path
) -> None:
    made = Made(tmp_path / "run", rounds=10, clients=4)
    made.begin()
    made.play(1)
    tab.open(serve(made.run.root).address)
    tab.wait_for("document.querySelectorAll('.card').length === 4")
    tab.evaluate("window.marker = 'still the same page'")

    hostile = "<img src=x onerror='window.hurt = 1'><script>window.hurt = 1</script>"
    made.run.append_event(f"client-failed{hostile}", f"client {hostile} left")
    sender = "client-<b>3</b>"
    made.run.append_score(made.score(1, 3, 40.0) | {"victim": sender, "reason": hostile})
    guess = {"status": "failed", "images": [], "reason": hostile}
    made.run.append_score(made.score(1, 2, 40.0) | guess)
    made.play(2)
    made.attack(1, 0, 44.4)

    tab.wait_for(f"{says('events')}.includes('onerror=')")
    tab.wait_for(f"{says('figures')}.includes('2 of 10')")
    tab.wait_for(f"{says('cards')}.includes('44.4')")
    tab.wait_for("document.querySelectorAll('.card').length === 8")
    tab.wait_for("document.querySelectorAll('#panel-leak .dot').length === 1")
    assert tab.evaluate("window.hurt ?? null") is None
    assert (
        tab.evaluate("document.querySelectorAll('#events img, #events script, #cards b b').length")
        == 0
    )
    assert tab.evaluate("window.marker") == "still the same page"


def test_a_guess_sharpens_while_its_attack_is_at_work(
    tab: Tab, serve: Serve, tmp_path: Path
) -> None:
    made = Made(tmp_path / "run", rounds=10, clients=1)
    made.begin()
    made.play(1)
    name = made.observation(1, 0)
    job = {
        "attack": "dlg",
        "observations": [name],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "time_budget_s": 60.0,
    }

    def show(step: int) -> None:
        guess = torch.full((1, 1, 8, 8), step / 100)
        replace_tensors(made.run.root / "progress" / "w.safetensors", {name: guess})
        told = {"guesses": {name: {"step": step, "images": 1}}}
        replace_json(made.run.root / "progress" / "w.json", job | told)

    address = "document.querySelector('.card img[data-address^=\"/so-far\"]')?.dataset.address"
    show(10)
    tab.open(serve(made.run.root).address)
    first = tab.wait_for(address)
    tab.wait_for(f"{says('working')}.includes('step 10')")
    assert "step 10" in tab.evaluate(says("cards"))

    show(90)
    tab.wait_for(f"{says('cards')}.includes('step 90')")
    tab.wait_for(f"{address} !== '{first}'")

    made.attack(1, 0, 55.5)
    (made.run.root / "progress" / "w.json").unlink()
    tab.wait_for(f"{says('cards')}.includes('55.5')")
    tab.wait_for(f"{says('working')} === ''")


def test_it_goes_on_by_itself_when_the_server_comes_back(
    tab: Tab, serve: Serve, tmp_path: Path
) -> None:
    made = Made(tmp_path / "run", rounds=10, clients=4)
    made.begin()
    made.play(1)
    serving = serve(made.run.root)
    tab.open(serving.address)
    tab.wait_for(f"{says('figures')}.includes('1 of 10')")
    tab.evaluate("window.marker = 'still the same page'")

    serving.stop()
    tab.wait_for(f"{says('badge')}.includes('connection lost')")
    made.play(2)
    made.play(3)
    serving.start()

    tab.wait_for(f"{says('figures')}.includes('3 of 10')")
    tab.wait_for(f"{says('badge')} === 'training'")
    made.play(4)
    tab.wait_for(f"{says('figures')}.includes('4 of 10')")
    tab.wait_for("document.querySelectorAll('.card').length === 12")
    assert tab.evaluate("window.marker") == "still the same page"
    # that nobody answered meanwhile is what the browser says of it
    tab.errors[:] = [one for one in tab.errors if "net::ERR_" not in one]


def test_the_gallery_is_narrowed_by_a_click_on_a_client(
    tab: Tab, serve: Serve, make_run: Make
) -> None:
    run = make_run(MadeRun(attacks=("dlg",)))
    tab.open(serve(run.root).address)
    tab.wait_for("document.querySelectorAll('.card').length === 12")

    click = "[...document.querySelectorAll('#graph .victim')][1].dispatchEvent(new Event('click'))"
    tab.evaluate(click)

    tab.wait_for("document.querySelectorAll('.card').length === 6")
    assert "client-0" not in tab.evaluate(says("cards"))
    tab.evaluate(click)
    tab.wait_for("document.querySelectorAll('.card').length === 12")


def test_the_spotlight_steps_through_the_looks_of_an_attack(
    tab: Tab, serve: Serve, make_run: Make
) -> None:
    run = make_run(MadeRun(attacks=("dlg",), rounds=1, victims=(0,)))
    tab.open(serve(run.root).address)
    tab.wait_for("document.querySelectorAll('.card').length === 2")

    tab.evaluate("document.querySelector('.card button.film').click()")
    tab.evaluate("document.getElementById('play').click()")
    tab.evaluate(
        "(() => { const slider = document.getElementById('spot-frame'); slider.value = 1; "
        "slider.dispatchEvent(new Event('input')); })()"
    )

    assert "step 100" in tab.evaluate(says("spot-what"))
    assert tab.evaluate(says("play")) == "Play"
    assert tab.evaluate("document.querySelector('#spot-guess img').style.left") == "-100%"


@pytest.mark.parametrize("encrypted", [True, False])
def test_the_end_of_a_run_in_which_nothing_was_heard_says_why(
    tab: Tab, serve: Serve, tmp_path: Path, encrypted: bool
) -> None:
    made = Made(tmp_path / "run", rounds=2, clients=2)
    made.begin()
    for number in range(3):
        made.play(number, heard=False)
    if encrypted:
        burst = {"time": "2026-01-02T03:04:05+00:00", "seconds": 0.2, "connection": 0}
        burst |= {"link": "client-0", "direction": "up", "bytes": 10, "encrypted": True}
        append_line(made.run.root / "traffic.jsonl", burst)
    address = serve(made.run.root).address
    tab.open(address)
    tab.wait_for(f"{says('headline')}.includes('Nothing is known yet')")
    replace_json(made.run.summary, {"status": "done", "rounds": 2, "leakage": []})

    tab.wait_for(f"{says('badge')} === 'done'")
    why = "The links were encrypted, and nothing was heard" if encrypted else "Nothing was heard"
    so = ", so nothing is known of what this training leaks."
    assert tab.evaluate(says("headline")) == why + so
    assert "Speed" not in tab.evaluate(says("figures"))
    assert tab.evaluate(says("curves-name")) == "Utility"
    boxes = "['federation', 'curves'].map((id) => document.getElementById(id)"
    left, right = tab.evaluate(f"{boxes}.getBoundingClientRect().toJSON())")
    assert left["top"] == right["top"]  # side by side
    assert left["width"] == right["width"]
    sizes = tab.evaluate(
        "[...document.querySelectorAll('#panels svg')]"
        ".map((one) => [one.clientWidth, one.clientHeight, one.viewBox.baseVal.width])"
    )
    assert len({tuple(one) for one in sizes}) == 1  # accuracy as large as loss
    assert sizes[0][0] == sizes[0][2]  # as wide as its place
    tab.look(400)
    tab.wait_for("document.querySelector('#panels svg').viewBox.baseVal.width < 400")
    assert tab.evaluate(TOO_WIDE) == 0


def test_traffic_of_tapped_links_is_shown_where_it_was_recorded(
    tab: Tab, serve: Serve, tmp_path: Path
) -> None:
    made = Made(tmp_path / "run", rounds=10, clients=4)
    made.begin()
    tab.look(400)
    tab.open(serve(made.run.root).address)
    tab.wait_for(f"{says('badge')} === 'training'")
    assert tab.evaluate("document.getElementById('traffic').hidden")

    for place in range(40):
        append_line(
            made.run.root / "traffic.jsonl",
            {
                "time": f"2026-01-02T03:04:{place:02}.000+00:00",
                "seconds": 0.2,
                "connection": place % 3,
                "link": f"client-{place % 3}",
                "direction": "up" if place % 2 else "down",
                "bytes": 10 ** (1 + place % 6),
                "encrypted": True,
            },
        )

    tab.wait_for("document.querySelectorAll('#links tbody tr').length === 3")
    assert "All of it is encrypted" in tab.evaluate(says("traffic"))
    assert tab.evaluate("document.querySelectorAll('#bursts rect').length") == 40
    assert tab.evaluate(TOO_WIDE) == 0

    for place in range(3, 45):  # of more than are shown, the last one is not encrypted
        append_line(
            made.run.root / "traffic.jsonl",
            {
                "time": "2026-01-02T03:05:00.000+00:00",
                "seconds": 0.2,
                "connection": place,
                "link": f"client-{place}",
                "direction": "up",
                "bytes": 10,
                "encrypted": place < 44,
            },
        )

    tab.wait_for("document.querySelectorAll('#links tbody tr').length === 41")
    assert "Of 82 bursts, 81 are encrypted" in tab.evaluate(says("traffic"))
    assert "5 further links" in tab.evaluate(says("links"))


def test_texts_are_shown_with_what_is_right_marked_by_colour_and_a_line(
    tab: Tab, serve: Serve, tmp_path: Path
) -> None:
    tab.look(1400, 3000)
    tab.open(serve(text_run(tmp_path).root).address)

    tab.wait_for("document.querySelectorAll('.card').length === 8")
    tab.wait_for("document.querySelectorAll('.card mark.hit').length > 20")
    tab.wait_for(f"{says('spot-private')} === 'private text'")
    style = "getComputedStyle(document.querySelector('.card mark.hit'))"
    plain = "getComputedStyle(document.querySelector('.card .sentence'))"
    assert "underline" in tab.evaluate(f"{style}.textDecorationLine")
    assert tab.evaluate(f"{style}.color !== {plain}.color")
    assert "2 of 8" in tab.evaluate(says("figures"))
    assert "Texts recovered" in tab.evaluate(says("figures"))
    assert "80.9\u00a0%" in tab.evaluate(says("attacks"))
    leak = tab.evaluate("document.querySelector('#panel-leak').innerText")
    assert "tokens at their place, %: median, worst to best" in leak
    assert "counts as recovered, 90 %" in leak
    assert "best text" in tab.evaluate("document.querySelector('#graph title').textContent")
    assert "images" not in tab.evaluate("document.body.innerText").lower()
    assert "PSNR" not in tab.evaluate("document.body.innerText")


def test_the_slider_shows_how_a_text_came_about(tab: Tab, serve: Serve, tmp_path: Path) -> None:
    tab.look(1400, 3000)
    tab.open(serve(text_run(tmp_path).root).address)
    tab.wait_for("document.querySelectorAll('.card mark.hit').length > 20")

    choose = "[...document.querySelectorAll('.card')].find((one) => one.innerText.includes('100'))"
    tab.evaluate(f"{choose}.querySelector('button.film').click()")
    tab.evaluate("document.getElementById('play').click()")
    found = []
    for place in (0, 1, 3):
        tab.evaluate(
            "(() => { const slider = document.getElementById('spot-frame'); slider.value = "
            f"{place}; slider.dispatchEvent(new Event('input')); }})()"
        )
        tab.wait_for("document.querySelector('#spot-guess .sentence') !== null")
        assert f"step {10 * min(place, 2)}" in tab.evaluate(says("spot-what"))
        found.append(tab.evaluate("document.querySelectorAll('#spot-guess mark.hit').length"))

    assert found[0] == 0 < found[1] < found[2]
    assert "100\u00a0%" in tab.evaluate(says("spot-what"))


@pytest.mark.parametrize("make", [hostile_text, hostile_table])
@pytest.mark.parametrize("width", [400, 1400])
def test_no_token_and_no_feature_is_taken_for_markup_or_breaks_the_page(
    tab: Tab, serve: Serve, tmp_path: Path, make: Callable[[Path], RunDirectory], width: int
) -> None:
    tab.look(width, 3000)  # what does not come into view is not asked for
    tab.open(serve(make(tmp_path).root).address)
    tab.wait_for("document.querySelectorAll('.card .told > span').length > 2")
    tab.wait_for(f"{says('cards')}.includes('<img src=x onerror=')")

    assert tab.evaluate("window.hurt ?? null") is None
    assert (
        tab.evaluate("document.querySelectorAll('.film.told img, .film.told script').length") == 0
    )
    assert tab.evaluate(TOO_WIDE) == 0
    assert tab.evaluate(SMALLEST) >= 9  # CSS pixels
    text = tab.evaluate("document.body.textContent")
    assert not {"\u202e", "\u200f", "\u061c", "\x1b", "\x00"} & set(text)


def test_a_text_comes_about_while_its_attack_is_at_work(
    tab: Tab, serve: Serve, tmp_path: Path
) -> None:
    run = text_run(tmp_path)
    name = "round-00001-client-2-to-server"
    (run.root / "observations" / f"{name}.json").write_text('{"num_examples": 1}\n')
    truth = tokens_of(SENTENCES[0])[None]
    seal(run, 1, "client-2", truth, torch.full_like(truth, -100))

    def show(step: int, right: int) -> None:
        guess = torch.where(torch.arange(truth.shape[1]) < right, truth, 6)
        replace_tensors(run.root / "progress" / "w.safetensors", {name: guess})
        replace_json(run.root / "progress" / "w.json", job("dlg", name, step))

    card = (
        "[...document.querySelectorAll('.card')].find((one) => one.innerText.includes('client-2'))"
    )
    hits = f"{card}?.querySelectorAll('button mark.hit').length"
    show(10, 3)
    tab.look(1400, 3000)
    tab.open(serve(run.root).address)
    tab.wait_for(f"{hits} === 2")
    tab.wait_for(f"{says('spot-what')}.includes('step 10')")
    assert "step 10" in tab.evaluate(f"{card}.innerText")

    show(90, 8)
    tab.wait_for(f"{hits} === 7")
    tab.wait_for(f"{says('spot-what')}.includes('step 90')")
    tab.wait_for("document.querySelectorAll('#spot-guess mark.hit').length === 7")

    (run.root / "progress" / "w.json").unlink()
    (run.root / "progress" / "w.safetensors").unlink()
    tab.wait_for(f"{card}.innerText.includes('waiting')")


def test_rows_are_shown_as_lists_with_wrong_features_crossed_out(
    tab: Tab, serve: Serve, tmp_path: Path
) -> None:
    tab.look(1400, 3000)
    tab.open(serve(table_run(tmp_path).root).address)

    tab.wait_for("document.querySelectorAll('.card mark.miss').length > 5")
    style = "getComputedStyle(document.querySelector('.card mark.miss'))"
    assert "line-through" in tab.evaluate(f"{style}.textDecorationLine")
    first = tab.evaluate("document.querySelector('.card').innerText")
    assert "label <=50K" in first
    assert "hours per week" in first
    tab.evaluate("document.querySelector('.card button.film').click()")
    tab.wait_for(f"{says('spot-guess')}.includes('42\u00a0%')")  # how sure the attack is
    assert "of features right, guessed label" in tab.evaluate(says("spot-where"))


def test_of_a_long_row_the_gallery_counts_what_it_leaves_out(
    tab: Tab, serve: Serve, tmp_path: Path
) -> None:
    run = table_run(tmp_path)
    told = json.loads(run.data.read_text())
    told["columns"] = [{"name": f"feature {place}"} for place in range(70)]
    replace_json(run.data, told)
    for number in (1, 2):
        for victim in (0, 1):
            name = f"round-{number:05d}-client-{victim}"
            batch = {"inputs": torch.rand(2, 70), "labels": torch.tensor([0, 1])}
            replace_tensors(run.root / "truth" / f"{name}.safetensors", batch)
            guess = run.root / "reconstructions" / f"{name}-to-server--dlg.safetensors"
            replace_tensors(guess, {"inputs": torch.rand(2, 70)})
    tab.look(1400, 3000)
    tab.open(serve(run.root).address)

    tab.wait_for(f"{says('cards')}.includes('and 54 more')")
    tab.wait_for(f"{says('spot-original')}.includes('and 6 more')")
    assert tab.evaluate(TOO_WIDE) == 0
