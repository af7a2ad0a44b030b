"""Clients as function calls."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from flwr.app import Message, RecordDict

from clients.app import app
from fedsim.config import Experiment, parse_experiment
from fedsim.engines.in_process import InProcess, InProcessGrid
from fedsim.engines.local import CLIENT_FAILED, FIRST_NODE
from fedsim.errors import RunFailed
from fedsim.files import digest, read_tensors, replace_bytes
from fedsim.records import RunDirectory

TEXT = """
name = "tiny"
rounds = 2
partition = { clients = 3 }
"""
MODEL = 'model = { name = "mlp", options = { hidden = [6] } }\n'


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """An empty run directory."""
    return RunDirectory.create(tmp_path, "tiny")


def tiny(text: str = MODEL) -> Experiment:
    return parse_experiment(TEXT + text)


def final(run: RunDirectory) -> tuple[str, str]:
    return digest(read_tensors(run.checkpoint)[0]), run.views_sha256()


def test_a_run_is_trained_and_leaves_the_process_as_it_was(run: RunDirectory) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        InProcess(tiny(), run).train()
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)

    assert [record["round"] for record in run.rounds()] == [0, 1, 2]
    assert len(run.observation_records()) == 6


def test_two_runs_of_one_experiment_are_equal_to_the_bit(tmp_path: Path) -> None:
    runs = [RunDirectory.create(tmp_path, "tiny") for _ in range(3)]

    InProcess(tiny(), runs[0]).train()
    torch.rand(7)
    InProcess(tiny(), runs[1]).train()
    InProcess(tiny().model_copy(update={"seed": 1}), runs[2]).train()

    assert final(runs[0]) == final(runs[1])
    assert final(runs[0])[0] != final(runs[2])[0]
    assert final(runs[0])[1] != final(runs[2])[1]


def test_nodes_answer_in_the_order_of_the_messages_and_pushed_replies_wait(
    run: RunDirectory,
) -> None:
    grid = InProcessGrid(tiny(), run, app)
    nodes = [FIRST_NODE + 2, FIRST_NODE]
    messages = [grid.create_message(RecordDict(), "query", node, "1") for node in nodes]

    replies = list(grid.send_and_receive(messages))
    ids = list(grid.push_messages(messages))

    assert [reply.metadata.src_node_id for reply in replies] == nodes
    second = list(grid.pull_messages(ids[1:]))
    assert [reply.metadata.src_node_id for reply in second] == nodes[1:]
    assert list(grid.pull_messages(["message-99"])) == []
    assert list(grid.get_node_ids()) == [FIRST_NODE, FIRST_NODE + 1, FIRST_NODE + 2]


def test_a_message_of_a_kind_that_no_client_knows_is_answered_with_an_error(
    run: RunDirectory,
) -> None:
    grid = InProcessGrid(tiny(), run, app)

    [reply] = grid.send_and_receive(
        [grid.create_message(RecordDict(), "train.backwards", FIRST_NODE, "1")]
    )

    assert isinstance(reply, Message)
    assert reply.error.code == CLIENT_FAILED
    assert "No train function registered with name 'backwards'" in str(reply.error.reason)


MODELS = """
import torch
from torch import nn


class Sick(nn.Module):
    '''A network that does one wrong thing while it trains.'''

    def __init__(self, wrong):
        super().__init__()
        self.wrong = wrong
        self.linear = nn.Linear(64, 10)

    def forward(self, inputs):
        outputs = self.linear(inputs.flatten(1))
        if self.training and self.wrong == "raise":
            raise ValueError("boom")
        if self.training and self.wrong == "nan":
            return outputs * float("nan")
        return outputs


def sick(input_shape, num_classes, *, rng, wrong: str):
    return Sick(wrong)
"""


@pytest.fixture
def sick_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module of models of the user's own."""
    (tmp_path / "sick_models.py").write_text(MODELS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("sick_models", None)


@pytest.mark.usefixtures("sick_models")
@pytest.mark.parametrize(
    ("wrong", "kind", "said"),
    [
        ("raise", "client-failed", "round 1, client 0: ValueError: boom"),
        (
            "nan",
            "update-rejected",
            "round 1, client 0: metric 'train_loss' must be a finite number, got nan",
        ),
    ],
)
def test_clients_that_raise_or_return_nan_cost_their_updates_and_the_run_goes_on(
    run: RunDirectory, wrong: str, kind: str, said: str
) -> None:
    model = f'model = {{ name = "sick_models:sick", options = {{ wrong = "{wrong}" }} }}\n'
    replace_bytes(run.config, b"")  # as if checked before: the check would refuse such a model

    InProcess(tiny(model), run).train()

    assert [record["rejected"] for record in run.rounds()[1:]] == [3, 3]
    assert run.observation_records() == []
    events = run.events()
    assert (events[0]["kind"], events[0]["message"]) == (kind, said)
    assert {event["kind"] for event in events} == {kind, "round-without-update"}


def test_a_disk_that_fills_up_ends_the_run_and_what_was_recorded_can_be_gone_on_with(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = RunDirectory.create(tmp_path, "whole")
    InProcess(tiny(), whole).train()
    write = Path.write_bytes
    written: list[str] = []

    def fill_up(path: Path, content: bytes) -> int:
        written.append(path.name)
        if "round-00002-client-1" in path.name and path.parent.name == "observations":
            raise OSError(28, "No space left on device")
        return write(path, content)

    with monkeypatch.context() as disk:
        disk.setattr(Path, "write_bytes", fill_up)
        with pytest.raises((OSError, RunFailed), match="No space left"):
            InProcess(tiny(), run).train()

    assert any("round-00002" in name for name in written)
    assert [record["round"] for record in run.rounds()] == [0, 1]
    run.repair()
    InProcess(tiny(), run).train()
    assert final(run) == final(whole)
