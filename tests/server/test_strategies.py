"""FedSGD against its closed form, and every strategy by its name."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from torch import Tensor, nn
from torch.nn import functional

from clients.app import app
from fedsim.config import Experiment, parse_experiment
from fedsim.engines.flower_private import assume_server_identity
from fedsim.engines.in_process import InProcessGrid
from fedsim.errors import ConfigError
from fedsim.files import digest, read_tensors
from fedsim.records import RunDirectory
from fedsim.seeds import stream
from fedsim.setup import shares_of, task_of
from fedsim.wire import ARRAYS, METRICS, shared_state, to_record, to_tensors
from server import STRATEGIES
from server.rounds import train
from server.strategies import FedAvg, FedSGD, build_strategy, mean_of_metrics, weighted_sum


def experiment(text: str = "", *, clients: int = 4, algorithm: str = "fedsgd") -> Experiment:
    return parse_experiment(
        f"""
        name = "tiny"
        rounds = 2
        partition = {{ clients = {clients} }}
        model = {{ name = "mlp", options = {{ hidden = [6] }} }}
        training = {{ algorithm = "{algorithm}", batch_size = 4, max_local_steps = 2 }}
        {text}
        """
    )


def trained(tiny: Experiment, folder: Path) -> RunDirectory:
    """Run all rounds in this process."""
    run = RunDirectory.create(folder, "tiny")
    train(tiny, run, InProcessGrid(tiny, run, app))
    return run


def weights(run: RunDirectory) -> dict[str, Tensor]:
    tensors, _ = read_tensors(run.checkpoint)
    return {
        name.removeprefix("weights/"): tensor
        for name, tensor in tensors.items()
        if name.startswith("weights/")
    }


# fedsgd


def fedsgd_step(
    strategy: FedSGD, model: nn.Module, batches: list[tuple[Tensor, Tensor]], round_: int = 1
) -> dict[str, Tensor]:
    """One round of `strategy` over clients that hold one batch each."""
    tiny = experiment(clients=len(batches))
    grid = InProcessGrid(tiny, RunDirectory(Path()), app)
    arrays = to_record(shared_state(model))
    messages = strategy.configure_train(round_, arrays, ConfigRecord(), grid)
    replies = []
    for message, (inputs, labels) in zip(messages, batches, strict=True):
        loss = functional.cross_entropy(model(inputs), labels)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        names = [name for name, _ in model.named_parameters()]
        content = RecordDict(
            {
                ARRAYS: to_record(dict(zip(names, gradients, strict=True))),
                METRICS: MetricRecord({"num-examples": len(labels), "train_loss": loss.item()}),
            }
        )
        replies.append(type(message)(content, reply_to=message))
    new, metrics = strategy.aggregate_train(round_, replies)
    assert new is not None
    assert metrics is not None
    return to_tensors(new)


ALONE = {"min_train_nodes": 1, "min_available_nodes": 1}


@pytest.mark.parametrize("sizes", [[4, 4, 4], [1, 2, 9]], ids=["equal", "unequal"])
def test_fedsgd_over_clients_is_one_step_of_sgd_on_all_their_examples(
    rng: torch.Generator, sizes: list[int]
) -> None:
    def model() -> nn.Module:
        return task_of(experiment()).build_model(stream(0, "model"))

    inputs = torch.rand(sum(sizes), 1, 8, 8, generator=rng)
    labels = torch.randint(10, (sum(sizes),), generator=rng)
    batches = list(zip(torch.split(inputs, sizes), torch.split(labels, sizes), strict=True))

    found = fedsgd_step(FedSGD(learning_rate=0.5, **ALONE), model(), batches)

    together = model()
    optimizer = torch.optim.SGD(together.parameters(), lr=0.5)
    functional.cross_entropy(together(inputs), labels).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    # the sums run in different orders: float32 rounding of gradients below 1
    torch.testing.assert_close(found, shared_state(together), atol=1e-6, rtol=0)


def test_the_momentum_of_fedsgd_is_that_of_sgd(rng: torch.Generator) -> None:
    model = task_of(experiment()).build_model(stream(0, "model"))
    reference = task_of(experiment()).build_model(stream(0, "model"))
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.5, momentum=0.9)
    strategy = FedSGD(learning_rate=0.5, server_momentum=0.9, **ALONE)

    for round_ in (1, 2, 3):
        inputs, labels = torch.rand(4, 1, 8, 8, generator=rng), torch.arange(4)
        new = fedsgd_step(strategy, model, [(inputs, labels)], round_)
        model.load_state_dict(new)
        optimizer.zero_grad()
        functional.cross_entropy(reference(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    torch.testing.assert_close(shared_state(model), shared_state(reference), atol=1e-6, rtol=0)


def test_a_weighted_sum_is_exact_where_float32_is_not() -> None:
    parts = [{"x": torch.tensor([1e8])}, {"x": torch.tensor([1.0])}, {"x": torch.tensor([-1e8])}]

    assert weighted_sum(parts, [1.0, 1.0, 1.0])["x"].tolist() == [1.0]


@pytest.mark.parametrize(
    "settings", [{"learning_rate": 0.0}, {"server_momentum": 1.0}, {"server_momentum": -0.1}]
)
def test_fedsgd_refuses_settings_that_make_no_sense(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"fedsgd: {next(iter(settings))} must be"):
        FedSGD(**settings)


# fedavg and fedprox


def test_fedavg_with_one_client_is_local_sgd(tmp_path: Path) -> None:
    from clients.local_training import local_update

    tiny = experiment(clients=1, algorithm="fedavg")

    found = weights(trained(tiny, tmp_path))

    task = task_of(tiny)
    model = task.build_model(stream(0, "model"))
    [share] = shares_of(tiny, task)
    for server_round in (1, 2):
        local_update(
            model,
            task.loss,
            task.data.train_inputs[share],
            task.data.train_labels[share],
            tiny.training,
            seed=0,
            server_round=server_round,
            client=0,
        )
    assert digest(found) == digest(shared_state(model))


def test_fedprox_without_a_pull_is_fedavg_and_with_one_it_is_not(tmp_path: Path) -> None:
    def found(server: str) -> str:
        return digest(weights(trained(experiment(server, algorithm="fedavg"), tmp_path)))

    plain = found("")
    assert found('server = { strategy = "fedprox" }') == plain
    pulled = 'server = { strategy = "fedprox", options = { proximal_mu = 1.0 } }'
    assert found(pulled) != plain


def test_gradients_and_deltas_lead_a_stock_strategy_to_the_same_weights(tmp_path: Path) -> None:
    one_step = 'name = "tiny"\nrounds = 2\npartition = { clients = 3 }\n'
    settings = "batch_size = 4, learning_rate = 0.1"

    def found(training: str) -> dict[str, Tensor]:
        text = f"{one_step}{training}"
        return weights(trained(parse_experiment(text), tmp_path))

    gradients = found(f'server = {{ strategy = "fedavg" }}\ntraining = {{ {settings} }}')
    fedsgd = found(f"training = {{ {settings} }}")
    local = f'training = {{ algorithm = "fedavg", max_local_steps = 1, {settings}'
    deltas = found(f'{local}, returns = "delta" }}')
    plain = found(f"{local} }}")

    for other in (fedsgd, deltas, plain):
        torch.testing.assert_close(other, gradients, atol=1e-6, rtol=0)


# every strategy by its name


@pytest.mark.parametrize("algorithm", ["fedavg", "fedsgd"])
@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_every_strategy_trains(strategy: str, algorithm: str, tmp_path: Path) -> None:
    if (strategy, algorithm) == ("fedsgd", "fedavg"):
        pytest.skip("fedsgd needs gradients")
    server = f'server = {{ strategy = "{strategy}", evaluate_clients = true }}'

    run = trained(experiment(server, algorithm=algorithm), tmp_path)

    assert [record["round"] for record in run.rounds()] == [0, 1, 2]
    assert run.events() == []
    last = run.rounds()[-1]
    for key in ("train_loss", "accuracy", "loss", "client_accuracy", "client_loss"):
        assert isinstance(last[key], float), key
    start = shared_state(task_of(experiment()).build_model(stream(0, "model")))
    assert digest(weights(run)) != digest(start)


# building


@pytest.mark.parametrize(
    ("server", "said"),
    [
        ('strategy = "fedadm"', r"unknown strategy 'fedadm'; did you mean 'fedadam'\?"),
        (
            'strategy = "fedavgm", options = { server_momentm = 0.9 }',
            r"server\.options: unknown option 'server_momentm'; did you mean 'server_momentum'\?",
        ),
        (
            'strategy = "fedavgm", options = { server_momentum = "high" }',
            r"server\.options\.server_momentum must be a valid number",
        ),
        (
            'strategy = "fedtrimmedavg", options = { beta = 0.5 }',
            r"server\.options: strategy 'fedtrimmedavg' refused them: `beta` must be",
        ),
        ("options = { server_momentum = 1.0 }", r"fedsgd: server_momentum must be in \[0, 1\)"),
        ("options = { learning_rate = 1.0 }", r"server\.options: unknown option 'learning_rate'"),
        (
            'strategy = "fedavg", options = { fraction_train = 0.5 }',
            r"server\.options: unknown option 'fraction_train'",
        ),
    ],
)
def test_a_strategy_that_cannot_be_built_is_refused(server: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_strategy(experiment(f"server = {{ {server} }}"))


def test_fedsgd_is_refused_where_clients_send_no_gradients() -> None:
    said = r"server\.strategy 'fedsgd' needs gradients; set training\.algorithm = 'fedsgd'"
    with pytest.raises(ConfigError, match=said):
        build_strategy(experiment('server = { strategy = "fedsgd" }', algorithm="fedavg"))


def test_the_learning_rate_of_the_experiment_is_that_of_the_strategy() -> None:
    fedsgd = build_strategy(experiment())
    qfedavg = build_strategy(experiment('server = { strategy = "qfedavg" }', algorithm="fedavg"))

    assert getattr(fedsgd, "learning_rate", None) == 0.1
    assert getattr(qfedavg, "client_learning_rate", None) == 0.1


OWN = """
from flwr.serverapp.strategy import FedAvg


