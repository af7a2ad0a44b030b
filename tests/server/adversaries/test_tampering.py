"""The malicious server: what clients are sent, what is heard of it, and what is aggregated."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from flwr.app import Message
from torch.nn import functional

from clients.app import app
from fedsim.config import Experiment, parse_experiment
from fedsim.engines.in_process import InProcess, InProcessGrid
from fedsim.engines.local import FIRST_NODE
from fedsim.errors import ConfigError, RunFailed
from fedsim.files import digest, read_tensors
from fedsim.knowledge import read_knowledge
from fedsim.records import RunDirectory
from fedsim.seeds import stream
from fedsim.setup import task_of
from fedsim.stages.prepare import check, write_plan
from fedsim.truth import unseal
from fedsim.wire import shared_parameters
from fedsim.wrapped_grid import WrappedGrid
from server.rounds import target, train

OWN_ATTACKS = '''
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn
from attacks.observation import AttackFailed, Observation, Reconstruction, only
from attacks.threats import Capability
from fedsim.records import RunDirectory

CHANGES = frozenset({Capability.CHANGE_WEIGHTS, Capability.CHANGE_ARCHITECTURE})


def holds(thing, kind, depth=3):
    """Whether an object is of a kind, or holds one in its attributes and their closures."""
    if isinstance(thing, kind):
        return True
    parts = [*getattr(thing, "__dict__", {}).values(), *getattr(thing, "args", ())]
    parts += [cell.cell_contents for cell in getattr(thing, "__closure__", None) or ()]
    parts += [getattr(thing, "__self__", None)]
    return depth > 0 and any(holds(part, kind, depth - 1) for part in parts)


@dataclass(frozen=True, kw_only=True)
class Active:
    """Send noise that grows with what was heard before; read the image off the gradient."""

    needs = CHANGES
    sends: str = "noise"
    implants: bool = False

    def check(self, known):
        pass

    def implant(self, model, input_shape, num_classes):
        if not self.implants:
            return model
        width = torch.Size(input_shape).numel()
        first = nn.Sequential(nn.Flatten(), nn.Linear(width, width), nn.Unflatten(1, input_shape))
        return nn.Sequential(OrderedDict(imprint=first, rest=model))

    def tamper(self, weights, known, *, receiver, target, earlier, rng):
        assert known.model is not None
        assert torch.get_num_threads() == 1
        assert not holds(earlier, RunDirectory)
        assert all(type(seen) is Observation for seen in earlier)
        if self.sends == "nothing":
            return weights
        if self.sends == "gives up":
            raise AttackFailed("no idea")
        if self.sends == "less":
            return {}
        if self.sends == "crash":
            return 1 / 0
        if receiver != target:  # others are silenced
            return {name: torch.zeros_like(weight) for name, weight in weights.items()}
        scale = 1.0 + sum(float(seen.update["linear.bias"].norm()) for seen in earlier)
        changed = {}
        for name, weight in weights.items():
            weight += 1  # what the server holds is not to change by this
            changed[name] = scale * torch.randn(weight.shape, generator=rng)
        return changed

    def __call__(self, seen, known, *, rng, budget=None):
        return Reconstruction(inputs=None, labels=torch.tensor([len(only(seen).update)]))


@dataclass(frozen=True, kw_only=True)
class Sly(Active):
    """Change what it did not ask for."""

    needs = frozenset()
'''


@pytest.fixture(autouse=True)
def own_attacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module of attacks of the user's own."""
    (tmp_path / "own_active.py").write_text(OWN_ATTACKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("own_active", None)


def experiment(
    options: str = "",
    *,
    name: str = "Active",
    adversary: str = "victims = [1], rounds = [2, 3]",
    threat: str = "malicious-server",
    more: str = "",
) -> Experiment:
    return parse_experiment(
        f"""
        name = "tiny"
        rounds = 4
        partition = {{ clients = 3 }}
        model = {{ name = "mlp", options = {{ hidden = [6] }} }}
        adversary = {{ threat = "{threat}", {adversary} }}
        {more}
        [[attacks]]
        name = "own_active:{name}"
        label = "active"
        options = {{ {options} }}
        """
    )


def ran(tiny: Experiment, folder: Path, wrap: type[WrappedGrid] = WrappedGrid) -> RunDirectory:
    run = RunDirectory.create(folder, "tiny")
    write_plan(check(tiny), run)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)  # the attack runs on one, whoever calls
        train(tiny, run, wrap(InProcessGrid(tiny, run, app)))
    finally:
        torch.set_num_threads(threads)
    return run


def final(run: RunDirectory) -> tuple[str, str]:
    return digest(read_tensors(run.checkpoint)[0]), run.views_sha256()


