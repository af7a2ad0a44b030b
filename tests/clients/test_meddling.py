"""An active neighbour in a federation: it speaks last, and its victims hear what it likes."""

from pathlib import Path

import pytest
import torch

from clients.app import app
from fedsim.config import Experiment, parse_experiment
from fedsim.engines.in_process import InProcessGrid
from fedsim.errors import ConfigError
from fedsim.peers import federation_of
from fedsim.records import RunDirectory
from fedsim.stages.isolate import Isolator
from fedsim.stages.prepare import check, write_plan
from fedsim.truth import unseal_update
from fedsim.views import views_of
from server.peers import train

COMPLETE = 'name = "complete", mixing = "uniform"'


def experiment(
    adversary: str = "",
    topology: str = COMPLETE,
    *,
    rounds: int = 3,
    protocol: str = 'name = "d-psgd"',
    extra: str = "",
) -> Experiment:
    return parse_experiment(
        f"""
        name = "tiny"
        rounds = {rounds}
        partition = {{ clients = 5 }}
        model = {{ name = "mlp", options = {{ hidden = [6], activation = "relu" }} }}
        training = {{ batch_size = 1, learning_rate = 0.1 }}
        topology = {{ {topology} }}
        protocol = {{ {protocol} }}
        adversary = {{ threat = "active-neighbour" {adversary} }}
        {extra}
        """
    )


def trained(tiny: Experiment, folder: Path) -> RunDirectory:
    run = RunDirectory.create(folder, "tiny")
    write_plan(check(tiny), run)
    train(tiny, run, InProcessGrid(tiny, run, app))
    return run


def weights_of(run: RunDirectory, server_round: int, peer: int) -> torch.Tensor:
    """The weights at which a peer computed its update, as it sealed them."""
    sealed = unseal_update(run, server_round, f"client-{peer}")
    assert sealed is not None
    return federation_of(experiment()).layout.vector(sealed[1])


def said(run: RunDirectory, server_round: int) -> dict[int, torch.Tensor]:
    """What the adversary told each of its neighbours."""
    (view,) = views_of(run, server_round)
    return {
        one.receiver: one.parcel.tensors["model"]
        for one in view.messages
        if one.sender == 0 and one.parcel is not None
    }


def test_victims_compute_at_the_weights_that_the_adversary_wants(tmp_path: Path) -> None:
    run = trained(experiment(), tmp_path)

    honest = weights_of(run, 1, 0)
    own = views_of(run, 1)[0].own
    wanted = honest - 0.1 * own["update"]  # the adversary's own model of round 1
    for victim in range(1, 5):
        torch.testing.assert_close(weights_of(run, 2, victim), wanted)


def test_an_echo_tells_each_victim_its_own_model(tmp_path: Path) -> None:
    run = trained(experiment(', meddling = "echo"'), tmp_path)

    (view,) = views_of(run, 2)
    heard = {one.sender: one.parcel for one in view.messages if one.receiver == 0}
    for victim, told in said(run, 2).items():
        parcel = heard[victim]
        assert parcel is not None
        assert torch.equal(told, parcel.tensors["model"])


def test_who_is_no_victim_is_told_the_truth(tmp_path: Path) -> None:
    run = trained(experiment(", victims = [1], rounds = [2]"), tmp_path)

    told = said(run, 2)
    own = views_of(run, 2)[0].own
    truth = own["weights"] - 0.1 * own["update"]
    assert torch.equal(told[2], told[3])
    torch.testing.assert_close(told[2], truth)
    assert not torch.equal(told[1], told[2])
    assert views_of(run, 1) == []


@pytest.mark.parametrize("meddling", ["echo", "state-override"])
@pytest.mark.parametrize("order", ["adapt-then-combine", "combine-then-adapt", "at-once"])
def test_what_it_said_itself_does_not_blur_what_it_tells(
    tmp_path: Path, meddling: str, order: str
) -> None:
    protocol = f'name = "d-psgd", options = {{ order = "{order}" }}'
    tiny = experiment(f', meddling = "{meddling}", rounds = [1, 2]', protocol=protocol, rounds=4)
    run = trained(tiny, tmp_path)
    Isolator(tiny, run).step(trained=True)

    first = [one for one in run.observation_records() if one["round"] == 1]
    assert len(first) == 4
    assert {one["isolated"] for one in first} == {"exact"}
    for record in run.observation_records():
        if record["isolated"] != "exact":
            continue
        seen = run.read_observation(record["id"])
        sealed = unseal_update(run, seen.round, seen.sender)
        assert sealed is not None
        for name, true in sealed[0].items():
            torch.testing.assert_close(seen.update[name], true, rtol=1e-3, atol=1e-5)


def test_an_active_attack_chooses_the_weights_of_the_victim(tmp_path: Path) -> None:
    tiny = experiment(", victims = [2]", extra='attacks = [{ name = "trap-weights" }]')
    run = trained(tiny, tmp_path)
    Isolator(tiny, run).step(trained=True)

    at = federation_of(tiny).layout.tensors(weights_of(run, 2, 2))
    told = said(run, 1)
    assert not torch.allclose(told[2], told[1])
    seen = run.read_observation("round-00002-client-2-to-peer-0")
    assert seen.weights is not None
    torch.testing.assert_close(dict(seen.weights), at)
    assert seen.isolated == "exact"


def test_an_active_neighbour_needs_a_protocol_of_models() -> None:
    ring = 'name = "ring"'
    with pytest.raises(ConfigError, match="sends more or other than models"):
        check(experiment(topology=ring, protocol='name = "ring-all-reduce"'))
    with pytest.raises(ConfigError, match="'change-architecture' is for servers"):
        check(experiment(', grants = ["change-architecture"]'))
