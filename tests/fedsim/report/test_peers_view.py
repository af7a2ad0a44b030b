"""The part of a page that only runs without a server have."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from fedsim.records import RunDirectory
from fedsim.report.page import build
from fedsim.report.peers_view import PeersView
from fedsim.report.run_view import RunView
from tests.fedsim.conftest import AMONG_PEERS, Make
from tests.fedsim.report.test_page import Page, page_of
from tests.fedsim.told import text_run


@pytest.fixture
def run(made_among_peers: RunDirectory, tmp_path: Path) -> RunDirectory:
    """A finished run without a server."""
    return RunDirectory(shutil.copytree(made_among_peers.root, tmp_path / "run"))


def view_of(run: RunDirectory) -> PeersView:
    """Return what its page says of peers."""
    found = RunView(run).peers
    assert found is not None
    return found


def test_a_page_of_a_run_with_a_server_says_nothing_of_peers(made_once: RunDirectory) -> None:
    view = RunView(made_once)

    assert view.peers is None
    assert "consensus distance" not in [panel.title for panel in view.panels()]


def test_the_page_says_who_heard_whom_and_what_it_got_of_whom(run: RunDirectory) -> None:
    page = page_of(run)

    (graph,) = [one for one in page.all("img") if one.get("class") == "graph"]
    assert "ring of 9 peers. The adversary is peer 0, and hears 2 of 9 links." in graph["alt"]
    assert "peer 1: " in graph["alt"]
    assert "peer 3: " not in graph["alt"]  # nothing was got of it
    for said in (
        "made of theirs; of grey ones there is none.",
        "By distance from the adversary",
        "2 told apart exactly, 4 estimated",
        "went by way of a relay, which hears everything",
        "It knows the graph and the weights with which peers average",
        "consensus distance",
        "27.0 kB between peers",
    ):
        assert said in page.text
    assert "sits at the neighbour" not in page.text


def test_the_best_image_of_a_peer_is_its_colour(run: RunDirectory) -> None:
    best = view_of(run).best

    assert sorted(best) == [1, 2, 4, 8]
    values = [
        image["psnr_db"]
        for score in run.scores()
        if score["victim"] == "client-4"
        for image in score["images"]
    ]
    assert best[4] == max(values)


def test_the_curve_over_distances_has_the_values_of_the_table(run: RunDirectory) -> None:
    view = view_of(run)

    points = view.by_distance().points

    assert [at.round for at in points] == [1, 2, 3, 4]
    assert [at.value for at in points] == [
        row.psnr_db.median if row.psnr_db else None for row in view.distances
    ]
    assert points[2].value is None  # nobody at three links was told apart


def test_accuracy_has_a_band_over_peers_and_consensus_a_panel(run: RunDirectory) -> None:
    view = RunView(run)

    (accuracy,) = [panel for panel in view.panels() if panel.title == "accuracy"]
    (consensus,) = [panel for panel in view.panels() if panel.title == "consensus distance"]

    last = run.rounds()[-1]
    assert accuracy.points[-1].value == last["accuracy"]
    assert accuracy.points[-1].low == min(last["peer_accuracy"])
    assert accuracy.points[-1].high == max(last["peer_accuracy"])
    assert [at.value for at in consensus.points] == [0.0, 0.5, 1.0, 1.5]


def test_a_relay_is_said_to_hear_everything(make_run: Make) -> None:
    run = make_run(
        replace(AMONG_PEERS, overrides=(*AMONG_PEERS.overrides, "adversary.threat=relay"))
    )

    page = page_of(run)

    assert "A relay hears everything. It carries every message" in page.text
    assert "hears every one of 9 links" in page.text
    assert "a real network of peers has none" not in page.text


def test_a_graph_that_changes_is_drawn_as_it_was_when_somebody_first_listened(
    make_run: Make,
) -> None:
    more = ("topology.name=one-peer-exponential", "partition.clients=16", "adversary.rounds=[2, 3]")
    run = make_run(replace(AMONG_PEERS, overrides=(*AMONG_PEERS.overrides, *more)))

    page = page_of(run)

    assert view_of(run).first == 2
    assert "The graph changes from round to round; that of round 2 is drawn." in page.text


def test_the_graph_lies_beside_the_page_as_a_picture(run: RunDirectory) -> None:
    build(run)

    with Image.open(run.pictures / "graph.png") as picture:
        assert picture.width > 1000


def test_the_page_makes_do_with_a_run_that_was_killed(make_run: Make) -> None:
    run = make_run(replace(AMONG_PEERS, summed_up=False))
    (run.root / "rounds.jsonl").unlink()

    page: Page = page_of(run)

    assert "No attack on images has been scored yet." in page.text
    assert "Peers are coloured" not in page.text


def test_an_adversary_that_never_listens_hears_nothing(make_run: Make) -> None:
    more = ("adversary.threat=relay", "adversary.rounds=[]", "adversary.victims=[]")
    wanted = replace(AMONG_PEERS, victims=(), overrides=(*AMONG_PEERS.overrides, *more))

    page = page_of(make_run(wanted))

    assert "The adversary listened in no round." in page.text
    assert "A relay hears everything" not in page.text


def test_what_peers_gave_away_of_texts_is_told_in_tokens(tmp_path: Path) -> None:
    ring = (
        "partition.clients=3",
        "topology.name=ring",
        "protocol.name=d-psgd",
        "adversary.threat=curious-neighbour",
        "adversary.victims=[1, 2]",
    )
    run = text_run(tmp_path, victims=(1, 2), overrides=ring)

    page, view = page_of(run), view_of(run)

    assert max(view.best.values()) == 1.0
    (graph,) = [one for one in page.all("img") if one.get("class") == "graph"]
    assert "Best text of each by dlg: peer 1: 100\u00a0%, peer 2: 90\u00a0%." in graph["alt"]
    assert "by the best text that dlg made of theirs" in page.text
    (row,) = view.distances
    assert (row.modality, row.psnr_db, row.baseline_accuracy) == ("text", None, 0.25)
    assert row.accuracy is not None
    assert "PSNR" not in page.text