@pytest.mark.parametrize(
    "training",
    [
        "",
        'training = { algorithm = "fedavg", max_local_steps = 1, returns = "delta" }',
    ],
)
def test_what_is_heard_of_a_victim_is_what_it_computed_from_what_it_was_sent(
    tmp_path: Path, training: str
) -> None:
    tiny = experiment(more=training)
    run = ran(tiny, tmp_path)

    records = run.observation_records()
    assert [one["id"] for one in records] == [
        "round-00002-client-1-to-server",
        "round-00003-client-1-to-server",
    ]
    model = task_of(tiny).build_model(stream(0, "model"))
    for record in records:
        seen, sealed = run.read_observation(record["id"]), unseal(run, record["round"], "client-1")
        assert sealed is not None
        assert seen.weights is not None
        assert float(seen.weights["linear.weight"].std()) > 0.5  # noise, not what was learned
        model.load_state_dict(dict(seen.weights))
        loss = functional.cross_entropy(model(sealed[0].clone()), sealed[1])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        scale = -0.1 if training else 1.0
        for name, gradient in zip(shared_parameters(model), gradients, strict=True):
            torch.testing.assert_close(seen.update[name], scale * gradient, atol=1e-6, rtol=1e-4)
    assert [one.get("tampered") for one in run.rounds()] == [None, [], [1], [1], []]
    assert [one.get("clients") for one in run.rounds()[1:]] == [
        [0, 1, 2],
        [0, 2],
        [0, 2],
        [0, 1, 2],
    ]
    assert run.events() == []


def round_of(message: Message) -> object:
    """The round of a training message; None of others."""
    config = message.content.config_records.get("config")
    return None if config is None else config.get("server-round")


class Silent(WrappedGrid):
    """A grid on which client 1 does not answer in rounds 2 and 3."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        messages = list(messages)
        kept = []
        for message in messages:
            silenced = message.metadata.dst_node_id == FIRST_NODE + 1
            if not (silenced and round_of(message) in (2, 3)):
                kept.append(message)
        return self.inner.send_and_receive(kept, timeout=timeout)


def test_replies_to_changed_weights_are_left_out_of_the_aggregation_and_no_others(
    tmp_path: Path,
) -> None:
    attacked = ran(experiment(), tmp_path)
    without = ran(experiment("sends = 'nothing'"), tmp_path, Silent)
    honest = ran(experiment("sends = 'nothing'"), tmp_path)

    assert final(attacked)[0] == final(without)[0]
    assert final(attacked)[0] != final(honest)[0]
    assert {tuple(one.get("tampered", ())) for one in honest.rounds()} == {()}
    assert (
        final(honest)[0]
        == final(ran(experiment("sends = 'nothing'", adversary="rounds = []"), tmp_path))[0]
    )


def test_every_receiver_and_round_has_random_numbers_of_its_own(tmp_path: Path) -> None:
    tiny = experiment(adversary="victims = [0, 2]")

    first, second = ran(tiny, tmp_path), ran(tiny, tmp_path)

    assert final(first) == final(second)
    weights = {one["weights"] for one in first.observation_records()}
    assert len(weights) == len(first.observation_records()) == 8


class Interrupted(Exception):
    """What ends a run in the middle."""


class Stops(WrappedGrid):
    """A grid that dies in round 3, after clients have trained."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        messages = list(messages)
        replies = self.inner.send_and_receive(messages, timeout=timeout)
        if any(round_of(message) == 3 for message in messages):
            raise Interrupted
        return replies


def test_a_run_that_was_interrupted_sends_what_one_that_was_not_sends(tmp_path: Path) -> None:
    tiny = experiment()
    whole = ran(tiny, tmp_path)
    parts = RunDirectory.create(tmp_path, "tiny")
    write_plan(check(tiny), parts)
    with pytest.raises(Interrupted):
        train(tiny, parts, Stops(InProcessGrid(tiny, parts, app)))
    assert len(parts.rounds()) == 3

    train(tiny, parts, InProcessGrid(tiny, parts, app))

    assert final(parts) == final(whole)
    before, sent = (
        parts.read_observation(f"round-0000{number}-client-1-to-server") for number in (2, 3)
    )
    assert sent.weights is not None
    weight = sent.weights["linear1.weight"]  # the first that it drew
    noise = torch.randn(weight.shape, generator=stream(0, "tamper", "active", 3, "client-1"))
    scale = 1.0 + float(before.update["linear.bias"].norm())
    assert torch.equal(weight, scale * noise)
    assert [one.get("tampered") for one in parts.rounds()] == [None, [], [1], [1], []]


