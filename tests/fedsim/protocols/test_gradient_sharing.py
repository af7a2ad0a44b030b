"""Gradient sharing, against its closed forms."""

from dataclasses import replace

import torch

from fedsim.protocols.gradient_sharing import GradientSharing
from fedsim.protocols.peer_protocol import MessageKind, Parcel
from fedsim.protocols.simulate import place
from tests.fedsim.protocols.playing import (
    complete,
    models,
    own_starts,
    play,
    quadratics,
    ring,
    same_starts,
)


def test_on_a_complete_graph_every_peer_takes_the_step_of_a_server() -> None:
    losses = quadratics(4)
    played = play(GradientSharing(), complete(4), same_starts(4), losses.gradient, rounds=5)

    model = same_starts(1)[0]
    for one in played:
        mean = sum(losses.gradient(peer, one.round, model) for peer in range(4)) / 4
        model = model - 0.1 * mean
        assert torch.allclose(models(GradientSharing(), one), model, rtol=1e-12, atol=0)


def test_a_neighbour_hears_the_gradient_at_the_senders_own_weights() -> None:
    losses, starts = quadratics(5), own_starts(5)

    (played,) = play(GradientSharing(), ring(5), starts, losses.gradient)

    assert len(played.said) == 10
    for one in played.said:
        expected = losses.gradient(one.sender, 1, starts[one.sender])
        assert torch.equal(one.parcel.tensors["gradient"], expected)


def test_weights_of_neighbours_that_were_not_heard_go_to_the_others() -> None:
    here = replace(
        place(ring(5), 0, 1, range(5), learning_rate=1.0, seed=0), local=lambda model: model
    )
    state, _ = GradientSharing().speak(GradientSharing().begin(torch.tensor([6.0])), here)
    four = Parcel(kind=MessageKind.GRADIENT, tensors={"gradient": torch.tensor([4.0])})

    after = GradientSharing().listen(state, {4: [four]}, here)

    torch.testing.assert_close(after["model"], torch.tensor([6.0 - (6 + 4) / 2]))
