"""Sweeps over adversaries: the same clients and batches, other places to listen."""

import csv
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedsim.schemas.sweep import SweepPart, SweepReach
from fedsim.sweep.cells import Job, cells_of, jobs_of
from fedsim.sweep.config import Sweep, parse_sweep, read_sweep
from fedsim.sweep.driver import Swept, run_sweep
from fedsim.sweep.job import Outcome, run_job
from fedsim.sweep.reached import wanted_by_any
from fedsim.sweep.tables import markdown
from tests.fedsim.report.test_page import Page

NEIGHBOUR = {"threat": "curious-neighbour", "peers": [0]}
SHARING = {"name": "gradient-sharing"}
DPSGD = {"name": "d-psgd"}


def tiny(**more: Any) -> Sweep:
    values = {
        "name": "who",
        "compares": "adversaries",
        "experiment": {
            "rounds": 2,
            "model": {"name": "mlp", "options": {"hidden": [16]}},
            "partition": {"clients": 5},
            "adversary": {"victims": [1, 2]},
        },
        "cells": [
            {"label": "server"},
            {
                "label": "sharing",
                "set": {"protocol": SHARING, "topology.name": "ring", "adversary": NEIGHBOUR},
            },
            {
                "label": "d-psgd",
                "set": {"protocol": DPSGD, "topology.name": "ring", "adversary": NEIGHBOUR},
            },
        ],
        "attackers": {"plain": {"name": "linear", "time_budget_s": 5}},
    }
    return parse_sweep(values | more)


