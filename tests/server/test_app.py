"""The ServerApp, as every engine starts it."""

import os
from pathlib import Path
from typing import Any

import pytest

from clients.app import app as client_app
from fedsim import driver, lock
from fedsim.config import Experiment, parse_experiment
from fedsim.engines.in_process import InProcessGrid
from fedsim.engines.local import server_context
from fedsim.errors import ConfigError
from fedsim.files import replace_bytes
from fedsim.records import RunDirectory
from fedsim.wire import NOTE_FAILURE, RUN_DIRECTORY
from server import rounds
from server.app import app

TEXT = """
name = "tiny"
rounds = 1
partition = { clients = 2 }
model = { name = "mlp", options = { hidden = [6] } }
"""


def test_a_run_gets_its_plan_and_its_rounds(tmp_path: Path) -> None:
    tiny = parse_experiment(TEXT)
    run = RunDirectory.create(tmp_path, "tiny")

    app(InProcessGrid(tiny, run, client_app), server_context(tiny, run))

    assert parse_experiment(run.config.read_text()) == tiny
    assert {path.name for path in run.root.iterdir()} >= {"threat.json", "knowledge.json"}
    assert [record["round"] for record in run.rounds()] == [0, 1]
    assert len(run.observation_records()) == 2


def test_a_server_that_nobody_gave_a_directory_makes_one_and_lets_nobody_else_work_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = parse_experiment(TEXT + f'output = {{ directory = "{tmp_path}/runs" }}\n')
    nowhere = RunDirectory(tmp_path / "nowhere")
    grid = InProcessGrid(tiny, nowhere, client_app)
    context = server_context(tiny, nowhere)
    context.run_config[RUN_DIRECTORY] = ""
    for client in range(tiny.partition.clients):
        grid.context(client).run_config[RUN_DIRECTORY] = ""
    train, refused = rounds.train, list[str]()

    def also_resumed(experiment: Experiment, run: RunDirectory, *more: Any, **rest: Any) -> None:
        with pytest.raises(ConfigError) as refusal:
            driver.resume(run.root)
        refused.append(str(refusal.value))
        train(experiment, run, *more, **rest)

    monkeypatch.setattr(rounds, "train", also_resumed)

    app(grid, context)

    run = RunDirectory.open(tmp_path / "runs" / "tiny-0001")
    assert len(refused) == 1
    assert f"is in use by process {os.getpid()} on" in refused[0]
    assert "training for flwr run since" in refused[0]
    assert not (run.root / lock.NAME).exists()
    assert [record["round"] for record in run.rounds()] == [0, 1]
    assert len(list((run.root / "truth").iterdir())) == 2
    assert not nowhere.root.exists()


@pytest.mark.parametrize("noted", [True, False])
def test_a_failure_is_noted_where_nobody_else_can(tmp_path: Path, noted: bool) -> None:
    tiny = parse_experiment(TEXT + 'server = { strategy = "fedavgg" }\n')
    run = RunDirectory.create(tmp_path, "tiny")
    replace_bytes(run.config, b"")  # as if checked before: the check would refuse this
    context = server_context(tiny, run)
    context.run_config[NOTE_FAILURE] = noted

    with pytest.raises(ConfigError, match="unknown strategy 'fedavgg'"):
        app(InProcessGrid(tiny, run, client_app), context)

    events = [(event["kind"], event["message"]) for event in run.events()]
    said = ("server-failed", "unknown strategy 'fedavgg'; did you mean 'fedavg'?")
    assert events == ([said] if noted else [])
