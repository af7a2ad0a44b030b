"""Tree all-reduce: sums are exact, everybody's are the same, whoever is left."""

from dataclasses import replace

import networkx as nx
import pytest
import torch

from fedsim.protocols.peer_protocol import MessageKind, Parcel, State
from fedsim.protocols.simulate import place
from fedsim.protocols.tree_all_reduce import TreeAllReduce
from tests.fedsim.protocols.playing import (
    Graph,
    complete,
    counted,
    models,
    play,
    quadratics,
    ring,
    same_starts,
)


def _tree(num_peers: int, seed: int = 0) -> Graph:
    links = nx.random_labeled_tree(num_peers, seed=seed).edges
    return Graph(num_peers=num_peers, links=list(links), name="tree")


def _line(num_peers: int) -> Graph:
    links = [(peer, peer + 1) for peer in range(num_peers - 1)]
    return Graph(num_peers=num_peers, links=links, name="line")


def _star(num_peers: int, hub: int = 0) -> Graph:
    links = [(hub, peer) for peer in range(num_peers) if peer != hub]
    return Graph(num_peers=num_peers, links=links, name="star")


@pytest.mark.parametrize(
    "network",
    [*(_tree(n, seed=n) for n in range(2, 17)), _line(5), _star(6), _star(6, hub=3)],
    ids=lambda network: f"{network.name}-{network.num_peers}",
)
def test_every_peer_steps_along_the_mean_exactly(network: Graph) -> None:
    TreeAllReduce().check(network)
    local, num_peers = counted(dim=6), network.num_peers
    starts = [torch.zeros(6, dtype=torch.float64)] * num_peers

    (played,) = play(TreeAllReduce(), network, starts, local, learning_rate=1.0)

    total = torch.stack([local(peer, 1, starts[peer]) for peer in range(num_peers)]).sum(0)
    for model in models(TreeAllReduce(), played):
        assert torch.equal(model, -(total / num_peers))


def test_all_peers_end_with_the_same_bits() -> None:
    losses = quadratics(9)

    for one in play(TreeAllReduce(), _tree(9), same_starts(9), losses.gradient, rounds=10):
        after = models(TreeAllReduce(), one)
        assert torch.equal(after, after[:1].expand(9, -1))


def test_messages_are_sums_of_the_members_that_they_name() -> None:
    local, starts = counted(dim=6), same_starts(9, 6)

    (played,) = play(TreeAllReduce(), _tree(9), starts, local)

    assert len(played.said) == 2 * (9 - 1)
    for one in played.said:
        members = one.parcel.members
        expected = torch.stack([local(peer, 1, starts[0]) for peer in members]).sum(0)
        assert torch.equal(one.parcel.tensors["chunk"], expected)
        if one.parcel.kind == MessageKind.TOTAL:
            assert sorted(members) == list(range(9))
        else:
            assert members[0] == one.sender
    leaves = {peer for peer in range(1, 9) if nx.Graph(_tree(9).links).degree(peer) == 1}
    assert {one.sender for one in played.said if len(one.parcel.members) == 1} == leaves


def test_a_round_has_as_many_hops_as_the_tree_is_deep() -> None:
    protocol = TreeAllReduce()

    assert protocol.num_hops(6, _star(6).edges(1)) == 3
    assert protocol.num_hops(6, _star(6, hub=3).edges(1)) == 5
    assert protocol.num_hops(6, _line(6).edges(1)) == 11
    assert protocol.num_hops(6) == 11
    assert protocol.num_hops(1, _line(6).edges(1)) == 2


def _go_on(
    network: Graph, states: list[State], members: tuple[int, ...], stop: int | None = None
) -> list[State]:
    """Play hops from the first on among members, up to the hop `stop`."""
    protocol = TreeAllReduce()
    num_hops = protocol.num_hops(len(members), network.edges(1))
    for hop in range(1, min(stop or num_hops, num_hops)):
        here = {
            me: replace(place(network, me, 1, members, learning_rate=1.0, seed=0), hop=hop)
            for me in members
        }
        heard: list[dict[int, list[Parcel]]] = [{} for _ in states]
        for me in members:
            states[me], posts = protocol.speak(states[me], here[me])
            for post in posts:
                for receiver in post.to:
                    heard[receiver][me] = [post.parcel]
        for me in members:
            states[me] = protocol.listen(states[me], heard[me], here[me])
    return states


@pytest.mark.parametrize("network", [_tree(7, seed=2), _line(7), _star(7), _star(7, hub=3)])
@pytest.mark.parametrize("stop", [2, 3, 13])
@pytest.mark.parametrize(
    "left", [(0, 1, 2, 4, 5, 6), (1, 2, 3, 4, 5, 6), (2, 4, 6), (3, 5), (6,)], ids=str
)
def test_members_that_are_left_begin_again_and_sum_theirs_alone(
    network: Graph, left: tuple[int, ...], stop: int
) -> None:
    states: list[State] = [
        {"model": torch.zeros(2), "gradient": torch.full((2,), 2.0**peer)} for peer in range(7)
    ]

    states = _go_on(network, states, tuple(range(7)), stop=stop)
    states = _go_on(network, states, left)

    total = torch.full((2,), sum(2.0**peer for peer in left))
    for peer in left:
        assert torch.equal(states[peer]["model"], -(total / len(left)))


def test_a_hop_of_silence_is_an_error() -> None:
    here = replace(place(_line(2), 0, 1, range(2), learning_rate=1.0, seed=0), hop=1)

    with pytest.raises(ValueError, match="peer 0 heard nothing of peer 1 in hop 1"):
        TreeAllReduce().listen({"model": torch.zeros(2), "sum": torch.ones(2)}, {}, here)


@pytest.mark.parametrize(
    "network",
    [
        ring(4),
        complete(4),
        Graph(num_peers=4, links=[(0, 1), (2, 3)], name="parts"),
        Graph(num_peers=4, links=[(0, 1), (1, 2), (2, 0)], name="loop-and-one"),
        Graph(num_peers=2, links=[(0, 1)], directed=True, name="one-way"),
        Graph(num_peers=2, links=[(0, 1)], varies=True, name="varying"),
    ],
    ids=lambda network: network.name,
)
def test_what_is_no_tree_is_refused(network: Graph) -> None:
    with pytest.raises(ValueError, match=f"needs a tree, .*got '{network.name}'"):
        TreeAllReduce().check(network)
