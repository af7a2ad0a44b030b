"""Gossip: who meets whom, and what it does to the mean."""

from collections import Counter
from dataclasses import replace
from typing import Literal

import pytest
import torch

from fedsim.protocols.gossip import Gossip
from fedsim.protocols.peer_protocol import MessageKind, Parcel
from fedsim.protocols.simulate import PlayedRound, place
from tests.fedsim.protocols.playing import (
    Graph,
    complete,
    models,
    nothing_to_learn,
    own_starts,
    play,
    quadratics,
    random_graph,
    ring,
)


def _said(played: PlayedRound, hop: int) -> dict[int, int]:
    """Return who spoke to whom in a hop; nobody speaks twice."""
    said = [(one.sender, one.receiver) for one in played.said if one.hop == hop]
    assert max(Counter(sender for sender, _ in said).values(), default=0) <= 1
    return dict(said)


def test_push_averages_all_that_was_heard_with_ones_own() -> None:
    losses, starts = quadratics(8), own_starts(8)
    stepped = [starts[peer] - 0.1 * losses.gradient(peer, 1, starts[peer]) for peer in range(8)]

    (played,) = play(Gossip(), complete(8), starts, losses.gradient)

    assert sorted(_said(played, 0)) == list(range(8))
    for peer, model in enumerate(models(Gossip(), played)):
        heard = [one.sender for one in played.said if one.receiver == peer]
        expected = torch.stack([stepped[one] for one in (peer, *heard)]).mean(0)
        torch.testing.assert_close(model, expected)


def test_pull_averages_half_and_half_with_the_one_asked() -> None:
    losses, starts = quadratics(8), own_starts(8)
    stepped = [starts[peer] - 0.1 * losses.gradient(peer, 1, starts[peer]) for peer in range(8)]
    protocol = Gossip(style="pull")

    (played,) = play(protocol, ring(8), starts, losses.gradient)

    asked = _said(played, 0)
    answers = {(one.sender, one.receiver) for one in played.said if one.hop == 1}
    assert answers == {(peer, by) for by, peer in asked.items()}
    for peer, model in enumerate(models(protocol, played)):
        torch.testing.assert_close(model, (stepped[peer] + stepped[asked[peer]]) / 2)


def test_push_pull_conserves_the_mean_and_both_of_a_pair_end_alike() -> None:
    protocol, starts = Gossip(style="push-pull"), own_starts(12)

    played = play(protocol, random_graph(12, 0), starts, rounds=100)

    pairs = 0
    for one in played:
        after = models(protocol, one)
        mean = torch.stack(starts).mean(0)
        torch.testing.assert_close(after.mean(0), mean, rtol=0, atol=1e-12)
        agreed, replies = _said(one, 1), _said(one, 2)
        assert replies == {partner: peer for peer, partner in agreed.items()}
        assert not set(agreed) & set(replies)
        pairs += len(agreed)
        for peer, partner in agreed.items():
            assert torch.equal(after[peer], after[partner])
    assert pairs > 100  # about one pair in six peers and round, 200
    torch.testing.assert_close(after, mean.expand(12, -1), rtol=0, atol=0.05)  # from 2 apart


def test_pairs_meet_often_and_are_drawn_anew() -> None:
    protocol = Gossip(style="push-pull")

    played = play(protocol, complete(20), own_starts(20), rounds=50)

    met = sum(2 * len(_said(one, 2)) for one in played) / (50 * 20)
    assert 0.3 < met < 0.5  # 1 - exp(-1/2) = 0.39 of many peers on a complete graph
    assert len({tuple(_said(one, 2).items()) for one in played}) == 50


@pytest.mark.parametrize("style", ["push", "pull", "push-pull"])
def test_peers_come_to_agree(style: Literal["push", "pull", "push-pull"]) -> None:
    protocol = Gossip(style=style)

    last = play(protocol, ring(6), own_starts(6), nothing_to_learn, rounds=200)[-1]

    after = models(protocol, last)
    assert (after - after.mean(0)).abs().max() < 1e-3


def test_whom_peers_meet_follows_from_the_seed() -> None:
    def met(seed: int) -> list[dict[int, int]]:
        return [
            _said(one, 0) for one in play(Gossip(), ring(9), own_starts(9), rounds=5, seed=seed)
        ]

    assert met(0) == met(0)
    assert met(0) != met(1)


def test_nobody_averages_with_one_who_asked_and_then_fell_silent() -> None:
    protocol = Gossip(style="push-pull")
    listens = next(
        here
        for number in range(1, 99)
        for here in [place(ring(3), 0, number, range(3), learning_rate=0.1, seed=0)]
        if not protocol._asked(here)
    )
    state = protocol.listen(
        {"model": torch.ones(2)}, {2: [Parcel(kind=MessageKind.REQUEST)]}, listens
    )
    state, (post,) = protocol.speak(state, replace(listens, hop=1))
    state = protocol.listen(state, {}, replace(listens, hop=1))
    state, said = protocol.speak(state, replace(listens, hop=2))
    state = protocol.listen(state, {}, replace(listens, hop=2))

    assert post.to == (2,)
    assert not said
    assert list(state) == ["model"]
    assert torch.equal(state["model"], torch.ones(2))


def test_models_that_nobody_asked_for_are_ignored() -> None:
    unasked = Parcel(kind=MessageKind.MODEL, tensors={"model": torch.zeros(2)})
    for style in ("pull", "push-pull"):
        protocol = Gossip(style=style)
        here = place(ring(5), 0, 1, range(5), learning_rate=0.1, seed=0)
        others = [peer for peer in here.senders if peer not in protocol._asked(here)]
        heard = {peer: [unasked] for peer in others}
        state = protocol.listen({"model": torch.ones(2)}, heard, replace(here, hop=1))
        state = protocol.listen(state, heard, replace(here, hop=2))
        assert torch.equal(state["model"], torch.ones(2))


def test_a_peer_without_neighbours_talks_to_nobody() -> None:
    alone = Graph(num_peers=2, links=[])

    (played,) = play(Gossip(), alone, own_starts(2))

    assert not played.said


def test_only_push_goes_one_way() -> None:
    one_way = Graph(num_peers=3, links=ring(3).links, directed=True, name="one-way")

    Gossip().check(one_way)
    with pytest.raises(ValueError, match="gossip by pull needs an undirected graph"):
        Gossip(style="pull").check(one_way)
