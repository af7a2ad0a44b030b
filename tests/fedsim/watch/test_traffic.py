"""What crossed tapped links, as the page is told."""

import json
from pathlib import Path

import pytest

from fedsim.files import Record, append_line
from fedsim.watch.traffic import MOST_BURSTS, MOST_LINKS
from fedsim.watch.watched import Watched
from tests.fedsim.watch.synthetic import Made


@pytest.fixture
def made(tmp_path: Path) -> Made:
    made = Made(tmp_path / "run", rounds=10, clients=4)
    made.begin()
    return made


def burst(link: str, place: int = 0, **changed: object) -> Record:
    return {
        "time": f"2026-01-02T03:{place // 60:02}:{place % 60:02}.000+00:00",
        "seconds": 0.5,
        "connection": 1,
        "link": link,
        "direction": "up" if place % 2 else "down",
        "bytes": 1000 * (place + 1),
        "encrypted": True,
    } | changed


def told(made: Made, *bursts: Record) -> Record:
    for one in bursts:
        append_line(made.run.root / "traffic.jsonl", one)
    run = Watched(made.run.root)
    run.look()
    found: Record = run.since(0)["traffic"]
    json.dumps(found, allow_nan=False)
    return found


def test_bytes_are_summed_by_link_and_direction(made: Made) -> None:
    plain = burst("client-2", 3, encrypted=False)

    found = told(made, burst("client-10"), burst("client-2", 1), burst("client-2", 2), plain)

    links = {one["name"]: one for one in found["links"]}
    assert list(links) == ["client-2", "client-10"]
    two = links["client-2"]
    assert (two["up"], two["down"], two["bursts"], two["encrypted"]) == (6000, 3000, 3, 2)
    assert found["bursts"] == [
        [0.0, "down", 1000],
        [1.0, "up", 2000],
        [2.0, "down", 3000],
        [3.0, "up", 4000],
    ]


def test_a_run_that_nobody_recorded_has_none(made: Made) -> None:
    run = Watched(made.run.root)
    run.look()

    assert "traffic" not in run.since(0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"time": "soon"},
        {"time": None},
        {"bytes": -1},
        {"bytes": 1e400},
        {"bytes": "many"},
        {"direction": "<b>"},
        {"link": None},
        {"link": ""},
    ],
)
def test_bursts_that_make_no_sense_are_counted_and_left_out(made: Made, wrong: Record) -> None:
    with (made.run.root / "traffic.jsonl").open("w") as log:
        log.write(json.dumps(burst("client-1") | wrong) + "\n")

    found = told(made, burst("client-1", 5))

    assert found["left_out"] == 1
    assert found["links"][0]["bursts"] == 1


def test_links_that_are_not_shown_one_by_one_are_in_the_sums(made: Made) -> None:
    shown = [burst(f"client-{place}", place) for place in range(MOST_LINKS)]

    found = told(made, *shown, burst("client-x", encrypted=False), burst("client-y", 1))

    assert found["further"] == {"links": 2, "up": 2000, "down": 1000, "bursts": 2, "encrypted": 1}


def test_what_is_told_of_long_traffic_is_bounded(made: Made) -> None:
    found = told(made, *(burst(f"<i>{place % 90}</i>", place) for place in range(900)))

    assert len(found["links"]) == MOST_LINKS
    assert len(found["bursts"]) == MOST_BURSTS
    assert found["left_out"] == 0
    assert found["further"]["links"] == 90 - MOST_LINKS
    assert found["further"]["bursts"] == 500
    assert len(json.dumps(found)) < 12_000
