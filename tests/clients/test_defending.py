"""What a client does with its chain of defenses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from clients.app import app
from clients.local_training import LocalUpdate, local_update
from fedsim.config import parse_experiment
from fedsim.engines.in_process import InProcessGrid
from fedsim.files import read_tensors
from fedsim.records import RunDirectory
from server.rounds import train


def test_what_is_no_number_is_neither_sent_nor_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = parse_experiment(
        """
        name = "tiny"
        rounds = 2
        partition = { clients = 2 }
        model = { name = "mlp", options = { hidden = [6] } }
        defenses = [{ name = "dgc" }]
        """
    )
    run = RunDirectory.create(tmp_path, "tiny")

    def diverging(*args: Any, server_round: int, client: int, **more: Any) -> LocalUpdate:
        update = local_update(*args, server_round=server_round, client=client, **more)
        if (server_round, client) == (1, 0):
            spoilt = {name: torch.full_like(one, torch.nan) for name, one in update.tensors.items()}
            return replace(update, tensors=spoilt)
        return update

    monkeypatch.setattr("clients.app.local_update", diverging)

    train(tiny, run, InProcessGrid(tiny, run, app))

    (event,) = run.events()
    assert (event["kind"], event["client"]) == ("client-failed", 0)
    assert "own update holds NaN" in event["message"]
    assert run.rounds()[2]["clients"] == [0, 1]
    (remembered,) = (run.memory / "client-0").iterdir()
    assert all(bool(one.isfinite().all()) for one in read_tensors(remembered)[0].values())
