"""What is heard between peers: the messages on the adversary's links, all of them, nothing else."""

import functools
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clients.app import app
from fedsim.config import Experiment, parse_experiment
from fedsim.engines.in_process import InProcessGrid
from fedsim.files import digest, read_json
from fedsim.peers import federation_of
from fedsim.records import RunDirectory
from fedsim.schemas import DOCUMENTS
from fedsim.views import Heard, forget_views, views_of
from server.peers import train

PROTOCOLS = (
    "gradient-sharing",
    "d-psgd",
    "gradient-tracking",
    "push-sum",
    "gossip",
    "choco",
    "ring-all-reduce",
    "tree-all-reduce",
)
ROUNDS = 2


def experiment(
    protocol: str,
    adversary: str,
    *,
    topology: str = "",
    seed: int = 0,
    num_peers: int = 5,
    defenses: str = "",
) -> Experiment:
    shapes = {"ring-all-reduce": 'name = "ring"', "tree-all-reduce": 'name = "tree"'}
    topology = shapes.get(protocol) or topology or 'name = "erdos-renyi", options = {p = 0.5}'
    return parse_experiment(
        f"""
        name = "tiny"
        seed = {seed}
        rounds = {ROUNDS}
        partition = {{ clients = {num_peers} }}
        model = {{ name = "mlp", options = {{ hidden = [2] }} }}
        topology = {{ {topology} }}
        protocol = {{ name = "{protocol}" }}
        adversary = {{ {adversary} }}
        {defenses}
        """
    )


def ran(tiny: Experiment, folder: Path) -> RunDirectory:
    run = RunDirectory.create(folder, "tiny")
    train(tiny, run, InProcessGrid(tiny, run, app))
    return run


def heard(run: RunDirectory) -> list[tuple[object, ...]]:
    """Every message heard in a run, with a digest of its bits, in a fixed order."""
    return [
        (view.round, view.hop, view.lost, *content(one))
        for number in range(1, ROUNDS + 1)
        for view in views_of(run, number)
        for one in view.messages
    ]


def content(one: Heard) -> tuple[object, ...]:
    said = one.parcel
    head = (one.sender, one.receiver, one.round, one.hop, one.num_bytes)
    if said is None:
        return head
    form = (said.kind, said.chunk, said.num_chunks, said.members)
    return (*head, *form, digest(said.tensors))


def bytes_heard(run: RunDirectory, number: int) -> int:
    return sum(one.num_bytes for view in views_of(run, number) for one in view.messages)


def touches(tiny: Experiment, peers: Sequence[int]) -> str:
    """The links of some peers, as `adversary.links` takes them."""
    edges = federation_of(tiny).network.edges(1)
    pairs = sorted({(min(e), max(e)) for e in edges if e[0] in peers or e[1] in peers})
    return str([list(pair) for pair in pairs])


@settings(
    max_examples=16, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    protocol=st.sampled_from(PROTOCOLS),
    seed=st.integers(0, 50),
    num_peers=st.integers(2, 6),
    data=st.data(),
)
def test_every_byte_is_heard_once_and_a_neighbour_hears_its_own_links_alone(
    tmp_path: Path, protocol: str, seed: int, num_peers: int, data: st.DataObject
) -> None:
    me = data.draw(st.integers(0, num_peers - 1))
    make = functools.partial(experiment, protocol, seed=seed, num_peers=num_peers)
    everything = ran(make('threat = "link-tap"'), tmp_path)
    relay = ran(make('threat = "relay"'), tmp_path)
    own = make(f'threat = "curious-neighbour", peers = [{me}]')
    neighbour = ran(own, tmp_path)
    links = touches(own, [me])
    tap = ran(make(f'threat = "link-tap", links = {links}'), tmp_path)

    for record in everything.rounds()[1:]:
        assert record["bytes_between"] == bytes_heard(everything, record["round"])
    assert heard(everything) == heard(relay)
    crossed = [one for one in heard(relay) if me in (one[3], one[4])]
    assert crossed
    assert heard(neighbour) == crossed
    assert heard(tap) == crossed


def test_a_coalition_hears_what_each_of_its_members_hears(tmp_path: Path) -> None:
    tiny = experiment("d-psgd", 'threat = "coalition", peers = [1, 3]')
    run = ran(tiny, tmp_path)
    alone = [
        ran(experiment("d-psgd", f'threat = "curious-neighbour", peers = [{peer}]'), tmp_path)
        for peer in (1, 3)
    ]

    assert sorted(map(str, heard(run))) == sorted(map(str, heard(alone[0]) + heard(alone[1])))


def test_a_broadcast_is_stored_once(tmp_path: Path) -> None:
    run = ran(experiment("d-psgd", 'threat = "relay"', topology='name = "complete"'), tmp_path)

    record = read_json(run.views / "round-00001-hop-00-relay.json")
    assert len(record["messages"]) == 5 * 4
    assert {one["parcel"] for one in record["messages"]} == {f"{place:04d}" for place in range(5)}


@pytest.mark.parametrize("threat", ["relay", "coalition"])
def test_a_view_fits_its_schema(tmp_path: Path, threat: str) -> None:
    run = ran(experiment("ring-all-reduce", f'threat = "{threat}"'), tmp_path)

    paths = list(run.views.glob("*.json"))
    assert paths
    for path in paths:
        DOCUMENTS["view"].model_validate_json(path.read_text())


def test_who_hears_nothing_of_a_round_keeps_nothing_of_it(tmp_path: Path) -> None:
    run = ran(experiment("d-psgd", 'threat = "curious-neighbour", rounds = [2]'), tmp_path)

    assert views_of(run, 1) == []
    assert views_of(run, 2)


def test_a_tap_on_encrypted_links_hears_sizes_alone(tmp_path: Path) -> None:
    tls = 'defenses = [{ name = "tls" }]'
    plain = experiment("d-psgd", 'threat = "link-tap"')
    hidden = experiment("d-psgd", 'threat = "link-tap"', defenses=tls)
    relay = experiment("d-psgd", 'threat = "relay"', defenses=tls)
    runs = [ran(one, tmp_path) for one in (plain, hidden, relay)]

    assert bytes_heard(runs[0], 1) == bytes_heard(runs[1], 1) > 0
    assert all(one.parcel is None for view in views_of(runs[1], 1) for one in view.messages)
    assert heard(runs[2]) == heard(runs[0])  # the relay is an end of every link


def test_a_peer_of_the_adversarys_own_knows_what_it_computed(tmp_path: Path) -> None:
    run = ran(experiment("ring-all-reduce", 'threat = "coalition", peers = [1, 3]'), tmp_path)

    own = {
        (view.round, view.ear): view.own
        for number in (1, 2)
        for view in views_of(run, number)
        if view.own
    }
    assert sorted(own) == [(number, f"peer-{peer}") for number in (1, 2) for peer in (1, 3)]
    size = federation_of(experiment("ring-all-reduce", "")).layout.size
    assert {name: tuple(one.shape) for name, one in own[1, "peer-3"].items()} == {
        "update": (size,),
        "weights": (size,),
    }


def test_what_was_heard_after_the_last_whole_round_is_forgotten(tmp_path: Path) -> None:
    run = ran(experiment("d-psgd", 'threat = "relay"'), tmp_path)
    first = heard(run)

    forget_views(run, after=1)

    assert heard(run) == [one for one in first if one[0] == 1]
