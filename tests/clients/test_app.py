"""The ClientApp, spoken to as a server speaks to it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from torch import Tensor
from torch.nn import functional

from clients.app import app
from clients.participant import participant
from fedsim.config import Experiment, parse_experiment
from fedsim.engines.in_process import InProcessGrid
from fedsim.engines.local import FIRST_NODE
from fedsim.records import RunDirectory
from fedsim.seeds import stream
from fedsim.setup import task_of
from fedsim.tasks import evaluate
from fedsim.truth import unseal
from fedsim.wire import (
    ARRAYS,
    CONFIG,
    METRICS,
    load_state,
    shared_parameters,
    shared_state,
    to_record,
    to_tensors,
)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """An empty run directory."""
    return RunDirectory.create(tmp_path, "tiny")


def experiment(text: str = "") -> Experiment:
    model = '[model]\nname = "mlp"\noptions = { hidden = [4] }'
    return parse_experiment(f'name = "tiny"\n[partition]\nclients = 3\n{model}\n{text}')


def ask(
    tiny: Experiment, run: RunDirectory, kind: str, client: int = 1, proximal_mu: float = 0.0
) -> Message:
    """Send one client the initial weights and return its reply."""
    grid = InProcessGrid(tiny, run, app)
    config = ConfigRecord({"server-round": 1, "proximal-mu": proximal_mu})
    content = RecordDict({ARRAYS: weights(tiny), CONFIG: config})
    message = grid.create_message(content, kind, FIRST_NODE + client, "1")
    [reply] = grid.send_and_receive([message])
    return reply


def weights(tiny: Experiment) -> ArrayRecord:
    return to_record(shared_state(task_of(tiny).build_model(stream(tiny.seed, "model"))))


def test_a_node_says_which_client_it_plays(run: RunDirectory) -> None:
    reply = ask(experiment(), run, "query", client=2)

    assert reply.content.config_records[CONFIG]["partition-id"] == 2


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_truth_is_the_batch_behind_the_gradient(run: RunDirectory, batch_size: int) -> None:
    tiny = experiment(f"[training]\nbatch_size = {batch_size}")

    reply = ask(tiny, run, "train")

    sealed = unseal(run, 1, "client-1")
    assert sealed is not None
    inputs, labels = sealed[0].clone(), sealed[1]  # a copy is aligned in memory as the client's
    model = task_of(tiny).build_model(stream(tiny.seed, "model"))
    loss = functional.cross_entropy(model(inputs), labels)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    heard = to_tensors(reply.content.array_records[ARRAYS])
    for name, gradient in zip(shared_parameters(model), gradients, strict=True):
        assert torch.equal(heard[name], gradient), name
    metrics = reply.content.metric_records[METRICS]
    assert metrics == {"num-examples": batch_size, "train_loss": loss.item()}


def test_the_truth_of_fedavg_is_every_example_that_was_used(run: RunDirectory) -> None:
    tiny = experiment('[training]\nalgorithm = "fedavg"\nbatch_size = 4\nmax_local_steps = 3')

    reply = ask(tiny, run, "train")

    sealed = unseal(run, 1, "client-1")
    assert sealed is not None
    assert len(sealed[0]) == len(sealed[1]) == 12
    assert reply.content.metric_records[METRICS]["num-examples"] == 12


@pytest.mark.parametrize(
    "scope", ["rounds = [2]\n", "victims = [0, 2]\n"], ids=["other rounds", "other victims"]
)
def test_what_nobody_hears_is_not_sealed(run: RunDirectory, scope: str) -> None:
    ask(experiment(f'[adversary]\ngrants = ["labels"]\n{scope}'), run, "train")

    assert list((run.root / "truth").iterdir()) == []
    assert not (run.root / "oracle").exists()


def test_an_oracle_gets_the_labels_only_when_they_are_granted(run: RunDirectory) -> None:
    ask(experiment(), run, "train")
    assert run.read_oracle_labels(1, "client-1") is None

    ask(experiment('[adversary]\ngrants = ["labels"]'), run, "train")
    sealed, labels = unseal(run, 1, "client-1"), run.read_oracle_labels(1, "client-1")
    assert sealed is not None
    assert labels is not None
    assert torch.equal(labels, sealed[1])


def test_the_pull_of_fedprox_arrives_by_message(run: RunDirectory) -> None:
    tiny = experiment('[training]\nalgorithm = "fedavg"\nbatch_size = 4\nmax_local_steps = 2')

    def trained(mu: float) -> Tensor:
        reply = ask(tiny, run, "train", proximal_mu=mu)
        return to_tensors(reply.content.array_records[ARRAYS])["linear.weight"]

    assert torch.equal(trained(0.0), trained(0.0))
    assert not torch.equal(trained(0.0), trained(0.5))


def test_a_client_evaluates_the_weights_received_on_its_own_data(run: RunDirectory) -> None:
    tiny = experiment()

    reply = ask(tiny, run, "evaluate")

    me = participant(tiny.model_dump_json(), 1)
    load_state(me.model, to_tensors(weights(tiny)))
    accuracy, loss = evaluate(me.model, me.inputs, me.labels)
    assert reply.content.metric_records[METRICS] == {
        "num-examples": len(me.inputs),
        "accuracy": accuracy,
        "loss": loss,
    }


def test_a_client_that_raises_answers_with_an_error(run: RunDirectory) -> None:
    tiny = experiment()
    grid = InProcessGrid(tiny, run, app)
    message = grid.create_message(RecordDict(), "train", FIRST_NODE, "1")

    [reply] = grid.send_and_receive([message])

    assert reply.has_error()
    assert str(reply.error.reason).startswith("KeyError: ")
    assert reply.metadata.src_node_id == FIRST_NODE


Spoil = Callable[[ArrayRecord], object]


def misnamed(record: ArrayRecord) -> None:
    record["linear.weights"] = record.pop("linear.weight")


def in_float64(record: ArrayRecord) -> None:
    record.update(to_record({name: one.double() for name, one in to_tensors(record).items()}))


def infinite(record: ArrayRecord) -> None:
    record.update(to_record({"linear.bias": torch.full((10,), -torch.inf)}))


def cut(record: ArrayRecord) -> None:
    whole = record["linear.weight"]
    record["linear.weight"] = Array(whole.dtype, whole.shape, whole.stype, whole.data[:-4])


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda record: record.pop("linear.bias"), "what was received lacks 'linear.bias'"),
        (misnamed, "what was received lacks 'linear.weight'"),
        (in_float64, "must be torch.float32, got torch.float64"),
        (infinite, "'linear.bias' holds NaN or infinity"),
        (cut, "'linear.weight' cannot be decoded"),
    ],
    ids=["missing", "misnamed", "float64", "infinity", "truncated"],
)
def test_a_client_does_not_train_on_weights_that_came_damaged(
    run: RunDirectory, kind: str, spoil: Spoil, said: str
) -> None:
    tiny = experiment()
    damaged = weights(tiny)
    spoil(damaged)
    grid = InProcessGrid(tiny, run, app)
    content = RecordDict({ARRAYS: damaged, CONFIG: ConfigRecord({"server-round": 1})})

    [reply] = grid.send_and_receive([grid.create_message(content, kind, FIRST_NODE, "1")])

    assert reply.has_error()
    assert said in str(reply.error.reason)
    assert not any((run.root / "truth").iterdir())
