"""The honest-but-curious server: it hears everything and changes nothing."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import Tensor
from torch.nn import functional

from attacks.observation import Kind, Observation
from attacks.threats import CURIOUS_SERVER
from clients.app import app
from fedsim.config import AdversaryConfig, Experiment, ModelConfig, parse_experiment
from fedsim.engines.in_process import InProcessGrid
from fedsim.engines.local import FIRST_NODE
from fedsim.files import digest, read_tensors
from fedsim.records import RunDirectory
from fedsim.seeds import stream
from fedsim.setup import task_of
from fedsim.truth import unseal
from fedsim.wire import ARRAYS, METRICS, shared_parameters, to_record, to_tensors
from fedsim.wrapped_grid import WrappedGrid
from server.adversaries.curious import HonestButCurious
from server.adversaries.ear import Ear
from server.guard import Exchange
from server.rounds import train


class Witness(WrappedGrid):
    """Remembers what clients were sent and what they answered."""

    def __init__(self, inner: Grid) -> None:
        super().__init__(inner)
        self.sent: dict[tuple[int, int], dict[str, Tensor]] = {}
        self.answered: dict[tuple[int, int], dict[str, Tensor]] = {}

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        messages = list(messages)
        replies = list(self.inner.send_and_receive(messages, timeout=timeout))
        for message, reply in zip(messages, replies, strict=True):
            if message.metadata.message_type != "train":
                continue
            server_round = message.content.config_records["config"]["server-round"]
            assert isinstance(server_round, int)
            key = (server_round, message.metadata.dst_node_id - FIRST_NODE)
            self.sent[key] = to_tensors(message.content.array_records[ARRAYS])
            self.answered[key] = to_tensors(reply.content.array_records[ARRAYS])
        return replies


def experiment(text: str = "") -> Experiment:
    return parse_experiment(
        f"""
        name = "tiny"
        rounds = 3
        partition = {{ clients = 3 }}
        model = {{ name = "mlp", options = {{ hidden = [6] }} }}
        {text}
        """
    )


def ran(tiny: Experiment, folder: Path) -> tuple[RunDirectory, Witness]:
    run = RunDirectory.create(folder, "tiny")
    witness = Witness(InProcessGrid(tiny, run, app))
    train(tiny, run, witness)
    return run, witness


@pytest.mark.parametrize("returns", ["gradient", "weights", "delta"])
def test_it_remembers_every_update_and_the_weights_before_it_to_the_bit(
    tmp_path: Path, returns: str
) -> None:
    algorithm = "fedsgd" if returns == "gradient" else "fedavg"
    settings = f'algorithm = "{algorithm}", returns = "{returns}", max_local_steps = 1'
    run, witness = ran(experiment(f"training = {{ {settings} }}"), tmp_path)

    found = [run.read_observation(record["id"]) for record in run.observation_records()]

    assert len(found) == len(witness.answered) == 9
    for seen in found:
        key = (seen.round, int(seen.sender.removeprefix("client-")))
        assert digest(seen.update) == digest(witness.answered[key])
        assert seen.weights is not None
        assert digest(seen.weights) == digest(witness.sent[key])
        assert seen.kind is Kind(returns)


def test_listening_changes_nothing_that_is_learned(tmp_path: Path) -> None:
    loud, _ = ran(experiment(), tmp_path)
    deaf, _ = ran(experiment("adversary = { rounds = [], victims = [] }"), tmp_path)

    assert deaf.observation_records() == []
    assert digest(read_tensors(loud.checkpoint)[0]) == digest(read_tensors(deaf.checkpoint)[0])


def test_it_keeps_chosen_rounds_and_victims_alone_and_so_does_the_truth(tmp_path: Path) -> None:
    run, _ = ran(experiment("adversary = { rounds = [1, 3], victims = [0, 2] }"), tmp_path)

    heard = [(one["round"], one["sender"]) for one in run.observation_records()]

    assert heard == [(r, f"client-{c}") for r in (1, 3) for c in (0, 2)]
    sealed = sorted(path.stem for path in (run.root / "truth").iterdir())
    assert sealed == [f"round-{r:05d}-{sender}" for r, sender in heard]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_truth_reproduces_what_was_heard(tmp_path: Path, batch_size: int) -> None:
    tiny = experiment(f"training = {{ batch_size = {batch_size} }}")
    run, _ = ran(tiny, tmp_path)
    model = task_of(tiny).build_model(stream(0, "model"))

    for record in run.observation_records():
        seen = run.read_observation(record["id"])
        sealed = unseal(run, seen.round, seen.sender)
        assert sealed is not None
        assert seen.num_examples == len(sealed[0]) == batch_size
        assert seen.weights is not None
        model.load_state_dict(dict(seen.weights))
        loss = functional.cross_entropy(model(sealed[0].clone()), sealed[1])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        for name, gradient in zip(shared_parameters(model), gradients, strict=True):
            assert torch.equal(gradient, seen.update[name]), name


OWN_MODEL = """
from torch import nn

