"""Chains of defenses: named, checked, in order, told or not, the same on every engine."""

from pathlib import Path

import pytest

from attacks.defense import KnownDefense, Untold
from attacks.threats import Capability
from clients.defenses.clip import Clip
from clients.defenses.noise import GaussianNoise
from fedsim import driver
from fedsim.catalog import summary
from fedsim.config import Experiment, parse_experiment
from fedsim.defenses import DEFENSES, Place, build_chain, known_defenses
from fedsim.errors import ConfigError
from fedsim.knowledge import read_knowledge
from fedsim.records import RunDirectory

CHAIN = """
name = "defended"
rounds = 2
[partition]
clients = 3
[adversary]
grants = ["defense"]
[[defenses]]
name = "clip"
options = {norm = 0.5}
[[defenses]]
name = "gaussian-noise"
label = "noise"
options = {scale = 1e-3}
"""


def experiment(text: str = CHAIN, *overrides: str) -> Experiment:
    return parse_experiment(text, overrides=overrides)


@pytest.mark.parametrize("name", DEFENSES)
def test_every_name_leads_to_a_defense_that_is_described(name: str) -> None:
    chain = build_chain(experiment(f'name = "x"\n[[defenses]]\nname = "{name}"\n'))
    assert isinstance(chain[name], KnownDefense)
    assert chain[name].place in Place
    assert summary(DEFENSES[name]).endswith(".")


def test_a_chain_is_built_in_the_order_of_the_experiment() -> None:
    chain = build_chain(experiment())
    assert list(chain) == ["clip", "noise"]
    assert chain["clip"] == Clip(norm=0.5)
    assert experiment().defense_title == "clip + noise"


class _AtTheServer(Clip):
    place = Place.SERVER


def test_a_chain_out_of_the_order_in_which_defenses_act_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(DEFENSES, "late", f"{__name__}:_AtTheServer")
    text = 'name = "x"\n[[defenses]]\nname = "late"\n[[defenses]]\nname = "clip"\n'
    with pytest.raises(ConfigError, match="'clip' acts on the update, before 'late'"):
        build_chain(experiment(text))


@pytest.mark.parametrize(
    ("defense", "message"),
    [
        ('name = "clop"', "unknown defense 'clop'; did you mean 'clip'"),
        ('name = "clip"\noptions = {nrm = 1}', "unknown option 'nrm'"),
        ('name = "clip"\noptions = {norm = -1}', "defenses.clip: norm must be above 0, got -1"),
        ('name = "pathlib:Path"', "is no defense"),
    ],
)
def test_a_defense_that_cannot_be_is_refused(defense: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_chain(experiment(f'name = "x"\n[[defenses]]\n{defense}\n'))


def test_only_who_is_granted_it_knows_of_the_defense(tmp_path: Path) -> None:
    out = f"output.directory={tmp_path}"
    told = driver.run(experiment(CHAIN, out))
    assert read_knowledge(RunDirectory(told.directory)).defenses == (
        Clip(norm=0.5),
        GaussianNoise(scale=1e-3),
    )
    names = driver.run(experiment(CHAIN, out, "adversary.told_defense=names"))
    assert read_knowledge(RunDirectory(names.directory)).defenses == (
        Untold(defense=Clip()),
        Untold(defense=GaussianNoise()),
    )
    untold = driver.run(experiment(CHAIN, out, "adversary.grants=[]"))
    assert read_knowledge(RunDirectory(untold.directory)).defenses == ()


def test_an_adversary_told_of_no_chain_knows_that_there_is_none() -> None:
    assert known_defenses([]) == ()
    assert Capability.DEFENSE in experiment().adversary.grants


@pytest.mark.parametrize("returns", ["weights", "delta"])
def test_what_clients_send_after_local_steps_is_defended_too(returns: str, tmp_path: Path) -> None:
    fedavg = ["training.algorithm=fedavg", f"training.returns={returns}", "training.batch_size=8"]
    out = f"output.directory={tmp_path}"
    small = experiment(CHAIN, out, *fedavg, "defenses.clip.options.norm=1e-6", "rounds=1")
    run = RunDirectory(
        driver.run(small.model_copy(update={"defenses": small.defenses[:1]})).directory
    )
    seen = run.read_observation(run.observation_records()[0]["id"])
    assert seen.weights is not None
    moved = sum(
        float((tensor - (seen.weights[name] if returns == "weights" else 0)).square().sum())
        for name, tensor in seen.update.items()
    )
    assert moved**0.5 < 1e-5
