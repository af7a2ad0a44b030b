"""Normalisation inside the model."""

import torch

from fedsim.models.normalize import Normalize


def test_each_channel_is_shifted_and_scaled_by_its_own_constants() -> None:
    layer = Normalize([0.5, 0.0], [0.25, 2.0])

    found = layer(torch.ones(1, 2, 2, 2))

    assert found[0, 0].tolist() == [[2.0, 2.0], [2.0, 2.0]]
    assert found[0, 1].tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_it_has_nothing_to_learn_and_nothing_to_send() -> None:
    layer = Normalize([0.5], [0.25])

    assert list(layer.parameters()) == []
    assert layer.state_dict() == {}
