"""A run from beginning to end, on an attack of the user's own and on a real one."""

import errno
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import fedsim
from fedsim import driver, files, truth
from fedsim.config import read_experiment
from fedsim.errors import ConfigError, RunFailed
from fedsim.records import RunDirectory
from fedsim.schemas import DOCUMENTS
from fedsim.stages.prepare import check
from server import rounds

OWN_ATTACKS = '''
from dataclasses import dataclass
import time
import torch
from attacks.observation import AttackFailed, Reconstruction, only
from attacks.threats import Capability


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Guess noise from the attack's own stream."""

    needs = frozenset({Capability.INPUT_DOMAIN})

    def check(self, known):
        pass

    def __call__(self, seen, known, *, rng, budget=None):
        shape = (only(seen).num_examples, *known.input_shape)
        return Reconstruction(
            inputs=torch.rand(shape, generator=rng),
            labels=torch.zeros(shape[0], dtype=torch.int64),
            matching_loss=1.0,
        )


@dataclass(frozen=True, kw_only=True)
class Crash:
    """Divide by zero."""

    needs = frozenset()

    def check(self, known):
        pass

    def __call__(self, seen, known, *, rng, budget=None):
        return 1 / 0


@dataclass(frozen=True, kw_only=True)
class GivesUp:
    """Say that it cannot be done."""

    needs = frozenset()

    def check(self, known):
        pass

    def __call__(self, seen, known, *, rng, budget=None):
        raise AttackFailed("nothing to see")


@dataclass(frozen=True, kw_only=True)
class Together(Noise):
    """Guess noise for all victims of a round at once."""

    def many(self, seen, known, *, rngs, budget=None):
        assert [one.sender for one in seen] == ["client-0", "client-2"]
        return [self(one, k, rng=rng) for one, k, rng in zip(seen, known, rngs)]


@dataclass(frozen=True, kw_only=True)
class Joined(Noise):
    """Guess noise of both rounds together."""

    joins = True

    def __call__(self, seen, known, *, rng, budget=None):
        assert [one.round for one in seen] == [1, 3]
        return super().__call__(seen[-1], known, rng=rng)


@dataclass(frozen=True, kw_only=True)
class Active(Noise):
    """Send noise; know it again; guess from the gradient that it gave."""

    needs = frozenset({Capability.CHANGE_WEIGHTS, Capability.WEIGHTS})

    def implant(self, model, input_shape, num_classes):
        return model

    def tamper(self, weights, known, *, receiver, target, earlier, rng):
        return {name: 9 + torch.rand(w.shape, generator=rng) for name, w in weights.items()}

    def __call__(self, seen, known, *, rng, budget=None):
        if min(float(weight.min()) for weight in seen.weights.values()) < 9:
            raise AttackFailed("these are not my weights")
        return super().__call__(seen, known, rng=rng)


@dataclass(frozen=True, kw_only=True)
class Greedy:
    """Need what no threat model grants by default."""

    needs = frozenset({Capability.LABELS})

    def check(self, known):
        pass

    def __call__(self, seen, known, *, rng, budget=None):
        return Reconstruction(inputs=None, labels=known.labels)
'''

OWN_MODELS = '''
import torch
from torch import nn
from torch.autograd.function import once_differentiable


class Hard(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clamp(-1, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return gradient * 1.0


class HardLayer(nn.Module):
    def forward(self, x):
        return Hard.apply(x)


def hard(input_shape, num_classes, *, rng):
    """A model whose gradient cannot be differentiated again."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), HardLayer(), nn.Linear(16, num_classes))


def frozen(input_shape, num_classes, *, rng):
    """A model of which only the classifier is trained."""
    torch.manual_seed(0)
    body = nn.Linear(64, 16).requires_grad_(False)
    return nn.Sequential(nn.Flatten(), body, nn.Sigmoid(), nn.Linear(16, num_classes))
'''

