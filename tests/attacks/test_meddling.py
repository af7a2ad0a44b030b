"""What an active neighbour says: the victim's average comes to what the adversary wants."""

import pytest
import torch
from torch import Tensor

from attacks.meddling import MEDDLING, Echo, StateOverride

WEIGHTS = {0: 0.25, 1: 0.3, 2: 0.15, 3: 0.3}
"""Of victim 1, for the adversary at 0, itself, and two others."""


@pytest.fixture
def said(rng: torch.Generator) -> dict[int, Tensor]:
    """What all but the adversary say."""
    return {peer: torch.randn(7, generator=rng) for peer in (1, 2, 3)}


def average(said: dict[int, Tensor]) -> Tensor:
    return sum((WEIGHTS[peer] * said[peer] for peer in WEIGHTS), torch.zeros(7))


def test_an_average_of_which_all_is_heard_comes_to_the_target(
    said: dict[int, Tensor], rng: torch.Generator
) -> None:
    target = torch.randn(7, generator=rng)

    lie = StateOverride()(said, WEIGHTS, me=0, victim=1, target=target)

    torch.testing.assert_close(average({**said, 0: lie}), target)


def test_what_is_not_heard_stays_in_the_average_with_its_weight(
    said: dict[int, Tensor], rng: torch.Generator
) -> None:
    target = torch.randn(7, generator=rng)
    heard = {peer: said[peer] for peer in (1, 2)}

    lie = StateOverride()(heard, WEIGHTS, me=0, victim=1, target=target)

    missed = WEIGHTS[3] * (said[3] - said[1])
    torch.testing.assert_close(average({**said, 0: lie}), target + missed)


def test_an_echo_is_what_the_victim_says(said: dict[int, Tensor]) -> None:
    assert Echo()(said, WEIGHTS, me=0, victim=1, target=said[2]) is said[1]


def test_the_names_of_experiments_are_those_of_the_table() -> None:
    assert {name: one.takes_target for name, one in MEDDLING.items()} == {
        "echo": False,
        "state-override": True,
    }
