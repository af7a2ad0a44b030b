"""Ring all-reduce: sums are exact, everybody's are the same, and links carry what they must."""

from dataclasses import replace

import pytest
import torch

from fedsim.protocols.peer_protocol import MessageKind, Parcel, Post, State
from fedsim.protocols.ring_all_reduce import RingAllReduce
from fedsim.protocols.simulate import place
from tests.fedsim.protocols.playing import (
    Graph,
    complete,
    counted,
    models,
    own_starts,
    play,
    quadratics,
    random_graph,
    ring,
    same_starts,
)


@pytest.mark.parametrize("num_peers", range(2, 17))
def test_every_peer_steps_along_the_mean_exactly(num_peers: int) -> None:
    local = counted(dim=19)
    starts = [torch.zeros(19, dtype=torch.float64)] * num_peers

    (played,) = play(RingAllReduce(), ring(num_peers), starts, local, learning_rate=1.0)

    total = torch.stack([local(peer, 1, starts[peer]) for peer in range(num_peers)]).sum(0)
    for model in models(RingAllReduce(), played):
        assert torch.equal(model, -(total / num_peers))


def test_all_peers_end_with_the_same_bits() -> None:
    losses = quadratics(7)

    played = play(RingAllReduce(), ring(7), same_starts(7), losses.gradient, rounds=20)

    for one in played:
        after = models(RingAllReduce(), one)
        assert torch.equal(after, after[:1].expand(7, -1))
    torch.testing.assert_close(after[0], losses.minimum, rtol=0, atol=1.0)


@pytest.mark.parametrize("num_peers", [2, 3, 5, 8])
def test_the_next_peer_hears_one_chunk_raw_and_the_others_as_sums(num_peers: int) -> None:
    local, starts = counted(dim=40), same_starts(num_peers, 40)
    gradients = [local(peer, 1, starts[peer]) for peer in range(num_peers)]

    (played,) = play(RingAllReduce(), ring(num_peers), starts, local)

    for one in played.said:
        parcel = one.parcel
        assert one.receiver == (one.sender + 1) % num_peers
        assert parcel.chunk is not None
        whole = torch.stack([gradients[peer] for peer in parcel.members]).sum(0)
        expected = whole.tensor_split(parcel.num_chunks)[parcel.chunk]
        assert torch.equal(parcel.tensors["chunk"], expected)
        assert parcel.members[0] == parcel.chunk
        assert (parcel.kind == MessageKind.TOTAL) == (len(parcel.members) == num_peers)
    raw = [one for one in played.said if len(one.parcel.members) == 1]
    assert len(raw) == num_peers
    assert {one.hop for one in raw} == {1}


def test_a_peer_sends_each_chunk_twice_but_two_of_them_once() -> None:
    (played,) = play(RingAllReduce(), ring(5), same_starts(5), counted(dim=5))

    for peer in range(5):
        sent = [one.parcel.chunk for one in played.said if one.sender == peer]
        assert len(sent) == 2 * (5 - 1)
        assert sorted(sent.count(chunk) for chunk in range(5)) == [1, 1, 2, 2, 2]


def test_vectors_shorter_than_the_ring_are_summed_all_the_same() -> None:
    local, starts = counted(dim=3), [torch.zeros(3)] * 5

    (played,) = play(RingAllReduce(), ring(5), starts, local, learning_rate=1.0)

    total = torch.stack([local(peer, 1, starts[0]) for peer in range(5)]).sum(0)
    assert torch.equal(models(RingAllReduce(), played), (-total / 5).expand(5, -1))


def _go_on(states: list[State], members: tuple[int, ...], stop: int | None = None) -> list[State]:
    """Play hops from the first on among members of a ring of five, up to the hop `stop`."""
    protocol = RingAllReduce()
    for hop in range(1, protocol.num_hops(len(members)) if stop is None else stop):
        heard: list[dict[int, list[Parcel]]] = [{} for _ in states]
        posts: list[list[Post]] = [[] for _ in states]
        here = {
            me: replace(place(ring(5), me, 1, members, learning_rate=1.0, seed=0), hop=hop)
            for me in members
        }
        for me in members:
            states[me], said = protocol.speak(states[me], here[me])
            posts[me] = list(said)
        for me in members:
            for post in posts[me]:
                for receiver in post.to:
                    heard[receiver][me] = [post.parcel]
        for me in members:
            states[me] = protocol.listen(states[me], heard[me], here[me])
    return states


@pytest.mark.parametrize("left", [(0, 1, 3, 4), (2, 4), (1,)])
@pytest.mark.parametrize("after", [1, 2, 6, 9])
def test_members_that_are_left_begin_again_and_sum_theirs_alone(
    left: tuple[int, ...], after: int
) -> None:
    gradients = [torch.full((6,), 2.0**peer) for peer in range(5)]
    states: list[State] = [
        {"model": torch.zeros(6), "gradient": gradients[peer]} for peer in range(5)
    ]

    states = _go_on(states, (0, 1, 2, 3, 4), stop=after)
    states = _go_on(states, left)

    mean = torch.stack([gradients[peer] for peer in left]).sum(0) / len(left)
    for peer in left:
        assert torch.equal(states[peer]["model"], -mean)


def test_a_hop_of_silence_is_an_error() -> None:
    here = replace(place(ring(3), 1, 1, range(3), learning_rate=1.0, seed=0), hop=2)
    state = {"model": torch.zeros(3), "gradient": torch.ones(3), "sum": torch.ones(3)}

    with pytest.raises(ValueError, match="peer 1 heard nothing of peer 0 in hop 2"):
        RingAllReduce().listen(state, {}, here)


@pytest.mark.parametrize(
    "network",
    [
        complete(4),
        random_graph(8, 1),
        Graph(num_peers=4, links=[(0, 1), (1, 2), (2, 3)], name="line"),
        Graph(num_peers=4, links=[(0, 2), (2, 1), (1, 3), (3, 0)], name="shuffled"),
        Graph(num_peers=3, links=ring(3).links, varies=True, name="varying"),
    ],
    ids=lambda network: network.name,
)
def test_what_is_no_ring_in_order_is_refused(network: Graph) -> None:
    with pytest.raises(ValueError, match=f"needs a ring .*got '{network.name}'"):
        RingAllReduce().check(network)


@pytest.mark.parametrize("num_peers", [2, 3, 10])
def test_rings_are_accepted_one_way_or_both_ways(num_peers: int) -> None:
    RingAllReduce().check(ring(num_peers))
    RingAllReduce().check(Graph(num_peers=num_peers, links=ring(num_peers).links, directed=True))


def test_peers_that_start_apart_stay_apart() -> None:
    starts = own_starts(4)

    (played,) = play(RingAllReduce(), ring(4), starts, counted(dim=5))

    moved = models(RingAllReduce(), played) - torch.stack(starts)
    torch.testing.assert_close(moved, moved[:1].expand(4, -1))
