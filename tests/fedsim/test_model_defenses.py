"""A defense that changes the model changes it for everybody, and stops no run."""

from pathlib import Path

import pytest
import torch

from attacks.labels import LabelRule
from attacks.observation import AttackFailed, Knowledge
from clients.defenses.precode import VariationalBottleneck
from fedsim import driver
from fedsim.config import Experiment, parse_experiment
from fedsim.errors import ConfigError
from fedsim.files import Record, read_json, read_tensors
from fedsim.knowledge import knowledge_from, read_knowledge, without_defenses
from fedsim.records import RunDirectory
from fedsim.seeds import stream
from fedsim.setup import task_of
from fedsim.stages.prepare import check
from fedsim.sweep.cells import cells_of
from fedsim.sweep.config import read_sweep

PRECODE = """
name = "bottleneck"
rounds = 2
[model]
name = "mlp"
options = {activation = "sigmoid", hidden = [32]}
[partition]
clients = 3
[training]
batch_size = 1
[[defenses]]
name = "precode"
options = {width = 8}
"""
ATTACKS = """
[[attacks]]
name = "idlg"
options = {steps = 2, restarts = 1}
[[attacks]]
name = "linear"
"""


def experiment(text: str = PRECODE, *overrides: str) -> Experiment:
    return parse_experiment(text, overrides=overrides)


def test_everybody_builds_the_same_altered_model() -> None:
    task = task_of(experiment())
    one, other = (task.build_model(stream(0, "model")) for _ in range(2))

    assert any(isinstance(module, VariationalBottleneck) for module in one.modules())
    assert one.training
    for name, parameter in other.named_parameters():
        assert torch.equal(dict(one.named_parameters())[name], parameter)


def test_who_knows_the_architecture_knows_the_altered_one_and_not_that_it_is_a_defense(
    tmp_path: Path,
) -> None:
    run = driver.run(experiment(PRECODE, f"output.directory={tmp_path}"))

    record = read_json(run.directory / "knowledge.json")
    known = read_knowledge(RunDirectory(run.directory))

    assert record["model"]["altered_by"] == [
        {"name": "precode", "label": "", "options": {"width": 8}}
    ]
    assert known.model is not None
    assert any(isinstance(module, VariationalBottleneck) for module in known.model.modules())
    assert known.defenses == ()
    bare = knowledge_from(without_defenses(record)).model
    assert bare is not None
    assert not any(isinstance(module, VariationalBottleneck) for module in bare.modules())


def test_an_attack_that_a_defense_alone_stops_runs_and_fails(tmp_path: Path) -> None:
    run = driver.run(experiment(PRECODE + ATTACKS, f"output.directory={tmp_path}"))

    reasons = {score["attack"]: (score["status"], score["reason"]) for score in run.scores}
    assert reasons["linear"] == ("done", None)
    status, reason = reasons["idlg"]
    assert status == "failed"
    assert "draws random numbers" in str(reason)


class OnlyPlain(LabelRule):
    """Refuses before a run what it could never invert: a model with a bottleneck."""

    def check(self, known: Knowledge) -> None:
        assert known.model is not None
        if any(isinstance(module, VariationalBottleneck) for module in known.model.modules()):
            raise AttackFailed("a bottleneck cannot be inverted")
        if known.batch_size != 1:
            raise AttackFailed("more than one")


def test_only_what_fails_without_any_defense_is_refused_before_the_run() -> None:
    text = f'{PRECODE}[[attacks]]\nname = "{__name__}:OnlyPlain"\n'
    check(experiment(text))
    with pytest.raises(ConfigError, match="cannot work here: a bottleneck cannot be inverted"):
        check(experiment(text, "training.batch_size=2"))


def states(run: Path) -> list[dict[str, torch.Tensor]]:
    return [read_tensors(path)[0] for path in sorted((run / "observations").rglob("*.safetensors"))]


def test_draws_differ_between_clients_and_rounds_and_are_the_same_in_every_run(
    tmp_path: Path,
) -> None:
    one, again = (
        states(driver.run(experiment(PRECODE, f"output.directory={tmp_path / name}")).directory)
        for name in ("one", "again")
    )
    assert len(one) == len(again) > 3
    for first, second in zip(one, again, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_malicious_server_implants_into_the_altered_model() -> None:
    text = PRECODE.replace("batch_size = 1", "batch_size = 4") + (
        '[adversary]\nthreat = "malicious-server"\n[[attacks]]\nname = "robbing-the-fed"\n'
        "options = {bins = 8}\n"
    )
    plan = check(experiment(text))
    model = knowledge_from(plan.told).model
    assert model is not None
    assert any(isinstance(module, VariationalBottleneck) for module in model.modules())
    record: Record = plan.told
    assert record["model"]["implanted_by"]["name"] == "robbing-the-fed"
    names = [
        name
        for name, _ in task_of(plan.experiment).build_model(torch.Generator()).named_parameters()
    ]
    assert names == [name for name, _ in model.named_parameters()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "learns"), [("precode", True), ("soteria", True), ("outpost", True), ("censor", False)]
)
def test_whether_training_on_digits_still_learns(name: str, learns: bool, tmp_path: Path) -> None:
    text = f"""
name = "utility"
rounds = 60
[model]
name = "mlp"
[partition]
clients = 2
[training]
batch_size = 32
learning_rate = 0.3
[server]
evaluate_every = 60
[adversary]
victims = []
[[defenses]]
name = "{name}"
"""
    run = driver.run(experiment(text, f"output.directory={tmp_path}"))
    accuracy = RunDirectory(run.directory).rounds()[-1]["accuracy"]
    assert accuracy > 0.5 if learns else accuracy < 0.3  # chance is 0.1


@pytest.mark.slow
def test_the_shipped_sweep_trains_the_bottleneck_with_steps_under_which_it_learns(
    tmp_path: Path,
) -> None:
    (cell,) = (one for one in cells_of(read_sweep("frontier-digits")) if one.label == "precode")
    record = cell.utility[0].experiment.model_dump(mode="json")
    record |= {"rounds": 140, "output": {"directory": str(tmp_path)}}

    run = driver.run(Experiment.model_validate(record))

    found = [one.get("accuracy", 0.0) for one in RunDirectory(run.directory).rounds()]
    assert max(found) > 0.6  # as plain steps of 2 it stays at 0.1
