"""Protocols as experiments name them, and what they refuse."""

import pytest

from fedsim.config import Experiment
from fedsim.errors import ConfigError
from fedsim.protocols import PROTOCOLS
from fedsim.protocols.build import protocol_of
from fedsim.protocols.choco import Choco
from fedsim.protocols.d_psgd import DecentralisedPSGD
from fedsim.protocols.gradient_sharing import GradientSharing
from fedsim.topologies import TOPOLOGIES


def _experiment(
    name: str, topology: str = "ring", *, algorithm: str = "fedsgd", **protocol: object
) -> Experiment:
    """Return an experiment of four peers."""
    return Experiment.model_validate(
        {
            "name": "tiny",
            "partition": {"clients": 4},
            "topology": {"name": topology},
            "protocol": {"name": name, **protocol},
            "training": {"algorithm": algorithm},
        }
    )


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_of_the_table_runs_on_a_topology_of_the_table(name: str) -> None:
    topology = {"ring-all-reduce": "ring", "tree-all-reduce": "tree"}.get(name, "complete")

    assert protocol_of(_experiment(name, topology))


@pytest.mark.parametrize(
    ("name", "runs_on"),
    [("ring-all-reduce", {"ring"}), ("tree-all-reduce", {"tree", "line", "star"})],
)
def test_collectives_take_the_topologies_that_they_name(name: str, runs_on: set[str]) -> None:
    taken = set()
    for topology in ("ring", "line", "star", "complete", "torus", "tree", "one-peer-exponential"):
        assert topology in TOPOLOGIES
        try:
            taken.add(protocol_of(_experiment(name, topology)) and topology)
        except ConfigError:
            continue

    assert taken == runs_on


def test_options_are_those_of_the_protocol() -> None:
    order = {"order": "at-once"}
    assert protocol_of(_experiment("d-psgd", options=order)) == DecentralisedPSGD(order="at-once")
    assert protocol_of(_experiment("choco", options={"share": 0.5})) == Choco(share=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "both"}, "protocol.options.order must be 'adapt-then-combine'"),
        ({"ordr": "at-once"}, "protocol.options: unknown option 'ordr'; did you mean 'order'"),
    ],
)
def test_options_that_it_does_not_have_are_refused(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        protocol_of(_experiment("d-psgd", options=options))


def test_a_value_without_meaning_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"protocol\.options: share must be above 0"):
        protocol_of(_experiment("choco", options={"share": 2.0}))


@pytest.mark.parametrize("name", ["gradient-sharing", "gradient-tracking", "ring-all-reduce"])
def test_who_sends_gradients_does_not_train_by_itself(name: str) -> None:
    with pytest.raises(ConfigError, match=r"sends gradients, but training\.algorithm is 'fedavg'"):
        protocol_of(_experiment(name, algorithm="fedavg"))


@pytest.mark.parametrize("name", ["d-psgd", "push-sum", "gossip", "choco"])
def test_who_sends_models_may_train_by_itself(name: str) -> None:
    assert protocol_of(_experiment(name, algorithm="fedavg"))


@pytest.mark.parametrize("name", ["choco", "ring-all-reduce"])
def test_replicas_must_begin_alike(name: str) -> None:
    with pytest.raises(ConfigError, match=r"begin alike, got protocol.start = 'own'"):
        protocol_of(_experiment(name, start="own"))


def test_a_topology_that_it_cannot_run_on_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"topology.name: ring-all-reduce needs a ring"):
        protocol_of(_experiment("ring-all-reduce", "complete"))


def test_what_is_no_protocol_is_refused() -> None:
    with pytest.raises(ConfigError, match="is no protocol: Experiment must have"):
        protocol_of(_experiment("fedsim.config:Experiment", options={"name": "x"}))


def test_a_protocol_of_ones_own_is_found_by_reference() -> None:
    reference = "fedsim.protocols.gradient_sharing:GradientSharing"

    assert protocol_of(_experiment(reference)) == GradientSharing()
