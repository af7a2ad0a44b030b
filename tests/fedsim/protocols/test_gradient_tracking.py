"""Gradient tracking, against what its trackers must sum to, and where it must end."""

import pytest
import torch

from fedsim.protocols.d_psgd import DecentralisedPSGD
from fedsim.protocols.gradient_tracking import GradientTracking
from tests.fedsim.protocols.playing import (
    models,
    own_starts,
    play,
    quadratics,
    random_graph,
    ring,
)


def test_the_first_tracker_is_the_first_gradient() -> None:
    losses, starts = quadratics(5), own_starts(5)

    (played,) = play(GradientTracking(), ring(5), starts, losses.gradient)

    for one in played.said:
        expected = losses.gradient(one.sender, 1, starts[one.sender])
        assert torch.equal(one.parcel.tensors["tracker"], expected)
        assert torch.equal(one.parcel.tensors["model"], starts[one.sender])


def test_trackers_sum_to_the_gradients_of_all_peers_in_every_round() -> None:
    losses = quadratics(7)

    played = play(GradientTracking(), random_graph(7, 3), own_starts(7), losses.gradient, rounds=9)

    for one in played:
        said = {message.sender: message.parcel.tensors for message in one.said}
        trackers = sum(said[peer]["tracker"] for peer in range(7))
        gradients = sum(losses.gradient(peer, one.round, said[peer]["model"]) for peer in range(7))
        torch.testing.assert_close(trackers, gradients, rtol=0, atol=1e-12)


def test_a_constant_step_reaches_the_minimum_of_the_sum_where_d_psgd_does_not() -> None:
    losses = quadratics(6)

    def error(protocol: GradientTracking | DecentralisedPSGD) -> float:
        last = play(protocol, ring(6), own_starts(6), losses.gradient, rounds=600)[-1]
        return float((models(protocol, last) - losses.minimum).abs().max())

    assert error(GradientTracking()) < 1e-10
    assert error(DecentralisedPSGD()) > 1e-2  # its bias is of the order of the step, 0.1


def test_a_directed_graph_is_refused() -> None:
    with pytest.raises(ValueError, match="undirected graph, got 'chords'"):
        GradientTracking().check(random_graph(5, 0, directed=True))
