"""Clients that look at what they received before they train on it."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from flwr.app import Message

from clients.app import app
from clients.checking import build_checks
from fedsim.config import Experiment, parse_experiment
from fedsim.engines.in_process import InProcessGrid
from fedsim.errors import ConfigError
from fedsim.files import digest, read_tensors
from fedsim.records import RunDirectory
from fedsim.schemas import DOCUMENTS
from fedsim.stages.prepare import check
from fedsim.wrapped_grid import WrappedGrid
from server.rounds import train

OWN_CHECKS = '''
from dataclasses import dataclass

import torch
from clients.checks.alarm import Alarm


@dataclass(frozen=True, kw_only=True)
class Moved:
    """Notice weights that moved by so much since they were last received."""

    threshold: float = 0.0

    def check(self, model, inputs, labels, before):
        torch.rand(3)  # whatever it draws, training is the same
        if before is None:
            return []
        assert len(inputs) == len(labels) > 100
        now = {name: p.detach() for name, p in model.named_parameters()}
        moved = sum(float((now[name] - weight).abs().sum()) for name, weight in before.items())
        if moved <= self.threshold:
            return []
        return [Alarm(check="moved", message="they moved", value=moved, threshold=self.threshold)]


class NoCheck:
    """No check."""
'''


@pytest.fixture(autouse=True)
def own_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module of checks of the user's own."""
    (tmp_path / "own_checks.py").write_text(OWN_CHECKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("own_checks", None)


def experiment(clients: str = "", server: str = "") -> Experiment:
    return parse_experiment(
        f"""
        name = "tiny"
        rounds = 3
        partition = {{ clients = 3 }}
        model = {{ name = "mlp", options = {{ hidden = [6] }} }}
        clients = {{ {clients} }}
        server = {{ {server} }}
        """
    )


MOVED = 'checks = ["own_checks:Moved"]'


def ran(tiny: Experiment, folder: Path, wrap: type[WrappedGrid] = WrappedGrid) -> RunDirectory:
    run = RunDirectory.create(folder, "tiny")
    train(tiny, run, wrap(InProcessGrid(tiny, run, app)))
    return run


def alarms(run: RunDirectory) -> list[list[int]]:
    """Who raised an alarm, round by round."""
    return [[one["client"] for one in record["alarms"]] for record in run.rounds()[1:]]


def test_alarms_are_recorded_and_training_goes_on_as_without_checks(tmp_path: Path) -> None:
    plain = ran(experiment(), tmp_path)
    run = ran(experiment(MOVED), tmp_path)

    assert alarms(run) == [[], [0, 1, 2], [0, 1, 2]]
    for record in run.rounds():
        DOCUMENTS["round"].model_validate(record)
    DOCUMENTS["alarms"].model_validate({"alarms": run.alarms(2, "client-1")})
    assert run.rounds()[2]["alarms"][1]["message"] == "they moved"
    assert run.rounds()[2]["alarms"][1]["value"] > 0
    assert [(one["kind"], one["message"], one["client"]) for one in run.events()][:2] == [
        ("alarm", "round 2, client 0: 'moved': they moved", 0),
        ("alarm", "round 2, client 1: 'moved': they moved", 1),
    ]
    assert digest(read_tensors(run.checkpoint)[0]) == digest(read_tensors(plain.checkpoint)[0])
    assert run.views_sha256() == plain.views_sha256()
    assert all("alarms" not in record for record in plain.rounds())
    assert not (plain.root / "received").exists()


def test_a_client_may_refuse_to_train_on_what_alarms_it(tmp_path: Path) -> None:
    run = ran(experiment(f'{MOVED}, on_alarm = "refuse"'), tmp_path)

    assert alarms(run) == [[], [0, 1, 2], []]  # nobody trained in round 2: nothing moved
    assert [record["clients"] for record in run.rounds()[1:]] == [[0, 1, 2], [], [0, 1, 2]]
    assert [record["rejected"] for record in run.rounds()[1:]] == [0, 3, 0]
    refused = [event for event in run.events() if event["kind"] == "client-refused"]
    assert [event["client"] for event in refused] == [0, 1, 2]
    assert refused[0]["message"] == (
        "round 2, client 0: the client refused to train: 'moved': they moved"
    )
    assert {one["round"] for one in run.observation_records()} == {1, 3}
    assert not [path for path in (run.root / "truth").iterdir() if "round-00002" in path.name]


class Interrupted(Exception):
    """What ends a run in the middle."""


class Stops(WrappedGrid):
    """A grid that dies in round 3, after clients have trained."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        messages = list(messages)
        replies = self.inner.send_and_receive(messages, timeout=timeout)
        for message in messages:
            config = message.content.config_records.get("config")
            if config is not None and config.get("server-round") == 3:
                raise Interrupted
        return replies


def test_a_client_compares_with_what_it_received_last_in_a_resumed_run_too(
    tmp_path: Path,
) -> None:
    tiny = experiment(MOVED, "clients_per_round = 2")
    whole = ran(tiny, tmp_path)
    parts = RunDirectory.create(tmp_path, "tiny")
    with pytest.raises(Interrupted):
        train(tiny, parts, Stops(InProcessGrid(tiny, parts, app)))

    train(tiny, parts, InProcessGrid(tiny, parts, app))

    def found(run: RunDirectory) -> list[object]:
        return [record["alarms"] for record in run.rounds()[1:]]

    assert found(parts) == found(whole)
    drawn = [set(record["clients"]) for record in whole.rounds()[1:]]
    assert alarms(whole) == [[], sorted(drawn[0] & drawn[1]), sorted(drawn[2])]
    received = sorted(path.name for path in (whole.root / "received").iterdir())
    assert all(sum(name.startswith(f"client-{c}-") for name in received) <= 2 for c in range(3))


def test_checks_take_options_and_are_refused_where_they_cannot_be() -> None:
    options = 'options."own_checks:Moved".threshold = 2.5'
    [moved] = build_checks(experiment(f"{MOVED}, {options}").clients).values()
    assert getattr(moved, "threshold") == 2.5  # noqa: B009 - of the user's own class

    with pytest.raises(ConfigError, match=r"clients\.checks: unknown check 'dead-laier'; did you"):
        check(experiment('checks = ["dead-laier"]'))
    with pytest.raises(ConfigError, match=r"check\.options: unknown option 'x'"):
        check(experiment(f'{MOVED}, options."own_checks:Moved".x = 1'))
    with pytest.raises(ConfigError, match="NoCheck must have `check`"):
        check(experiment('checks = ["own_checks:NoCheck"]'))
    with pytest.raises(ConfigError, match=r"clients\.options\.dead-layer is not among checks"):
        experiment("options.dead-layer.threshold = 1.0")


SITUATED = """
from dataclasses import dataclass, replace

from clients.checks.alarm import Alarm


@dataclass(frozen=True, kw_only=True)
class Reach:
    reach: float = 0.0

    def in_situation(self, reach):
        return replace(self, reach=reach)

    def check(self, model, inputs, labels, before):
        return [Alarm(check="reach", message="told", value=self.reach, threshold=0.0)]
"""


def test_a_check_is_told_how_far_training_goes_since_the_client_was_last_sent_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "situated_checks.py").write_text(SITUATED)
    monkeypatch.syspath_prepend(str(folder))
    tiny = experiment('checks = ["situated_checks:Reach"]', "clients_per_round = 1")
    tiny = tiny.model_copy(update={"rounds": 6})
    run = ran(tiny, tmp_path)

    last: dict[str, int] = {}
    gaps = []
    for server_round in range(1, 7):
        for name in ("client-0", "client-1", "client-2"):
            for alarm in run.alarms(server_round, name):
                rounds = server_round - last.get(name, server_round - 1)
                assert alarm["value"] == pytest.approx(rounds * tiny.training.learning_rate)
                last[name] = server_round
                gaps.append(rounds)
    assert max(gaps) > 1
    sys.modules.pop("situated_checks", None)