def test_a_model_that_the_attack_implants_is_what_everybody_trains(tmp_path: Path) -> None:
    tiny = experiment("sends = 'nothing', implants = true", adversary='rounds = "all"')
    plain = task_of(experiment()).build_model(stream(0, "model"))

    run = ran(tiny, tmp_path)

    grown = task_of(tiny).build_model(stream(0, "model"))
    assert "imprint.1.weight" in dict(grown.named_parameters())
    assert grown.training
    for name, parameter in plain.named_parameters():
        assert torch.equal(grown.get_parameter(f"rest.{name}"), parameter)
    known = read_knowledge(run)
    assert known.model is not None
    assert set(dict(known.model.named_parameters())) == set(dict(grown.named_parameters()))
    seen = run.read_observation(run.observation_records()[0]["id"])
    assert set(seen.update) == set(dict(grown.named_parameters()))
    assert digest(seen.weights or {}) == digest(shared_parameters(grown))
    assert run.rounds()[1]["clients"] == [0, 1, 2]  # nobody's weights were changed
    assert run.rounds()[-1]["loss"] < run.rounds()[0]["loss"]


def test_where_only_the_mean_is_heard_one_client_is_attacked_and_none_is_aggregated(
    tmp_path: Path,
) -> None:
    tiny = experiment(threat="malicious-aggregate-server", adversary="rounds = [2, 3]")
    run = ran(tiny, tmp_path)

    assert [one["id"] for one in run.observation_records()] == [
        f"round-0000{number}-client-{target(tiny, number)}-to-server" for number in (2, 3)
    ]
    assert [one.get("tampered") for one in run.rounds()[1:]] == [[], [0, 1, 2], [0, 1, 2], []]
    assert [one["clients"] for one in run.rounds()[1:]] == [[0, 1, 2], [], [], [0, 1, 2]]
    assert run.rounds()[2]["loss"] == run.rounds()[1]["loss"]
    assert [event["message"] for event in run.events()] == [
        f"round {number}: no update came of 0 usable replies from 3 clients, 3 of which were sent "
        "changed weights; the weights stay as they were"
        for number in (2, 3)
    ]
    # zero weights leave the others no gradient but that of the last bias
    seen = run.read_observation("round-00002-client-0-to-server")
    sealed = unseal(run, 2, "client-0")
    assert sealed is not None
    assert seen.weights is not None
    model = task_of(tiny).build_model(stream(0, "model"))
    model.load_state_dict(dict(seen.weights))
    loss = functional.cross_entropy(model(sealed[0]), sealed[1])
    gradient = torch.autograd.grad(loss, model.get_parameter("linear1.weight"))[0]
    torch.testing.assert_close(seen.update["linear1.weight"], gradient / 3)


def test_an_attack_that_has_nothing_to_send_leaves_the_round_as_it_is(tmp_path: Path) -> None:
    run = ran(experiment("sends = 'gives up'"), tmp_path)

    assert [(one["kind"], one["message"]) for one in run.events()] == [
        ("tamper-failed", f"round {number}, client 1: 'active': no idea") for number in (2, 3)
    ]
    assert all(one["clients"] == [0, 1, 2] for one in run.rounds()[1:])


@pytest.mark.parametrize(
    ("options", "name", "said"),
    [
        ("sends = 'less'", "Active", r"must send all parameters.*it sends no 'linear1\.weight'"),
        ("sends = 'crash'", "Active", r"crashed on what to send to client-1: ZeroDivisionError"),
        ("", "Sly", r"changes weights, but 'change-weights' is not among its needs"),
    ],
)
def test_an_attack_that_sends_what_it_must_not_ends_the_run(
    tmp_path: Path, options: str, name: str, said: str
) -> None:
    with pytest.raises(RunFailed, match=said):
        ran(experiment(options, name=name), tmp_path)


def test_what_changes_what_is_sent_is_refused_where_it_cannot() -> None:
    with pytest.raises(
        ConfigError, match="'active' changes what clients are sent, and threat 'cur"
    ):
        check(experiment(threat="curious-server"))
    twice = experiment(more="").model_copy(
        update={
            "attacks": [
                *experiment().attacks,
                experiment().attacks[0].model_copy(update={"label": "other"}),
            ]
        }
    )
    with pytest.raises(ConfigError, match="'active' and 'other' change what is sent"):
        check(twice)
    with pytest.raises(ConfigError, match="'change-architecture' is not among its needs"):
        check(experiment("implants = true", name="Sly"))


def test_an_engine_runs_the_attack_as_the_loop_does(tmp_path: Path) -> None:
    tiny = experiment("implants = true, sends = 'nothing'")
    run = RunDirectory.create(tmp_path, "tiny")
    write_plan(check(tiny), run)

    InProcess(tiny, run).train()

    assert final(run) == final(ran(tiny, tmp_path))
