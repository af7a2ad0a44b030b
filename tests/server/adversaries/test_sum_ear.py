"""Secure aggregation, idealised: of a round, the server hears the mean and nothing else."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from flwr.app import Message
from torch.nn import functional

from attacks.observation import Kind
from clients.app import app
from fedsim.config import Experiment, parse_experiment
from fedsim.engines.in_process import InProcessGrid
from fedsim.engines.local import CLIENT_FAILED, FIRST_NODE, failure
from fedsim.files import digest, read_tensors
from fedsim.records import EVERYBODY, RunDirectory
from fedsim.seeds import stream
from fedsim.setup import draw_clients, task_of
from fedsim.truth import unseal
from fedsim.wire import shared_parameters
from fedsim.wrapped_grid import WrappedGrid
from server.rounds import target, train

STEP = 'algorithm = "fedavg", max_local_steps = 1, learning_rate = 0.5'
TRAINING = {
    "gradient": "",
    "weights": STEP + ', returns = "weights", momentum = 0.9',
    "delta": STEP + ', returns = "delta"',
}


def experiment(training: str = "", adversary: str = "", more: str = "") -> Experiment:
    return parse_experiment(
        f"""
        name = "tiny"
        rounds = 2
        partition = {{ clients = 3, name = "linear" }}
        model = {{ name = "mlp", options = {{ hidden = [6] }} }}
        training = {{ batch_size = 4{training and ", "}{training} }}
        adversary = {{ threat = "aggregate-server"{adversary and ", "}{adversary} }}
        {more}
        """
    )


class Failing(WrappedGrid):
    """A grid in which client 1 fails."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        messages = list(messages)
        replies = self.inner.send_and_receive(messages, timeout=timeout)
        return [
            failure(message, CLIENT_FAILED, "boom")
            if message.metadata.dst_node_id == FIRST_NODE + 1
            and message.metadata.message_type == "train"
            else reply
            for message, reply in zip(messages, replies, strict=True)
        ]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """An empty run directory."""
    return RunDirectory.create(tmp_path, "tiny")


@pytest.mark.parametrize("sends", TRAINING)
def test_what_is_heard_is_the_gradient_of_the_mean_loss_over_everybodys_examples(
    run: RunDirectory, sends: str
) -> None:
    tiny = experiment(TRAINING[sends])
    train(tiny, run, InProcessGrid(tiny, run, app))

    assert [one["id"] for one in run.observation_records()] == [
        "round-00001-all-to-server",
        "round-00002-all-to-server",
    ]
    model = task_of(tiny).build_model(stream(0, "model"))
    for record in run.observation_records():
        assert record["members"] == ["client-0", "client-1", "client-2"]
        seen = run.read_observation(record["id"])
        sealed = unseal(run, seen.round, EVERYBODY)
        assert sealed is not None
        assert seen.kind is Kind.AGGREGATE
        assert seen.num_examples == len(sealed[0]) == len(sealed[1]) == 12
        assert seen.weights is not None
        model.load_state_dict(dict(seen.weights))
        loss = functional.cross_entropy(model(sealed[0]), sealed[1])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        for name, gradient in zip(shared_parameters(model), gradients, strict=True):
            torch.testing.assert_close(seen.update[name], gradient, rtol=1e-3, atol=1e-6)


def test_hearing_the_mean_alone_changes_nothing_that_is_learned(tmp_path: Path) -> None:
    learned = []
    for threat in ("aggregate-server", "malicious-aggregate-server", "curious-server"):
        run = RunDirectory.create(tmp_path, threat)
        tiny = experiment()
        scope = tiny.adversary.model_copy(update={"threat": threat})
        tiny = tiny.model_copy(update={"adversary": scope})
        train(tiny, run, InProcessGrid(tiny, run, app))
        learned.append(digest(read_tensors(run.checkpoint)[0]))

    assert len(set(learned)) == 1


def test_a_client_that_fails_is_in_neither_the_mean_nor_the_truth(run: RunDirectory) -> None:
    tiny = experiment(adversary="rounds = [2]")
    train(tiny, run, Failing(InProcessGrid(tiny, run, app)))

    [record] = run.observation_records()
    sealed = unseal(run, 2, EVERYBODY)

    assert (record["round"], record["members"]) == (2, ["client-0", "client-2"])
    assert record["num_examples"] == 8
    assert sealed is not None
    assert len(sealed[0]) == 8
    assert unseal(run, 1, EVERYBODY) is None


def test_an_oracle_is_told_the_labels_of_everybody_in_the_order_of_the_truth(
    run: RunDirectory,
) -> None:
    tiny = experiment(adversary='rounds = [1], grants = ["labels"]')
    train(tiny, run, InProcessGrid(tiny, run, app))

    told, sealed = run.read_oracle_labels(1, EVERYBODY), unseal(run, 1, EVERYBODY)

    assert told is not None
    assert sealed is not None
    assert torch.equal(told, sealed[1])


def active(adversary: str, more: str = "") -> Experiment:
    tiny = experiment(more=more)
    text = tiny.to_toml().replace(
        'threat = "aggregate-server"', 'threat = "malicious-aggregate-server"'
    )
    scope = parse_experiment(f'name = "x"\nadversary = {{ {adversary} }}').adversary
    tiny = parse_experiment(text)
    update = {"rounds": scope.rounds, "victims": scope.victims}
    return tiny.model_copy(update={"adversary": tiny.adversary.model_copy(update=update)})


def test_an_active_server_names_the_mean_after_the_client_that_it_attacks(
    run: RunDirectory,
) -> None:
    tiny = active("victims = [2, 1]")
    train(tiny, run, Failing(InProcessGrid(tiny, run, app)))

    assert [target(tiny, number) for number in (1, 2, 3)] == [1, 2, 1]
    [record] = run.observation_records()  # client 1, attacked in round 1, failed
    assert record["id"] == "round-00002-client-2-to-server"
    assert record["kind"] == "aggregate"
    assert record["members"] == ["client-0", "client-2"]
    sealed = unseal(run, 2, "client-2")
    assert sealed is not None
    assert len(sealed[0]) == 4


def test_victims_take_turns_and_one_that_was_not_drawn_leaves_its_turn_to_the_next() -> None:
    some = active("rounds = [2, 4, 6, 8]", "server = { clients_per_round = 1 }")

    for number in (2, 4, 6, 8):
        assert target(some, number) == draw_clients(some, number)[0]
    assert target(active("victims = []"), 1) is None
    every = active("rounds = [2, 4, 6, 8]")
    assert [target(every, number) for number in (2, 4, 6, 8)] == [0, 1, 2, 0]