def here(
    folder: Path, jobs: Sequence[Job], workers: int, stopping: Callable[[], None]
) -> Generator[Outcome, None, None]:
    """Run jobs in this process, in place of others."""
    for job in jobs:
        yield run_job(folder, job.digest, job.experiment)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """A server, and two ways to do without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedsim.sweep.driver.in_processes", here)
        return run_sweep(tiny(), tmp_path_factory.mktemp("sweeps") / "who", workers=1)


def reach_of(swept: Swept, number: int) -> SweepReach:
    """Return who listened where in a cell."""
    found = swept.record.cells[number - 1].reach
    assert found is not None
    return found


def got(part: SweepPart) -> tuple[int, int, int]:
    """Return the images recovered, attacked, and in all."""
    return part.num_recovered, part.num_attacked, part.num_images


def test_a_server_sees_everybody_and_a_neighbour_its_own_neighbours(swept: Swept) -> None:
    server, sharing, d_psgd = (reach_of(swept, number) for number in (1, 2, 3))

    assert got(server.whole) == (4, 4, 4)  # two clients in two rounds, one image each
    assert got(sharing.whole) == (2, 2, 4)  # peer 1 alone is a neighbour of peer 0
    assert d_psgd.whole.num_images == 4
    assert server.whole.isolated == {"heard": 4}
    assert sharing.whole.isolated == {"heard": 2}
    assert (server.hears, sharing.hears) == (None, 2 / 5)
    assert (sharing.protocol, sharing.topology) == ("gradient-sharing", "ring")


def test_all_that_any_setting_is_after_counts_in_each_at_its_distance(swept: Swept) -> None:
    server, sharing, _ = (reach_of(swept, number) for number in (1, 2, 3))

    assert {key: got(part) for key, part in server.distances.items()} == {"0": (4, 4, 4)}
    assert {key: got(part) for key, part in sharing.distances.items()} == {
        "1": (2, 2, 2),
        "2": (0, 0, 2),
    }


def test_the_first_round_from_the_same_start_is_told_apart_exactly(swept: Swept) -> None:
    first = reach_of(swept, 3).rounds["1"]

    assert first.isolated == {"exact": 1}
    assert got(first) == (1, 1, 2)
    assert first.psnr_db is not None
    assert first.psnr_db > 60  # dB: only rounding is left


def test_clients_train_on_the_same_images_whoever_they_talk_to(swept: Swept) -> None:
    assert swept.record.same_batches
    wanted, same = wanted_by_any(swept.measured)
    assert same
    assert wanted == {(0, number, client): 1 for number in (1, 2) for client in (1, 2)}


def test_the_page_shows_the_same_images_in_every_setting(swept: Swept) -> None:
    page = Page(swept.page.read_text())

    assert page.open == []
    assert "Of the same 4 images, 4 came back to 30 dB where most did (server)" in page.text
    assert "Not the same images" not in page.text
    for said in ("Round by round", "By distance", "client 1, round 1", "not got", "Consensus"):
        assert said in page.text
    assert (swept.folder / "gallery.png").stat().st_size > 5_000
    assert (swept.folder / "images.png").stat().st_size > 5_000


def test_the_numbers_stand_in_the_tables(swept: Swept) -> None:
    rows = list(csv.DictReader((swept.folder / "rows.csv").read_text().splitlines()))

    assert [row["reach.whole.num_recovered"] for row in rows][:2] == ["4", "2"]
    assert rows[1]["reach.distances.2.num_recovered"] == "0"
    assert float(rows[2]["reach.consensus_distance"]) > 0
    both = 2 * 4 * 1_210  # the parameters, to both neighbours
    assert both <= float(rows[1]["reach.bytes_sent"]) < both + 1_000  # and how they are framed
    said = markdown(swept.record)
    assert "| 2 | sharing | 2 heard |" in said
    assert "| 2 | sharing | 1 of 2, 1" in said  # in the first round, to more than 100 dB
    assert "| 2 | sharing | \N{EN DASH} | 2 of 2, 1" in said  # one link away
    assert " | 0 of 2 |\n" in said  # two links away


def test_equal_trainings_without_anybody_who_listens_are_one_job() -> None:
    cells = [
        *tiny().cells,
        {
            "label": "relay",
            "set": {"protocol": DPSGD, "topology.name": "ring", "adversary.threat": "relay"},
        },
    ]
    wanted = cells_of(tiny(cells=cells, utility={"set": {"rounds": 3}}))

    one, other = wanted[2].utility[0], wanted[3].utility[0]
    assert one.digest == other.digest
    assert one.experiment.adversary.rounds == []
    assert wanted[2].leakage[0].digest != wanted[3].leakage[0].digest
    assert len(jobs_of(wanted)) == 4 + 3


def test_nobody_is_told_of_defenses_where_there_are_none() -> None:
    attackers = {"plain": {"name": "linear"}, "auto": {"name": "auto"}}

    (cell, *_) = cells_of(tiny(attackers=attackers))
    (other, *_) = cells_of(tiny(attackers=attackers, compares="defenses"))

    assert cell.experiment.adversary.grants == []
    assert other.experiment.adversary.grants == ["defense"]


def test_the_shipped_comparison_is_after_the_same_victims_in_the_ways_of_its_name() -> None:
    cells = cells_of(read_sweep("centralised-vs-decentralised"))

    settings = {
        (c.experiment.protocol.name, c.experiment.topology.name, c.experiment.adversary.threat)
        for c in cells
    }
    topologies = ("ring", "torus", "random-regular", "complete")
    assert settings >= {
        ("server", "server", "curious-server"),
        ("server", "server", "link-tap"),
        ("ring-all-reduce", "ring", "curious-neighbour"),
        ("ring-all-reduce", "ring", "coalition"),
        ("d-psgd", "ring", "link-tap"),
        ("d-psgd", "ring", "relay"),
        *((p, t, "curious-neighbour") for p in ("d-psgd", "gradient-sharing") for t in topologies),
    }
    own = {peer for c in cells for peer in c.experiment.adversary.peers}
    for cell in cells:
        victims = cell.experiment.adversary.victims
        assert isinstance(victims, list)
        assert not own & set(victims)  # so that all settings are after the same images
