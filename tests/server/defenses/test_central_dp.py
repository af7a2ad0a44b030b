"""Central differential privacy, against Flower's own, by its sensitivity, and what it hides."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    FedAvgM,
    Strategy,
)
from torch import Tensor, nn

from attacks.defense import length_of
from attacks.observation import Tensors
from fedsim import driver
from fedsim.config import Experiment, parse_experiment
from fedsim.engines.local import FIRST_NODE, LocalGrid
from fedsim.errors import ConfigError
from fedsim.records import RunDirectory
from fedsim.wire import ARRAYS, METRICS, to_record, to_tensors
from server import checkpoint
from server.defenses.central_dp import CentralDP, NoisyMean
from server.strategies import FedSGD

WEIGHTS = {"w": torch.ones(3, 2), "b": torch.zeros(2)}
ALL: dict[str, Any] = {
    "min_train_nodes": 1,
    "min_available_nodes": 1,
    "weighted_by_key": "num-examples",
}


class Nodes(LocalGrid):
    """Nodes that answer as they are told."""

    def __init__(self, contents: Sequence[Tensors]) -> None:
        super().__init__(len(contents))
        self.contents = contents

    def deliver(self, messages: object, timeout: float | None) -> list[Message]:
        metrics = MetricRecord({"num-examples": 4, "train_loss": 0.5})
        return [
            Message(
                RecordDict(
                    {
                        ARRAYS: to_record(self.contents[message.metadata.dst_node_id - FIRST_NODE]),
                        METRICS: metrics,
                    }
                ),
                reply_to=message,
            )
            for message in messages  # type: ignore[attr-defined]
        ]


def one_round(
    strategy: Strategy, contents: Sequence[Tensors], weights: Tensors = WEIGHTS, number: int = 1
) -> dict[str, Tensor]:
    grid: Grid = Nodes(contents)
    messages = strategy.configure_train(number, to_record(weights), ConfigRecord(), grid)
    arrays, _ = strategy.aggregate_train(number, list(grid.send_and_receive(messages)))
    assert arrays is not None
    return to_tensors(arrays)


def moved(*distances: float) -> list[dict[str, Tensor]]:
    return [{name: t + distance for name, t in WEIGHTS.items()} for distance in distances]


def around(strategy: Strategy, seed: int = 0, **settings: object) -> NoisyMean:
    made = CentralDP(**settings).around(strategy, seed, "dp")  # type: ignore[arg-type]
    assert isinstance(made, NoisyMean)
    return made


def averaging() -> FedAvg:
    return FedAvg(**ALL)


def test_without_noise_it_is_flowers_own() -> None:
    contents = moved(0.1, -3.0, 2.0)
    flowers = DifferentialPrivacyServerSideFixedClipping(averaging(), 0.0, 1.5, 3)

    ours = one_round(around(averaging(), clipping_norm=1.5, noise_multiplier=0.0), contents)

    torch.testing.assert_close(ours, one_round(flowers, contents))


def test_gradients_are_clipped_as_gradients_and_not_as_weights() -> None:
    gradient = {name: torch.full_like(t, 5.0) for name, t in WEIGHTS.items()}
    strategy = around(FedSGD(learning_rate=0.1, **ALL), clipping_norm=2.0, noise_multiplier=0.0)

    new = one_round(strategy, [gradient, gradient])

    change = {name: new[name] - t for name, t in WEIGHTS.items()}
    assert length_of(change) == pytest.approx(0.1 * 2.0)


@pytest.mark.parametrize("clients", [1, 4])
def test_noise_has_the_deviation_that_the_account_is_for(clients: int) -> None:
    weights = {"w": torch.zeros(100_000)}
    new = one_round(
        around(averaging(), clipping_norm=0.5, noise_multiplier=2.0), [weights] * clients, weights
    )
    assert float(new["w"].std()) == pytest.approx(2.0 * 0.5 / clients, rel=0.02)


def test_one_client_moves_the_mean_by_no_more_than_its_clip() -> None:
    strategy = around(averaging(), clipping_norm=0.5, noise_multiplier=0.0)
    silent, loud = (one_round(strategy, moved(0.1, 0.2, last)) for last in (0.0, 1e6))
    change = {name: loud[name] - silent[name] for name in loud}
    assert length_of(change) == pytest.approx(0.5 / 3, rel=1e-4)


def test_a_strategys_memory_holds_nothing_that_is_not_noisy() -> None:
    inner = FedAvgM(server_momentum=0.9, **ALL)
    strategy = around(inner, clipping_norm=1.0, noise_multiplier=1.0)

    first = one_round(strategy, moved(0.1, 0.3))

    plain = one_round(around(averaging(), clipping_norm=1.0, noise_multiplier=1.0), moved(0.1, 0.3))
    torch.testing.assert_close(first, plain)  # the first step of momentum is the noisy mean itself
    assert inner.momentum_vector is not None
    for velocity, name in zip(inner.momentum_vector, WEIGHTS, strict=True):
        np.testing.assert_allclose(velocity, (WEIGHTS[name] - plain[name]).numpy(), atol=1e-6)


def test_noise_depends_on_seed_and_round_and_on_nothing_else() -> None:
    def drawn(seed: int, number: int) -> Tensor:
        np.random.seed(1)  # noqa: NPY002 - what Flower's own draws from
        return one_round(around(averaging(), seed), moved(0.1), number=number)["w"]

    assert torch.equal(drawn(0, 1), drawn(0, 1))
    assert not torch.equal(drawn(0, 1), drawn(0, 2))
    assert not torch.equal(drawn(0, 1), drawn(1, 1))


def test_adaptive_clipping_settles_at_the_length_asked_for() -> None:
    strategy = around(
        averaging(), clipping_norm=100.0, noise_multiplier=0.0, adaptive=True, count_deviation=0.0
    )
    contents = moved(*[0.1 * step for step in range(1, 12)])

    for number in range(1, 60):
        one_round(strategy, contents, number=number)

    lengths = sorted(0.1 * step * 8**0.5 for step in range(1, 12))
    assert lengths[4] < float(strategy.clipping_norm) < lengths[7]  # around the median


def test_sum_and_number_together_cost_what_the_noise_multiplier_says() -> None:
    defense = CentralDP(noise_multiplier=1.0, adaptive=True, count_deviation=2.0)
    # Andrew et al. (2021), theorem 1
    combined = (defense.noise_of_sum(20) ** -2 + (2 * 2.0) ** -2) ** -0.5
    assert combined == pytest.approx(1.0)
    assert CentralDP(noise_multiplier=1.0).noise_of_sum(20) == 1.0


def test_far_fewer_answers_than_were_drawn_cost_no_more_and_end_nothing() -> None:
    defense = CentralDP(noise_multiplier=1.9, adaptive=True)  # 2 of 20 clients, at most

    for clients in (20, 19, 10, 1):
        combined = (
            defense.noise_of_sum(clients) ** -2 + (2 * defense.noise_of_count(clients)) ** -2
        ) ** -0.5
        assert combined == pytest.approx(1.9)
    assert defense.noise_of_count(20) == 1.0


def test_the_bound_and_the_memory_within_come_back_after_a_kill(tmp_path: Path) -> None:
    def fresh() -> NoisyMean:
        inner = FedAvgM(server_momentum=0.9, **ALL)
        return around(inner, adaptive=True, count_deviation=1.0)

    run, strategy, resumed = RunDirectory.create(tmp_path, "x"), fresh(), fresh()
    new = one_round(strategy, moved(0.1, 0.2))
    checkpoint.save(run, 1, to_record(new), strategy)

    checkpoint.restore(run, resumed)

    assert float(resumed.clipping_norm) == float(strategy.clipping_norm) != 1.0
    after = [one_round(one, moved(0.3, 0.4), new, 2)["w"] for one in (strategy, resumed)]
    assert torch.equal(*after)


def experiment(text: str = "", defense: str = "", server: str = "") -> Experiment:
    return parse_experiment(
        f'name = "tiny"\nrounds = 2\n{text}\n[model]\nname = "mlp"\noptions = {{ hidden = [4] }}\n'
        f"[partition]\nclients = 3\n[server]\n{server}\n{defense}"
    )


SECURE = '[[defenses]]\nname = "secure-aggregation"'


@pytest.mark.parametrize(
    ("settings", "server", "model", "message"),
    [
        ({}, 'strategy = "krum"', nn.Linear(2, 2), "needs each update"),
        ({}, "", nn.BatchNorm1d(2), "variances may come out negative"),
        ({}, SECURE, nn.Linear(2, 2), "but their sum; let clients clip"),
        ({"adaptive": True}, "", nn.Linear(2, 2), "raise count_deviation"),
    ],
)
def test_what_it_cannot_defend_is_refused(
    settings: dict[str, bool], server: str, model: nn.Module, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        CentralDP(**settings).check(experiment(server=server), model)  # type: ignore[arg-type]


@pytest.mark.parametrize("threat", ["curious-server", "link-tap"])
def test_it_hides_nothing_from_the_server_or_on_the_link(
    threat: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    adversary = f'[adversary]\nthreat = "{threat}"\nrounds = [1]\n'
    central = '[[defenses]]\nname = "central-dp"\n'

    bare = driver.run(experiment(defense=adversary))
    defended = driver.run(experiment(defense=adversary + central))

    assert defended.summary["views_sha256"] == bare.summary["views_sha256"]
    assert defended.summary["weights_sha256"] != bare.summary["weights_sha256"]
    assert defended.summary["privacy_unit"] == "client"
    assert bare.summary["epsilon"] is None
