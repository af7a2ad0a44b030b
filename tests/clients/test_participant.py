"""A client and its share of the data."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord

from clients.participant import Workplace, participant
from fedsim.config import parse_experiment
from fedsim.setup import shares_of, task_of
from fedsim.wire import BadReply

EXPERIMENT = parse_experiment(
    'name = "tiny"\n[partition]\nclients = 3\n[model]\nname = "mlp"\noptions = { hidden = [4] }'
)
TEXT = EXPERIMENT.model_dump_json()


def test_a_client_holds_its_own_share_and_nobody_elses() -> None:
    task = task_of(EXPERIMENT)

    for number, share in enumerate(shares_of(EXPERIMENT, task)):
        me = participant(TEXT, number)
        assert me.name == f"client-{number}"
        assert torch.equal(me.inputs, task.data.train_inputs[share])
        assert torch.equal(me.labels, task.data.train_labels[share])


def test_the_clients_of_a_process_load_the_data_once() -> None:
    assert participant(TEXT, 0).task is participant(TEXT, 2).task


def test_an_empty_model_is_refused_by_a_client_that_has_received_none_before() -> None:
    with pytest.raises(BadReply):
        Workplace(TEXT).load(ArrayRecord())


COUNTING = """
import torch
from torch import nn


def cumulative(input_shape, num_classes, *, rng):
    '''Normalisation that weighs a batch by how many came before.'''
    size = input_shape[0] * input_shape[1] * input_shape[2]
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(size, momentum=None), nn.Linear(size, 10))
"""


@pytest.fixture
def counting_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a model of the user's own that counts batches."""
    (tmp_path / "counting.py").write_text(COUNTING)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "counting:cumulative"
    sys.modules.pop("counting", None)


def test_counters_start_anew_whoever_trained_with_the_model_before(counting_model: str) -> None:
    text = parse_experiment(f'name = "tiny"\n[model]\nname = "{counting_model}"').model_dump_json()
    first = participant(text, 0).model
    first.train()(torch.rand(2, 1, 8, 8))
    assert int(first.state_dict()["1.num_batches_tracked"]) == 1

    second = participant(text, 1).model

    assert int(second.state_dict()["1.num_batches_tracked"]) == 0
