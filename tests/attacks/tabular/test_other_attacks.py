"""Attacks made for images, on the rows of a table."""

from typing import Any

import pytest
import torch
from torch import nn

from attacks.closed_form import ClosedForm
from attacks.cocktail_party import CocktailParty
from attacks.dlg import DLG
from attacks.gradinversion import GradInversion
from attacks.inverting_gradients import InvertingGradients
from attacks.linear import LinearInversion
from attacks.matching.priors import total_variation
from attacks.observation import AttackFailed
from attacks.spear import Spear

from .people import overhear, people, perceptron


@pytest.mark.parametrize(
    "attack",
    [
        ClosedForm(),
        DLG(),
        GradInversion(steps=600),
        InvertingGradients(steps=600),
        LinearInversion(),
        Spear(),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_one_row_is_found(attack: Any, rng: torch.Generator) -> None:
    row = people(1)
    seen, known = overhear(row, torch.tensor([1]), perceptron(activation=nn.ReLU))

    attack.check(known)
    found = attack(seen, known, rng=rng)

    assert found.inputs.shape == row.shape
    assert float((found.inputs - row).abs().max()) < 0.05  # of the range; by chance near 1


def test_coordinates_of_a_row_have_no_neighbours() -> None:
    assert total_variation(people(5)).item() == 0


def test_an_untrained_network_that_makes_images_is_no_start_for_rows(rng: torch.Generator) -> None:
    seen, known = overhear(people(1), torch.tensor([1]))

    with pytest.raises(AttackFailed, match="makes images, and inputs are none"):
        InvertingGradients(start="deep-image-prior")(seen, known, rng=rng)


def test_unmixing_takes_rows_as_well(rng: torch.Generator) -> None:
    seen, known = overhear(people(4), torch.tensor([0, 1, 0, 1]))

    found = CocktailParty(steps=50)(seen, known, rng=rng)

    assert found.inputs is not None
    assert found.inputs.shape == (4, 10)