class Mine(FedAvg):
    '''A strategy of the user's own.'''

    def __init__(self, strength: float, **sampling):
        super().__init__(**sampling)
        self.strength = strength
"""


@pytest.fixture
def own_strategies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module with a strategy of the user's own."""
    (tmp_path / "own_strategies.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("own_strategies", None)


@pytest.mark.usefixtures("own_strategies")
def test_a_strategy_of_the_users_own_takes_its_options_and_every_node(tmp_path: Path) -> None:
    name = 'strategy = "own_strategies:Mine"'
    tiny = experiment(f"server = {{ {name}, options = {{ strength = 2 }} }}")

    strategy = build_strategy(tiny)

    assert getattr(strategy, "strength", None) == 2.0
    assert trained(tiny, tmp_path).rounds()[-1]["clients"] == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match=r"server\.options\.strength is required"):
        build_strategy(experiment(f"server = {{ {name} }}"))


def test_our_fedavg_comes_to_the_bits_of_flowers() -> None:
    rng = torch.Generator().manual_seed(3)
    counts = [3, 50, 17, 1]

    def replies() -> list[Message]:
        return [
            Message(
                RecordDict(
                    {
                        ARRAYS: to_record(
                            {
                                "w": torch.randn(40, 7, generator=rng),
                                "scale": torch.randn((), generator=rng),
                            }
                        ),
                        METRICS: MetricRecord({"num-examples": count, "train_loss": 1 / count}),
                    }
                ),
                dst_node_id=1,
                message_type="train",
            )
            for count in counts
        ]

    assume_server_identity(1)
    heard = replies()

    ours, our_metrics = FedAvg().aggregate_train(1, heard)
    theirs, their_metrics = flower.FedAvg().aggregate_train(1, heard)

    assert ours == theirs
    assert our_metrics == their_metrics


def test_metrics_that_not_everybody_reports_have_no_mean() -> None:
    reported = (MetricRecord({"num-examples": 2, "loss": 1.0}), MetricRecord({"num-examples": 2}))
    contents = [RecordDict({METRICS: one}) for one in reported]

    with pytest.raises(ValueError, match="different metrics"):
        mean_of_metrics(contents, "num-examples")
