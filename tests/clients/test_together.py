"""Gradients of many clients at once are those of each by itself, but for rounding."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from clients import together
from clients.participant import workplace
from clients.together import at_once, one_by_one, pays
from fedsim.config import Experiment, parse_experiment
from fedsim.engines.in_process import InProcess
from fedsim.files import read_tensors
from fedsim.records import RunDirectory
from fedsim.stages.prepare import check, write_plan

MODELS = {
    "convolution": nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(3 * 36, 5)
    ),
    "linear": nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.ReLU(), nn.Linear(7, 5)),
}


def experiment(text: str = "", *, vectorise: str = "auto") -> Experiment:
    return parse_experiment(
        f"""
        name = "tiny"
        rounds = 2
        partition = {{ clients = 4 }}
        model = {{ name = "mlp", options = {{ hidden = [6] }} }}
        training = {{ batch_size = 2 }}
        engine = {{ vectorise = "{vectorise}" }}
        {text}
        """
    )


def run_of(tiny: Experiment, folder: Path) -> RunDirectory:
    run = RunDirectory.create(folder, tiny.name)
    write_plan(check(tiny), run)
    InProcess(tiny, run).train()
    return run


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("clients", [2, 19])
def test_one_pass_gives_every_client_its_own_gradient_and_loss(
    name: str, clients: int, rng: torch.Generator
) -> None:
    drawn = [
        (torch.rand(3, 1, 8, 8, generator=rng), torch.randint(5, (3,), generator=rng))
        for _ in range(clients)
    ]

    found = at_once(MODELS[name], functional.cross_entropy, drawn)

    expected = one_by_one(MODELS[name], functional.cross_entropy, drawn)
    assert len(found) == clients
    for (gradient, loss), (alone, loss_alone) in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, alone, rtol=1e-5, atol=1e-7)
        assert loss == pytest.approx(loss_alone, rel=1e-6)


def test_a_round_in_one_pass_comes_to_the_same_weights_and_to_what_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "pays", lambda *_: True)

    alone = run_of(experiment(vectorise="never"), tmp_path)
    at_a_time = run_of(experiment(), tmp_path)

    torch.testing.assert_close(
        read_tensors(at_a_time.checkpoint)[0], read_tensors(alone.checkpoint)[0]
    )
    heard = [one["id"] for one in alone.observation_records()]
    assert [one["id"] for one in at_a_time.observation_records()] == heard
    for identity in heard:
        torch.testing.assert_close(
            dict(at_a_time.read_observation(identity).update),
            dict(alone.read_observation(identity).update),
        )


@pytest.mark.parametrize(
    "text",
    [
        'defenses = [{ name = "dp-sgd" }]',
        "[server]\nclients_per_round = 1",
    ],
    ids=["a defense computes gradients", "one client"],
)
def test_where_one_pass_is_not_the_same_each_client_has_its_own(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "at_once", None)  # would fail if it was called
    monkeypatch.setattr(together, "pays", lambda *_: True)

    run = run_of(experiment(text), tmp_path)

    assert [one["rejected"] for one in run.rounds()[1:]] == [0, 0]


def test_a_pass_that_is_slower_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([9.0, 9.0, 2.0, 1.0] * 2)
    monkeypatch.setattr(together, "_timed", lambda *_: next(times))
    drawn = [(torch.rand(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64))] * 2

    assert not pays(MODELS["linear"], functional.cross_entropy, drawn)


def test_the_probe_is_made_once_per_process() -> None:
    place = workplace(experiment().model_dump_json())

    assert place.at_once is None
    assert place.ready == {}
