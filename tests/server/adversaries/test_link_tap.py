"""The eavesdropper on a link hears what the server hears, and changes nothing."""

from pathlib import Path

import pytest

from clients.app import app
from fedsim.config import Experiment, parse_experiment
from fedsim.engines.in_process import InProcessGrid
from fedsim.files import digest, read_tensors
from fedsim.records import RunDirectory
from server.rounds import train


def experiment(adversary: str, server: str = "") -> Experiment:
    return parse_experiment(
        f"""
        name = "tiny"
        rounds = 2
        partition = {{ clients = 3 }}
        model = {{ name = "mlp", options = {{ hidden = [6] }} }}
        adversary = {{ {adversary} }}
        server = {{ {server} }}
        """
    )


def ran(tiny: Experiment, folder: Path) -> RunDirectory:
    run = RunDirectory.create(folder, "tiny")
    train(tiny, run, InProcessGrid(tiny, run, app))
    return run


@pytest.mark.parametrize("server", ["", "evaluate_clients = true"])
def test_a_tap_on_every_link_hears_what_a_curious_server_hears(tmp_path: Path, server: str) -> None:
    curious = ran(experiment('threat = "curious-server"', server), tmp_path)
    tap = ran(experiment('threat = "link-tap"', server), tmp_path)

    assert len(tap.observation_records()) == 6
    assert tap.views_sha256() == curious.views_sha256()
    assert digest(read_tensors(tap.checkpoint)[0]) == digest(read_tensors(curious.checkpoint)[0])


def test_a_tap_on_the_way_up_hears_the_same_updates_without_the_weights(tmp_path: Path) -> None:
    tap = ran(experiment('threat = "link-tap"'), tmp_path)
    uplink = ran(experiment('threat = "uplink-tap"'), tmp_path)

    both, one = tap.observation_records(), uplink.observation_records()
    assert [record["sha256"] for record in one] == [record["sha256"] for record in both]
    assert {(record["weights"], record["buffers"]) for record in one} == {(None, None)}
    assert all(record["weights"] for record in both)
    assert not (uplink.root / "observations" / "models").exists()


def test_a_tap_hears_its_own_links_alone(tmp_path: Path) -> None:
    tap = ran(experiment('threat = "link-tap", victims = [1], rounds = [2]'), tmp_path)

    assert [one["id"] for one in tap.observation_records()] == ["round-00002-client-1-to-server"]