EXPERIMENT = """
name = "tiny"
rounds = 4
[model]
name = "mlp"
options = { hidden = [16] }
[partition]
clients = 3
[training]
batch_size = 2
learning_rate = 0.5
[adversary]
rounds = [1, 3]
victims = [0, 2]
[[attacks]]
name = "own_attacks:Noise"
label = "noise"
"""


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A tiny experiment with attacks of the user's own, and runs inside the test's folder."""
    (tmp_path / "own_attacks.py").write_text(OWN_ATTACKS)
    (tmp_path / "own_models.py").write_text(OWN_MODELS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.toml"
    path.write_text(EXPERIMENT)
    yield path
    for name in ("own_attacks", "own_models"):
        sys.modules.pop(name, None)


def hashes(run: RunDirectory) -> tuple[str, str]:
    """What the federation learned, and what the adversary heard, as two digests."""
    return files.digest(driver.final_weights(run)), run.views_sha256()


def reconstructed(run: RunDirectory) -> dict[str, str]:
    return {
        f"{record['observation']}/{record['attack']}": record["sha256"]
        for record in run.reconstruction_records()
    }


def test_a_run_ends_with_all_its_records_and_a_report(experiment: Path) -> None:
    result = fedsim.run(experiment)

    names = {path.name for path in result.directory.iterdir()}
    assert names >= {
        "config.toml",
        "environment.json",
        "threat.json",
        "knowledge.json",
        "rounds.jsonl",
        "scores.jsonl",
        "summary.json",
        "report.html",
        "observations",
        "truth",
        "reconstructions",
    }
    assert len(result.scores) == 4  # two rounds, two victims, one attack
    assert result.summary["status"] == "done"
    assert result.summary["experiment"] == "tiny"
    assert result.summary["weights_sha256"] == files.digest(result.weights)
    assert [row["attack"] for row in result.summary["leakage"]] == ["noise"]
    assert json.loads((result.directory / "summary.json").read_text()) == result.summary


def test_one_seed_gives_the_same_bits_twice_and_another_seed_others(experiment: Path) -> None:
    first = fedsim.run(experiment)
    second = fedsim.run(experiment)
    other = fedsim.run(experiment, overrides=["seed=1"])

    keys = ("weights_sha256", "views_sha256")
    assert [first.summary[key] for key in keys] == [second.summary[key] for key in keys]
    assert all(first.summary[key] != other.summary[key] for key in keys)
    assert reconstructed(RunDirectory(first.directory)) == reconstructed(
        RunDirectory(second.directory)
    )


def test_attacks_never_see_the_truth(experiment: Path) -> None:
    run = RunDirectory(fedsim.run(experiment, overrides=["attacks.noise.name=idlg"]).directory)
    before, scores = reconstructed(run), run.scores()

    for path in (run.root / "truth").iterdir():  # garbage of the same form, in every envelope
        tensors, _ = files.read_tensors(path)
        garbage = torch.rand_like(tensors["inputs"])
        files.replace_tensors(path, {"inputs": garbage, "labels": tensors["labels"] * 0})
    driver.attack_again(run.root, again=True)

    assert reconstructed(run) == before
    assert [one["images"] for one in run.scores()] != [one["images"] for one in scores]


def test_an_oracle_is_told_the_labels_only_where_they_are_granted(experiment: Path) -> None:
    asks = ["attacks.noise.name=own_attacks:Greedy", "attacks.noise.label=greedy"]
    with pytest.raises(ConfigError, match=r"'greedy' needs 'labels', which threat"):
        fedsim.run(experiment, overrides=asks)
    assert not Path("runs").exists()  # refused before anything started

    result = fedsim.run(experiment, overrides=[*asks, 'adversary.grants=["labels"]'])

    assert result.summary["leakage"][0]["label_accuracy"] == 1.0
    assert result.summary["leakage"][0]["threat"] == "curious-server+labels"


def test_what_could_never_work_is_refused_before_the_run(experiment: Path) -> None:
    exact = ["attacks.noise.name=linear"]
    with pytest.raises(ConfigError, match=r"'noise' cannot work here: .* needs batch_size = 1"):
        fedsim.run(experiment, overrides=exact)
    fedavg = ["attacks.noise.name=label", "training.algorithm=fedavg"]
    with pytest.raises(ConfigError, match="sum of up to 240 local steps, not one gradient"):
        fedsim.run(experiment, overrides=fedavg)
    hard = ["attacks.noise.name=dlg", "model.name=own_models:hard", "model.options={}"]
    with pytest.raises(ConfigError, match=r"'noise' cannot work here: .*differentia"):
        fedsim.run(experiment, overrides=hard)
    with pytest.raises(ConfigError, match="'noise' is no attack: Formatter must have"):
        fedsim.run(experiment, overrides=["attacks.noise.name=string:Formatter"])
    assert not Path("runs").exists()


def test_rounds_are_joined_only_for_attacks_that_take_several(experiment: Path) -> None:
    def asked(name: str, join_rounds: int, *more: str) -> list[str]:
        one = [f"attacks.noise.name={name}", f"attacks.noise.join_rounds={join_rounds}"]
        return ["training.batch_size=1", *one, *more]

    for single in ("dlg", "idlg", "own_attacks:Noise"):
        with pytest.raises(ConfigError, match="'noise' inverts one observation at a time, got joi"):
            fedsim.run(experiment, overrides=asked(single, 2))
    search = ["adversary.threat=malicious-server", "attacks.noise.options={ rounds = 2 }"]
    with pytest.raises(ConfigError, match=r"puts 2 rounds together, .*; set attacks\.noise\.join"):
        fedsim.run(experiment, overrides=asked("fishing", 1, *search))
    assert not Path("runs").exists()

    check(read_experiment(experiment, asked("fishing", 2, *search)))
    for several in ("temporal", "auto", "own_attacks:Joined"):
        for join_rounds in (1, 2):
            check(read_experiment(experiment, asked(several, join_rounds)))


@pytest.mark.parametrize("algorithm", ["fedsgd", "fedavg"])
def test_frozen_layers_are_federated_and_attacked_with_either_algorithm(
    experiment: Path, algorithm: str
) -> None:
    chosen = [f"training.algorithm={algorithm}", "model.name=own_models:frozen", "model.options={}"]
    label = ["attacks.noise.name=label", "training.batch_size=1"]
    if algorithm == "fedavg":
        label.append("training.max_local_steps=1")

    result = fedsim.run(experiment, overrides=[*chosen, *label])

    run = RunDirectory(result.directory)
    assert [event["kind"] for event in run.events()] == []
    assert [record["clients"] for record in run.rounds()[1:]] == [[0, 1, 2]] * 4
    assert {score["label_accuracy"] for score in result.scores} == {1.0}
    heard = [run.read_observation(one["id"]).weights for one in run.observation_records()]
    first, last = heard[0], heard[-1]  # of the rounds 1 and 3
    assert first is not None
    assert last is not None
    torch.testing.assert_close(first["1.weight"], last["1.weight"])  # but for an average's rounding
    assert not torch.equal(first["3.weight"], last["3.weight"])


def test_failed_attacks_are_results_beside_the_others(experiment: Path) -> None:
    text = experiment.read_text()
    text += '[[attacks]]\nname = "own_attacks:Crash"\nlabel = "crash"\n'
    text += '[[attacks]]\nname = "own_attacks:GivesUp"\nlabel = "gives-up"\n'
    experiment.write_text(text)

    result = fedsim.run(experiment)

    reasons = {score["attack"]: score["reason"] for score in result.scores}
    assert reasons["noise"] is None
    assert reasons["gives-up"] == "nothing to see"
    assert reasons["crash"] == "the attack crashed: ZeroDivisionError: division by zero"
    assert result.summary["failed_attacks"] == 8


def test_an_interrupted_run_keeps_its_records_and_resumes_to_the_same_bits(
    experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = RunDirectory(fedsim.run(experiment).directory)
    one = rounds._Rounds.one

    def stop_in_round_3(self: rounds._Rounds, number: int, arrays: object) -> object:
        if number == 3:
            raise KeyboardInterrupt
        return one(self, number, arrays)  # type: ignore[arg-type]

    monkeypatch.setattr(rounds._Rounds, "one", stop_in_round_3)
    with pytest.raises(KeyboardInterrupt):
        fedsim.run(experiment)
    run = RunDirectory(Path("runs/tiny-0002"))
    assert json.loads(run.summary.read_text())["status"] == "interrupted"
    assert run.report.is_file()
    assert [record["round"] for record in run.rounds()] == [0, 1, 2]

    monkeypatch.setattr(rounds._Rounds, "one", one)
    result = driver.resume(run.root)

    assert result.summary["status"] == "done"
    assert hashes(run) == hashes(whole)
    assert reconstructed(run) == reconstructed(whole)
    assert [record["round"] for record in run.rounds()] == [0, 1, 2, 3, 4]
    assert "resumed" in {event["kind"] for event in run.events()}


def test_a_full_disk_ends_the_run_and_keeps_what_was_recorded(
    experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, left = Path.write_bytes, iter(range(30))

    def until_full(self: Path, data: bytes) -> int:
        if "tiny-0001" in str(self) and next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", until_full)
    with pytest.raises(RunFailed, match=r"No space left on device.*its records are kept"):
        fedsim.run(experiment, overrides=["rounds=12", 'adversary.rounds="all"'])
    monkeypatch.setattr(Path, "write_bytes", write)

    run = RunDirectory.open(Path("runs/tiny-0001"))
    assert [record["round"] for record in run.rounds()][:2] == [0, 1]
    assert run.events()[-1]["kind"] == "run-failed"
    assert driver.resume(run.root).summary["status"] == "done"


def test_a_place_that_cannot_be_written_is_refused_before_the_run(experiment: Path) -> None:
    Path("occupied").write_text("a file, not a folder")

    with pytest.raises(ConfigError, match=r"cannot make a run directory in 'occupied'"):
        fedsim.run(experiment, overrides=["output.directory=occupied"])


def test_scores_can_be_made_anew_from_the_records_alone(experiment: Path) -> None:
    run = RunDirectory(fedsim.run(experiment).directory)
    before = run.scores()
    (run.root / "scores.jsonl").unlink()

    result = driver.score_again(run.root)

    assert run.scores() == before
    assert result.summary["status"] == "done"


def test_a_run_without_attacks_or_victims_still_ends_with_a_report(experiment: Path) -> None:
    text = experiment.read_text().partition("[[attacks]]")[0]
    experiment.write_text(text)

    result = fedsim.run(experiment)

    assert result.summary["leakage"] == []
    assert result.report.is_file()
    with pytest.raises(ConfigError, match="names no attack"):
        driver.attack_again(result.directory)


def test_the_truth_is_opened_by_scoring_alone(experiment: Path) -> None:
    run = RunDirectory(fedsim.run(experiment).directory)
    (run.root / "truth").rename(run.root / "elsewhere")

    driver.attack_again(run.root, again=True)  # attacks do not miss it; scoring says so

    assert {record["status"] for record in run.reconstruction_records()} == {"done"}
    assert truth.unseal(run, 1, "client-0") is None


def test_what_fedprox_adds_to_each_step_is_part_of_the_recipe(experiment: Path) -> None:
    training = ["training.algorithm=fedavg", "training.max_local_steps=2"]
    server = ["server.strategy=fedprox", "server.options.proximal_mu=0.3"]

    plan = check(read_experiment(experiment, [*training, *server]))

    recipe = plan.told["recipe"]
    assert (recipe["proximal_mu"], recipe["num_steps"], recipe["max_steps"]) == (0.3, 2, 2)
    assert plan.told["batch_size"] == 4  # two steps of two


def test_attacks_on_many_victims_on_joined_rounds_and_active_ones_run_in_the_main_job(
    experiment: Path,
) -> None:
    text = experiment.read_text()
    text = text.replace("[adversary]", '[adversary]\nthreat = "malicious-server"')
    for name, more in {"Together": "", "Joined": "join_rounds = 2\n", "Active": ""}.items():
        text += f'[[attacks]]\nname = "own_attacks:{name}"\nlabel = "{name}"\n{more}'
    experiment.write_text(text)

    result = fedsim.run(experiment)
    run = RunDirectory(result.directory)
    before = reconstructed(run)
    driver.attack_again(run.root, again=True)

    assert reconstructed(run) == before
    found = sorted((one["attack"], one["round"], one["status"]) for one in result.scores)
    assert found == sorted(
        (attack, number, "done")
        for attack in ("Active", "Joined", "Together", "noise")
        for number in ((3,) if attack == "Joined" else (1, 3))
        for _ in ("client-0", "client-2")
    )
    assert [record.get("tampered") for record in run.rounds()] == [None, [0, 2], [], [0, 2], []]
    assert [record.get("clients") for record in run.rounds()[1:]] == [[1], [0, 1, 2]] * 2
    assert result.summary["leakage"][0]["threat"] == "malicious-server"
    DOCUMENTS["knowledge"].model_validate(files.read_json(run.root / "knowledge.json"))
    for record in (*run.rounds(), *run.observation_records(), *run.reconstruction_records()):
        kind = "round" if "clients" in record or "loss" in record else "observation"
        kind = "reconstruction" if "attack" in record else kind
        DOCUMENTS[kind].model_validate(record)


def test_resuming_a_run_that_is_whole_records_nothing(experiment: Path) -> None:
    run = RunDirectory(fedsim.run(experiment).directory)
    before = hashes(run), run.events(), reconstructed(run)

    assert driver.resume(run.root).summary["status"] == "done"

    assert (hashes(run), run.events(), reconstructed(run)) == before
