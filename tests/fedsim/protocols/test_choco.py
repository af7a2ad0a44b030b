"""Choco, against D-PSGD where nothing is compressed, and against consensus where much is."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fedsim.protocols.choco import Choco, largest
from fedsim.protocols.d_psgd import DecentralisedPSGD
from fedsim.protocols.peer_protocol import MessageKind, Parcel
from fedsim.protocols.simulate import place
from tests.fedsim.protocols.playing import (
    Graph,
    models,
    play,
    quadratics,
    random_graph,
    ring,
    same_starts,
)


def test_without_compression_it_is_d_psgd() -> None:
    losses, network = quadratics(6), random_graph(6, 5)

    compressed = play(Choco(share=1.0), network, same_starts(6), losses.gradient, rounds=10)
    plain = play(DecentralisedPSGD(), network, same_starts(6), losses.gradient, rounds=10)

    for one, other in zip(compressed, plain, strict=True):
        expected = models(DecentralisedPSGD(), other)
        torch.testing.assert_close(models(Choco(), one), expected, rtol=0, atol=1e-12)


def test_the_first_message_holds_the_largest_entries_of_the_first_step() -> None:
    losses, (start, *_) = quadratics(4, 10), same_starts(4, 10)

    (played,) = play(Choco(share=0.3), ring(4), same_starts(4, 10), losses.gradient)

    for one in played.said:
        step = -0.1 * losses.gradient(one.sender, 1, start)
        expected = step.abs().argsort(descending=True)[:3].sort().values
        assert torch.equal(one.parcel.tensors["places"], expected)
        torch.testing.assert_close(one.parcel.tensors["values"], step[expected])


def test_copies_that_neighbours_hold_are_the_senders_own() -> None:
    losses, network = quadratics(6, 20), random_graph(6, 5)

    for one in play(Choco(), network, same_starts(6, 20), losses.gradient, rounds=8):
        for sender, receiver in network.edges(1):
            copy = one.states[receiver][f"copy-{sender}"]
            assert torch.equal(copy, one.states[sender]["copy"])


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_peers_come_to_agree_and_keep_their_mean(share: float) -> None:
    def step_apart(peer: int, server_round: int, model: Tensor) -> Tensor:
        rng = torch.Generator().manual_seed(peer)
        away = torch.randn(len(model), generator=rng, dtype=model.dtype)
        return away if server_round == 1 else torch.zeros_like(model)

    starts = same_starts(8, 40)
    steps = torch.stack([step_apart(peer, 1, starts[0]) for peer in range(8)])
    protocol = Choco(share=share)

    played = play(protocol, ring(8), starts, step_apart, rounds=400, learning_rate=1.0)

    mean = starts[0] - steps.mean(0)
    first, last = (models(protocol, one) - mean for one in (played[0], played[-1]))
    torch.testing.assert_close(last.mean(0), torch.zeros(40).double(), rtol=0, atol=1e-12)
    # every mode shrinks by about 1 - share (1 - lambda_2) per round; lambda_2 of this ring is 0.80
    assert last.norm() < 3 * (1 - share * 0.19) ** 400 * first.norm() + 1e-12


def test_a_change_that_comes_late_mends_the_copy_and_silence_pulls_nobody() -> None:
    here = place(ring(4), 0, 1, range(4), learning_rate=0.1, seed=0)
    here = replace(here, local=torch.zeros_like)
    change = Parcel(
        kind=MessageKind.SPARSE_CHANGE,
        tensors={"values": torch.tensor([1.0]), "places": torch.tensor([2])},
    )
    protocol = Choco(share=0.5, gamma=0.3)
    state, _ = protocol.speak(protocol.begin(torch.zeros(4)), here)

    silent = protocol.listen(state, {}, here)
    late = protocol.listen(protocol.speak(silent, here)[0], {1: [change, change]}, here)
    silent_again = protocol.listen(protocol.speak(late, here)[0], {}, here)

    assert silent["model"].tolist() == [0, 0, 0, 0]
    assert late["copy-1"].tolist() == [0, 0, 2, 0]
    torch.testing.assert_close(late["model"], torch.tensor([0, 0, 0.3 * here.weights[1] * 2, 0]))
    assert torch.equal(silent_again["model"], late["model"])
    assert torch.equal(silent_again["copy-1"], late["copy-1"])


def test_the_largest_entries_are_found_and_the_first_of_those_alike() -> None:
    vector = torch.tensor([1.0, -3.0, 2.0, 3.0, -2.0, 0.0, 2.0])

    assert largest(vector, 3).tolist() == [1, 2, 3]
    assert largest(vector, 7).tolist() == list(range(7))
    assert largest(torch.zeros(5), 2).tolist() == [0, 1]


@pytest.mark.parametrize(
    "network",
    [
        Graph(num_peers=3, links=ring(3).links, varies=True, name="varying"),
        Graph(num_peers=3, links=ring(3).links, directed=True, name="one-way"),
    ],
    ids=lambda network: network.name,
)
def test_graphs_on_which_copies_make_no_sense_are_refused(network: Graph) -> None:
    with pytest.raises(ValueError, match=f"stays as it is, but '{network.name}'"):
        Choco().check(network)


@pytest.mark.parametrize("name", ["share", "gamma"])
@pytest.mark.parametrize("value", [0.0, 1.5, float("nan")])
def test_settings_without_meaning_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be above 0 and at most 1"):
        Choco(**{name: value})
