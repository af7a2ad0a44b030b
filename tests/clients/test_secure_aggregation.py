"""A client in secure aggregation, spoken to as a server speaks to it."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from clients.app import app
from fedsim.config import Experiment, parse_experiment
from fedsim.engines.in_process import InProcessGrid
from fedsim.engines.local import FIRST_NODE
from fedsim.records import RunDirectory
from fedsim.secure_sum import messages as wire
from fedsim.secure_sum.field import Elements, Layout
from fedsim.secure_sum.keys import PublicKeys
from fedsim.seeds import stream
from fedsim.setup import task_of
from fedsim.wire import ARRAYS, CONFIG, shared_parameters, shared_state, to_record


def experiment(options: str = "") -> Experiment:
    return parse_experiment(
        f"""
        name = "tiny"
        partition = {{ clients = 3 }}
        model = {{ name = "mlp", options = {{ hidden = [4] }} }}
        training = {{ batch_size = 4 }}
        [[defenses]]
        name = "secure-aggregation"
        options = {{ threshold = 2{options} }}
        """
    )


def reason(reply: Message) -> str:
    assert reply.has_error()
    return reply.error.reason or ""


class Server:
    """Speaks to three clients, stage by stage.

    Args:
        run: The run directory, or None: then clients keep what they must in Flower's state.
        options: Of secure aggregation.
    """

    def __init__(self, run: RunDirectory, options: str = "", *, told_of_run: bool = True) -> None:
        self.experiment = experiment(options)
        self.grid = InProcessGrid(self.experiment, run, app)
        if not told_of_run:
            for client in range(self.experiment.partition.clients):
                self.grid.context(client).run_config["run-directory"] = ""
        model = task_of(self.experiment).build_model(stream(0, "model"))
        self.weights = to_record(shared_state(model))
        self.layout = Layout.of(shared_parameters(model), {})

    def ask(
        self, client: int, action: str, part: ArrayRecord | None = None, server_round: int = 1
    ) -> Message:
        config = ConfigRecord({"server-round": server_round})
        content = RecordDict({CONFIG: config})
        if part is not None:
            content[wire.SECURE] = part
        kind = f"query.{action}"
        if action == "train":
            content[ARRAYS], kind = self.weights, action
        message = self.grid.create_message(content, kind, FIRST_NODE + client, "1")
        [reply] = self.grid.send_and_receive([message])
        return reply

    def keys(self) -> ArrayRecord:
        found: dict[int, PublicKeys] = {}
        for client in range(3):
            found |= wire.read_keys(self.ask(client, wire.ADVERTISE_KEYS).content)
        return wire.pack_keys(found)

    def shares(self, keys: ArrayRecord) -> dict[int, dict[int, bytes]]:
        return {
            client: wire.read_sealed(self.ask(client, wire.SHARE_KEYS, keys).content)
            for client in range(3)
        }

    def masked(self, client: int, sharing: Sequence[int] = (0, 1, 2)) -> Elements:
        part = ArrayRecord(wire.pack_clients(list(sharing)))
        vector = wire.read_masked(self.ask(client, "train", part).content, self.layout)
        assert vector is not None
        return vector

    def unmask(
        self, client: int, survivors: list[int], sealed: dict[int, dict[int, bytes]]
    ) -> Message:
        dealt = {one: box[client] for one, box in sealed.items() if one != client}
        return self.ask(client, wire.UNMASK, wire.pack_unmasking(survivors, dealt))


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """An empty run directory."""
    return RunDirectory.create(tmp_path, "tiny")


@pytest.mark.parametrize("told_of_run", [True, False])
def test_a_client_goes_through_all_stages_with_and_without_a_run_directory(
    run: RunDirectory, told_of_run: bool
) -> None:
    server = Server(run, told_of_run=told_of_run)
    sealed = server.shares(server.keys())
    assert run.memory.exists() == told_of_run
    for client in range(2):
        server.masked(client)

    reply = server.unmask(0, [0, 1], sealed)

    revealed = wire.read_revealed(reply.content, [0, 1], [2])
    assert set(revealed.seeds) == {0, 1}
    again = server.unmask(0, [1, 2], sealed)
    assert again.has_error()
    assert "takes part in no sum, or has done its part" in reason(again)


def test_an_update_is_never_sent_without_masks(run: RunDirectory) -> None:
    server = Server(run)
    server.shares(server.keys())

    reply = server.ask(0, "train")

    assert reply.has_error()
    assert "without its masks: it is not sent" in reason(reply)


def test_keys_of_one_round_are_of_no_use_in_another(run: RunDirectory) -> None:
    server = Server(run)
    keys = server.keys()

    reply = server.ask(0, wire.SHARE_KEYS, keys, server_round=2)

    assert "has no keys for round 2" in reason(reply)


def test_a_client_does_not_go_on_below_the_threshold(run: RunDirectory) -> None:
    server = Server(run, ", drop = { keys = [1] }")
    alone = wire.read_keys(server.ask(0, wire.ADVERTISE_KEYS).content)
    assert server.ask(1, wire.ADVERTISE_KEYS).error.code == wire.DROPPED

    reply = server.ask(0, wire.SHARE_KEYS, wire.pack_keys(alone))

    assert "1 clients are left, 2 are needed: nothing is revealed" in reason(reply)


def test_stages_are_asked_for_in_order(run: RunDirectory) -> None:
    server = Server(run)
    keys = server.keys()
    part = ArrayRecord(wire.pack_clients([0, 1, 2]))

    assert "takes part in stage 'shares'" in reason(server.ask(0, "train", part))
    server.shares(keys)
    assert "takes part in stage 'masked'" in reason(server.unmask(0, [0, 1], {1: {0: bytes(48)}}))


def test_without_secure_aggregation_its_messages_are_refused(run: RunDirectory) -> None:
    plain = parse_experiment('name = "tiny"\nmodel = { name = "mlp" }')
    grid = InProcessGrid(plain, run, app)
    content = RecordDict({CONFIG: ConfigRecord({"server-round": 1})})
    message = grid.create_message(content, f"query.{wire.ADVERTISE_KEYS}", FIRST_NODE, "1")

    [reply] = grid.send_and_receive([message])

    assert "has no secure aggregation" in reason(reply)


def test_a_round_that_is_repeated_has_the_same_masks(run: RunDirectory) -> None:
    server = Server(run)
    server.shares(server.keys())
    first = server.masked(0)
    server.shares(server.keys())

    again = server.masked(0)

    # keys come from the seed and the round: a round that is repeated has the same bits
    assert torch.equal(torch.from_numpy(first.copy()), torch.from_numpy(again.copy()))
    assert (first != 0).mean() > 0.99


def test_probable_drop_outs_are_as_frequent_as_they_should_be(run: RunDirectory) -> None:
    server = Server(run, ", drop_probability = { keys = 0.25 }")

    lost = [
        server.ask(client, wire.ADVERTISE_KEYS, server_round=number).has_error()
        for number in range(1, 101)
        for client in range(3)
    ]

    # standard error of 300 draws: 0.025
    assert sum(lost) / len(lost) == pytest.approx(0.25, abs=0.08)
