"""Gradients of many clients at once are those of each by itself, but for rounding."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from clients import together
from clients.participant import Way, workplace
from clients.together import WAYS, by_vmap, fastest, layer_by_layer, one_by_one
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
    "strides, padding and holes": nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(4, 3, (3, 2), stride=2, padding=(2, 1), dilation=2),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 5),
    ),
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


def batches_of(
    clients: int, size: int, rng: torch.Generator
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [
        (torch.rand(size, 1, 8, 8, generator=rng), torch.randint(5, (size,), generator=rng))
        for _ in range(clients)
    ]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("clients", [2, 19])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_one_pass_gives_every_client_its_own_gradient_and_loss(
    name: str, clients: int, size: int, way: Way, rng: torch.Generator
) -> None:
    drawn = batches_of(clients, size, rng)

    found = way(MODELS[name], functional.cross_entropy, drawn)

    expected = one_by_one(MODELS[name], functional.cross_entropy, drawn)
    assert len(found) == clients
    for (gradient, loss), (alone, loss_alone) in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, alone, rtol=1e-5, atol=1e-7)
        assert loss == pytest.approx(loss_alone, rel=1e-6)


@pytest.mark.parametrize("way", [by_vmap, layer_by_layer])
def test_a_round_in_one_pass_comes_to_the_same_weights_and_to_what_is_heard(
    way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "fastest", lambda *_: way)
    workplace.cache_clear()  # where an earlier probe stands

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
    def never(*_: object) -> None:
        pytest.fail("all at once")

    monkeypatch.setattr(together, "fastest", lambda *_: never)
    workplace.cache_clear()  # where an earlier probe stands

    run = run_of(experiment(text), tmp_path)

    assert [one["rejected"] for one in run.rounds()[1:]] == [0, 0]


def taking(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> None:
    """Let each way take so long; "loop" is the loop."""
    names = {way: name for name, way in WAYS.items()} | {one_by_one: "loop"}
    monkeypatch.setattr(together, "_timed", lambda way, *_: seconds[names[way]])


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ([1.0, 0.96, 2.0, 3.0], None),  # what is gained is within the noise of a probe
        ([1.0, 0.9, 0.7, 3.0], "layers"),
        ([1.0, 0.5, 0.7, 0.6], "vmap"),
    ],
)
def test_the_fastest_way_is_taken_unless_the_loop_is_about_as_fast(
    seconds: list[float],
    chosen: str | None,
    monkeypatch: pytest.MonkeyPatch,
    rng: torch.Generator,
) -> None:
    taking(monkeypatch, dict(zip(("loop", *WAYS), seconds, strict=True)))

    found = fastest(MODELS["linear"], functional.cross_entropy, batches_of(2, 1, rng))

    assert found is (None if chosen is None else WAYS[chosen])


class Mixing(nn.Module):
    """Centres what it is given over the batch: whose an example is changes the others."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return inputs less their mean."""
        return inputs - inputs.mean(0)


class Twice(nn.Module):
    """Uses one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return what two passes of the layer make of inputs."""
        found: torch.Tensor = self.layer(torch.sigmoid(self.layer(inputs.flatten(1)[:, :5])))
        return found


def tied() -> nn.Module:
    first, last = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
    last.weight = first.weight
    return nn.Sequential(nn.Flatten(), first, last)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(64, 5), Mixing()),
        Twice(),
        tied(),
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(144, 5)),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 4, 3, groups=2), nn.Flatten()),
    ],
    ids=["mixes a batch", "a layer used twice", "tied weights", "a norm", "groups"],
)
def test_a_model_that_layers_do_not_tell_is_never_taken_apart(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    taking(monkeypatch, {"loop": 1.0, "vmap": 2.0, "layers": 0.1, "layers of few clients": 0.1})

    assert fastest(model, functional.cross_entropy, batches_of(3, 2, rng)) is None


def test_a_frozen_layer_has_no_gradient(rng: torch.Generator) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Linear(5, 5))
    model[1].requires_grad_(False)
    drawn = batches_of(2, 2, rng)

    (found, _), *_ = layer_by_layer(model, functional.cross_entropy, drawn)

    assert set(found) == {"2.weight", "2.bias"}
    torch.testing.assert_close(
        dict(found), dict(one_by_one(model, functional.cross_entropy, drawn)[0][0])
    )


def test_the_probe_is_made_once_per_process() -> None:
    place = workplace(experiment().model_dump_json())

    assert not place.probed
    assert place.ready == {}


def test_a_run_that_is_gone_on_with_keeps_to_the_way_it_has_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, way in enumerate((None, by_vmap, layer_by_layer)):
        monkeypatch.setattr(together, "fastest", lambda *_, way=way: way)
        workplace.cache_clear()
        run = run_of(experiment(), tmp_path / str(number))
        (told,) = run.events()
        assert told["kind"] == together.DECIDED
        assert WAYS.get(told["way"]) is way

        monkeypatch.setattr(together, "fastest", lambda *_: pytest.fail("probed once more"))
        workplace.cache_clear()  # as in another process
        InProcess(experiment(), run).train()

        assert len(run.events()) == 1


def test_a_way_that_breaks_leaves_every_client_to_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> None:
        raise MemoryError("so many gradients")

    monkeypatch.setattr(together, "fastest", lambda *_: breaks)
    workplace.cache_clear()
    broken = run_of(experiment(), tmp_path)
    alone = run_of(experiment(vectorise="never"), tmp_path)

    assert broken.events()[-1]["kind"] == together.ONE_BY_ONE
    assert "MemoryError: so many gradients" in broken.events()[-1]["message"]
    assert [one["rejected"] for one in broken.rounds()[1:]] == [0, 0]
    weights, others = (read_tensors(one.checkpoint)[0] for one in (broken, alone))
    assert all(torch.equal(weights[name], others[name]) for name in others)
