"""The rounds of a federation: drawn, trained, recorded, and gone on with after an interruption."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from flwr.app import Message
from flwr.serverapp import Grid

from clients.app import app
from fedsim.config import Experiment, PartitionConfig, parse_experiment
from fedsim.engines.in_process import InProcessGrid
from fedsim.engines.local import CLIENT_FAILED, FIRST_NODE, failure
from fedsim.errors import RunFailed
from fedsim.files import digest, read_tensors
from fedsim.records import RunDirectory
from fedsim.seeds import stream
from fedsim.setup import draw_clients, task_of
from fedsim.tasks import evaluate, uninformed_loss
from fedsim.wire import ARRAYS, to_record, to_tensors
from fedsim.wrapped_grid import WrappedGrid
from server import checkpoint
from server.rounds import find_clients, settled, train
from server.strategies import build_strategy


def experiment(text: str = "", *, algorithm: str = "fedsgd", num_rounds: int = 3) -> Experiment:
    return parse_experiment(
        f"""
        name = "tiny"
        rounds = {num_rounds}
        partition = {{ clients = 3 }}
        model = {{ name = "mlp", options = {{ hidden = [6] }} }}
        training = {{ algorithm = "{algorithm}", batch_size = 4, max_local_steps = 2 }}
        {text}
        """
    )


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """An empty run directory."""
    return RunDirectory.create(tmp_path, "tiny")


def grid_of(tiny: Experiment, run: RunDirectory) -> InProcessGrid:
    return InProcessGrid(tiny, run, app)


def final(run: RunDirectory) -> tuple[str, str]:
    """What was learned and what was heard, as digests."""
    return digest(read_tensors(run.checkpoint)[0]), run.views_sha256()


Change = Callable[[int, int, Message, Message], Message | None]
"""(round, client, message, reply) -> the reply that arrives, if any."""


class Changed(WrappedGrid):
    """A grid whose training replies go through `change`."""

    def __init__(self, inner: Grid, change: Change) -> None:
        super().__init__(inner)
        self.change = change

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        messages = list(messages)
        replies = list(self.inner.send_and_receive(messages, timeout=timeout))
        if not messages or messages[0].metadata.message_type != "train":
            return replies
        server_round = messages[0].content.config_records["config"]["server-round"]
        assert isinstance(server_round, int)
        arrived = (
            self.change(server_round, message.metadata.dst_node_id - FIRST_NODE, message, reply)
            for message, reply in zip(messages, replies, strict=True)
        )
        return [reply for reply in arrived if reply is not None]


# one run


def test_a_run_records_its_start_and_every_round(run: RunDirectory) -> None:
    tiny = experiment()

    train(tiny, run, grid_of(tiny, run))

    records = run.rounds()
    assert [record["round"] for record in records] == [0, 1, 2, 3]
    assert set(records[0]) == {"round", "accuracy", "loss"}
    assert set(records[1]) == {
        *("round", "accuracy", "loss", "train_loss", "clients", "replies", "rejected"),
        *("bytes_up", "bytes_down", "seconds"),
    }
    assert records[1]["clients"] == [0, 1, 2]
    assert (records[1]["replies"], records[1]["rejected"]) == (3, 0)
    assert run.events() == []
    metadata = read_tensors(run.checkpoint)[1]
    assert metadata["round"] == "3"


def test_the_accuracy_recorded_is_that_of_the_weights_on_the_test_split(run: RunDirectory) -> None:
    tiny = experiment(num_rounds=1)

    train(tiny, run, grid_of(tiny, run))

    task = task_of(tiny)
    model = task.build_model(stream(0, "model"))
    test = (task.data.test_inputs, task.data.test_labels)
    before = evaluate(model, *test)
    restored = checkpoint.restore(run, build_strategy(tiny))
    assert restored is not None
    model.load_state_dict(to_tensors(restored[1]))
    after = evaluate(model, *test)
    found = [(record["accuracy"], record["loss"]) for record in run.rounds()]
    assert found == [before, after]


def test_training_lowers_the_loss(run: RunDirectory) -> None:
    tiny = experiment(
        "adversary = { rounds = [1] }\nserver = { evaluate_every = 40 }", num_rounds=40
    )

    train(tiny, run, grid_of(tiny, run))

    records = run.rounds()
    assert records[-1]["loss"] < records[0]["loss"]
    assert records[-1]["accuracy"] > records[0]["accuracy"]


def test_evaluation_is_every_so_many_rounds_and_after_the_last(run: RunDirectory) -> None:
    tiny = experiment("server = { evaluate_every = 2 }", num_rounds=5)

    train(tiny, run, grid_of(tiny, run))

    assert [r["round"] for r in run.rounds() if "accuracy" in r] == [0, 2, 4, 5]


def test_clients_evaluate_where_they_are_asked_to(run: RunDirectory) -> None:
    tiny = experiment("server = { evaluate_clients = true, clients_per_round = 2 }")

    train(tiny, run, grid_of(tiny, run))

    assert all(0 <= record["client_accuracy"] <= 1 for record in run.rounds()[1:])
    assert all(record["client_loss"] > 0 for record in run.rounds()[1:])


def test_drawn_clients_alone_train_and_the_draw_is_seeded(run: RunDirectory) -> None:
    tiny = experiment("server = { clients_per_round = 2 }", num_rounds=6)

    train(tiny, run, grid_of(tiny, run))

    trained = [record["clients"] for record in run.rounds()[1:]]
    assert trained == [draw_clients(tiny, number) for number in range(1, 7)]
    assert all(len(set(clients)) == 2 and clients == sorted(clients) for clients in trained)
    assert len({tuple(clients) for clients in trained}) > 1
    assert draw_clients(experiment(), 1) == [0, 1, 2]


# faults


def raises(_: int, __: int, message: Message, ___: Message) -> Message:
    return failure(message, CLIENT_FAILED, "ValueError: boom")


def poisons(_: int, __: int, ___: Message, reply: Message) -> Message:
    """Put a NaN into the first array."""
    tensors = to_tensors(reply.content.array_records[ARRAYS])
    next(iter(tensors.values())).view(-1)[0] = math.nan
    reply.content.array_records[ARRAYS].update(to_record(tensors))
    return reply


def swallows(*_: object) -> None:
    return None


@pytest.mark.parametrize(
    ("spoil", "kind", "said"),
    [
        (raises, "client-failed", "ValueError: boom"),
        (poisons, "update-rejected", "'linear1.weight' holds NaN or infinity"),
        (swallows, "no-reply", "no reply within 600 s"),
    ],
)
def test_a_client_that_fails_costs_its_own_update_and_is_recorded(
    run: RunDirectory, spoil: Change, kind: str, said: str
) -> None:
    tiny = experiment()

    def change(server_round: int, client: int, message: Message, reply: Message) -> Message | None:
        spoiled = (server_round, client) == (2, 1)
        return spoil(server_round, client, message, reply) if spoiled else reply

    train(tiny, run, Changed(grid_of(tiny, run), change))

    [event] = run.events()
    assert (event["kind"], event["message"]) == (kind, f"round 2, client 1: {said}")
    assert (event["round"], event["client"]) == (2, 1)
    assert [record["clients"] for record in run.rounds()[1:]] == [[0, 1, 2], [0, 2], [0, 1, 2]]
    heard = [(one["round"], one["sender"]) for one in run.observation_records()]
    assert (2, "client-1") not in heard
    assert len(heard) == 8


def test_a_round_in_which_everybody_fails_leaves_the_weights_as_they_were(
    run: RunDirectory,
) -> None:
    tiny = experiment(num_rounds=2)

    def change(server_round: int, client: int, message: Message, reply: Message) -> Message:
        return reply if server_round == 1 else raises(server_round, client, message, reply)

    train(tiny, run, Changed(grid_of(tiny, run), change))

    _, first, second = run.rounds()
    assert (second["accuracy"], second["loss"]) == (first["accuracy"], first["loss"])
    assert (second["clients"], second["rejected"], second["train_loss"]) == ([], 3, None)
    events = [event["message"] for event in run.events() if event["kind"] == "round-without-update"]
    assert events == [
        "round 2: no update came of 0 usable replies from 3 clients; the weights stay as they were"
    ]


def test_a_strategy_that_makes_no_update_of_sound_replies_is_recorded_too(
    run: RunDirectory,
) -> None:
    options = "options = { num_malicious_nodes = 1 }"  # Bulyan then needs 7 replies
    tiny = experiment(f'server = {{ strategy = "bulyan", {options} }}', num_rounds=1)

    train(tiny, run, grid_of(tiny, run))

    [event] = run.events()
    assert "no update came of 3 usable replies from 3 clients" in event["message"]


def test_training_that_explodes_is_recorded_and_not_aggregated(run: RunDirectory) -> None:
    text = 'name = "x"\nrounds = 2\npartition = { clients = 2 }\nmodel = { name = "mlp" }\n'
    tiny = parse_experiment(text + "training = { learning_rate = 1e38 }")

    train(tiny, run, grid_of(tiny, run))

    assert run.rounds()[1]["loss"] is None  # finite weights, of which no finite loss comes
    said = "round 1: the loss on the test split is no finite number, it began at 2."
    assert run.events()[0]["message"].startswith(said)
    assert [event["kind"] for event in run.events()] == [
        "training-diverges",
        "update-rejected",
        "update-rejected",
        "round-without-update",
    ]


# finding clients


class Slow(WrappedGrid):
    """A grid whose nodes appear one per look."""

    looks = 0

    def get_node_ids(self) -> Iterable[int]:
        self.looks += 1
        return list(self.inner.get_node_ids())[: self.looks]


def test_clients_are_found_by_what_they_say_as_they_appear(run: RunDirectory) -> None:
    tiny = experiment()

    found = find_clients(Slow(grid_of(tiny, run)), tiny)

    assert found == {client: FIRST_NODE + client for client in range(3)}
    assert list(found) == [0, 1, 2]


def test_a_grid_that_knows_its_clients_is_not_asked(run: RunDirectory) -> None:
    many = experiment().model_copy(update={"partition": PartitionConfig(clients=100_000)})
    grid = grid_of(many, run)

    found = find_clients(grid, many)

    assert len(found) == 100_000
    assert list(found.items()) == list(enumerate(grid.get_node_ids()))
    assert not grid.contexts  # no client has been made


class Mute(WrappedGrid):
    """A grid whose nodes never answer."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return []


