"""Equations hold what an adversary can know, and no more."""

from pathlib import Path

import pytest

from clients.app import app
from fedsim.config import parse_experiment
from fedsim.engines.in_process import InProcessGrid
from fedsim.equations import Equations
from fedsim.peers import federation_of
from fedsim.records import RunDirectory
from server.peers import train


@pytest.mark.parametrize(("listens", "told"), [("'all'", True), ("[2]", False)])
def test_who_met_whom_is_known_of_rounds_that_were_heard_alone(
    tmp_path: Path, listens: str, told: bool
) -> None:
    tiny = parse_experiment(
        f"""
        name = "tiny"
        rounds = 2
        partition = {{ clients = 4 }}
        model = {{ name = "mlp", options = {{ hidden = [2] }} }}
        topology = {{ name = "ring" }}
        protocol = {{ name = "gossip" }}
        adversary = {{ threat = "relay", rounds = {listens} }}
        """
    )
    run = RunDirectory.create(tmp_path, "tiny")
    train(tiny, run, InProcessGrid(tiny, run, app))

    heard = Equations(federation=federation_of(tiny), run=run)
    heard.take(1)
    heard.take(2)

    assert bool(heard.heard[2]) == told