from fedsim.models.drawing import weights_from


def normed(input_shape, num_classes, *, rng):
    with weights_from(rng):
        return nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, num_classes))
"""


@pytest.mark.parametrize("returns", ["gradient", "weights", "delta"])
def test_what_clients_send_back_of_their_statistics_tells_those_of_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, returns: str
) -> None:
    (tmp_path / "own_normed.py").write_text(OWN_MODEL)
    monkeypatch.syspath_prepend(str(tmp_path))
    algorithm = "fedsgd" if returns == "gradient" else "fedavg"
    settings = f'algorithm = "{algorithm}", returns = "{returns}", max_local_steps = 1'
    run, witness = ran(
        experiment(f"training = {{ {settings}, batch_size = 4 }}").model_copy(
            update={"model": ModelConfig(name="own_normed:normed")}
        ),
        tmp_path,
    )

    found = [run.read_observation(record["id"]) for record in run.observation_records()]

    assert len(found) == 9
    for seen in found:
        sealed = unseal(run, seen.round, seen.sender)
        assert sealed is not None
        assert seen.buffers is not None
        assert seen.buffers_after is not None
        assert set(seen.buffers_after) == {"0.running_mean", "0.running_var"}
        assert set(seen.update) == set(seen.weights or {})
        before, after = (part["0.running_mean"] for part in (seen.buffers, seen.buffers_after))
        torch.testing.assert_close((after - 0.9 * before) / 0.1, sealed[0].mean().view(1))
        if returns == "weights":
            key = (seen.round, int(seen.sender.removeprefix("client-")))
            sent_back = {name: witness.answered[key][name] for name in seen.buffers_after}
            assert digest(seen.buffers_after) == digest(sent_back)


class Personal(FedAvg):
    """A strategy that sends every client weights of its own."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        for message in super().configure_train(server_round, arrays, config, grid):
            own = to_record({"w": torch.tensor([float(message.metadata.dst_node_id)])})
            message.content = RecordDict({ARRAYS: own})
            yield message


def test_the_weights_remembered_are_those_that_this_client_was_sent() -> None:
    kept: list[Observation] = []
    exchange = Exchange(
        kind="gradient",
        parameters={"w": torch.zeros(1)},
        buffers={},
        learning_rate=0.1,
        client_of={FIRST_NODE + client: client for client in range(3)},
    )
    ear = Ear(threat=CURIOUS_SERVER, scope=AdversaryConfig(), exchange=exchange, keep=kept.append)
    strategy = HonestButCurious(Personal(), ear)
    grid = InProcessGrid(experiment(), RunDirectory(Path()), app)
    start = to_record({"w": torch.zeros(1)})

    messages = strategy.configure_train(1, start, ConfigRecord(), grid)
    content = RecordDict(
        {ARRAYS: start, METRICS: MetricRecord({"num-examples": 1, "train_loss": 0.0})}
    )
    strategy.aggregate_train(1, [Message(content, reply_to=message) for message in messages])

    assert len(kept) == 3
    for seen in kept:
        assert seen.weights is not None
        node = FIRST_NODE + int(seen.sender.removeprefix("client-"))
        assert seen.weights["w"].tolist() == [node]