def test_a_federation_that_does_not_gather_in_time_ends_the_run(run: RunDirectory) -> None:
    tiny = experiment("server = { reply_timeout_s = 0.05 }")

    said = r"0 of 3 clients answered within 0\.05 s \(server\.reply_timeout_s\)"
    with pytest.raises(RunFailed, match=said):
        find_clients(Mute(grid_of(tiny, run)), tiny)


class Broken(WrappedGrid):
    """A grid whose nodes answer with an error."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return [failure(message, CLIENT_FAILED, "no data") for message in messages]


def test_a_client_that_fails_at_the_start_ends_the_run(run: RunDirectory) -> None:
    tiny = experiment()

    with pytest.raises(RunFailed, match="a client failed at the start: no data"):
        find_clients(Broken(grid_of(tiny, run)), tiny)


# going on


class Interrupted(Exception):
    """What ends a run in the middle."""


def stop_after(last: int) -> Change:
    def change(server_round: int, _: int, __: Message, reply: Message) -> Message:
        if server_round > last:
            raise Interrupted
        return reply

    return change


SERVERS = {
    "fedsgd with momentum": ("fedsgd", "server = { options = { server_momentum = 0.9 } }"),
    "fedavgm": (
        "fedavg",
        'server = { strategy = "fedavgm", options = { server_momentum = 0.9 } }',
    ),
    "fedavgm on gradients": (
        "fedsgd",
        'server = { strategy = "fedavgm", options = { server_momentum = 0.9 } }',
    ),
    "fedadam": ("fedavg", 'server = { strategy = "fedadam" }'),
    "fedyogi": ("fedavg", 'server = { strategy = "fedyogi" }'),
    "fedadagrad": ("fedavg", 'server = { strategy = "fedadagrad" }'),
    "qfedavg": ("fedavg", 'server = { strategy = "qfedavg" }'),
    "some clients": ("fedavg", "server = { clients_per_round = 2 }"),
}


@pytest.mark.parametrize(("algorithm", "server"), SERVERS.values(), ids=SERVERS)
def test_a_run_that_was_interrupted_ends_with_the_bits_of_one_that_was_not(
    tmp_path: Path, algorithm: str, server: str
) -> None:
    tiny = experiment(server, algorithm=algorithm, num_rounds=4)
    whole = RunDirectory.create(tmp_path, "whole")
    train(tiny, whole, grid_of(tiny, whole))

    parts = RunDirectory.create(tmp_path, "parts")
    with pytest.raises(Interrupted):
        train(tiny, parts, Changed(grid_of(tiny, parts), stop_after(2)))
    assert len(parts.rounds()) == 3
    train(tiny, parts, grid_of(tiny, parts))

    assert final(parts) == final(whole)
    without = [{k: v for k, v in r.items() if k != "seconds"} for r in whole.rounds()]
    assert [{k: v for k, v in r.items() if k != "seconds"} for r in parts.rounds()] == without


@pytest.mark.parametrize("step", ["save", "append_round"])
def test_a_run_that_was_killed_between_two_records_loses_no_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    tiny = experiment(num_rounds=3)
    whole = RunDirectory.create(tmp_path, "whole")
    train(tiny, whole, grid_of(tiny, whole))

    parts = RunDirectory.create(tmp_path, "parts")
    owner = checkpoint if step == "save" else RunDirectory
    real = getattr(owner, step)

    def killed(first: object, second: object, *more: object) -> None:
        if second == 2 or (isinstance(second, dict) and second["round"] == 2):
            raise Interrupted
        real(first, second, *more)

    with monkeypatch.context() as moment:
        moment.setattr(owner, step, killed)
        with pytest.raises(Interrupted):
            train(tiny, parts, grid_of(tiny, parts))
    train(tiny, parts, grid_of(tiny, parts))

    assert [record["round"] for record in parts.rounds()] == [0, 1, 2, 3]
    assert final(parts) == final(whole)


def test_a_finished_run_is_not_trained_again(run: RunDirectory) -> None:
    tiny = experiment(num_rounds=1)
    train(tiny, run, grid_of(tiny, run))
    before, log = final(run), run.rounds()

    train(tiny, run, grid_of(tiny, run))

    assert final(run) == before
    assert run.rounds() == log


def test_training_settles_once_so_many_evaluations_brought_no_better_accuracy() -> None:
    def rounds(*accuracies: float | None) -> list[dict[str, float | None]]:
        return [{"round": n, "accuracy": value, "loss": 1.0} for n, value in enumerate(accuracies)]

    assert not settled(rounds(0.1, 0.5, 0.5), 2, 2.3)
    assert settled(rounds(0.1, 0.5, None, 0.5, 0.4), 2, 2.3)
    assert not settled(rounds(0.1, 0.5, 0.4, 0.6), 2, 2.3)
    assert not settled([], 1, 2.3)


def test_training_does_not_settle_before_something_was_learned() -> None:
    # what a LeNet under rounding to int8 did in its first 180 rounds: 0.167 was chance
    plateau = [(0.1, 2.87), (0.167, 2.30), (0.1, 2.30), (0.117, 2.29), (0.1, 2.27), (0.1, None)]
    learning = [*plateau, (0.3, 2.1), (0.6, 1.2)]

    def rounds(pairs: list[tuple[float, float | None]]) -> list[dict[str, float | None]]:
        return [{"accuracy": accuracy, "loss": loss} for accuracy, loss in pairs]

    uninformed = uninformed_loss(torch.arange(10).repeat(36))
    assert uninformed == pytest.approx(math.log(10))
    assert uninformed_loss(torch.tensor([0, 0, 0, 1])) == pytest.approx(0.5623, abs=1e-4)
    assert not settled(rounds(plateau), 3, uninformed)
    assert not settled(rounds([*learning, (0.6, 1.2), (0.6, 1.2)]), 3, uninformed)
    assert settled(rounds([*learning, *[(0.6, 1.2)] * 3]), 3, uninformed)
    # a lucky guess before is nothing that is to be beaten
    assert not settled(rounds([*plateau, (0.15, 2.1), (0.16, 2.1)]), 1, uninformed)
    assert settled(rounds([*plateau, (0.15, 2.1), (0.15, 2.1)]), 1, uninformed)


def test_training_ends_early_where_it_has_settled_and_a_resumed_run_leaves_it_so(
    tmp_path: Path,
) -> None:
    text = """
name = "settles"
rounds = 400
training.batch_size = 32
training.learning_rate = 1.0
server = { evaluate_every = 4, patience = 2 }
model = { name = "mlp", options = { hidden = [8] } }
partition.clients = 2
"""
    experiment = parse_experiment(text)
    run = RunDirectory.create(tmp_path, "settles")

    for _ in range(2):
        train(experiment, run, InProcessGrid(experiment, run, app))
        accuracies = [one["accuracy"] for one in run.rounds() if one.get("accuracy") is not None]
        assert len(run.rounds()) - 1 < 400
        assert max(accuracies) == accuracies[-3] > 0.3


def test_a_training_that_never_learns_is_not_said_to_have_settled(tmp_path: Path) -> None:
    # a step this small changes no prediction, so the first evaluation stays the best
    tiny = experiment("server.patience = 1", num_rounds=4)
    still = parse_experiment(tiny.to_toml(), overrides=["training.learning_rate=1e-12"])
    run = RunDirectory.create(tmp_path, "still")

    train(still, run, InProcessGrid(still, run, app))

    assert run.rounds()[-1]["round"] == 4
