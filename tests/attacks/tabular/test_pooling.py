"""Guesses in one order, and how certain they are together."""

import pytest
import torch

from attacks.tabular.columns import Column, Columns
from attacks.tabular.pooling import aligned, confidence

from .people import people


def test_shuffled_guesses_are_put_in_the_order_of_the_first(rng: torch.Generator) -> None:
    rows = people(6)
    guesses = torch.stack(
        [
            (rows + 0.05 * torch.rand(rows.shape, generator=rng))[order]
            for order in (torch.randperm(6, generator=rng) for _ in range(4))
        ]
    )

    found = aligned(guesses, [torch.zeros(6, dtype=torch.int64)] * 4)

    assert torch.equal(found[0], guesses[0])
    assert float((found - guesses[0]).abs().max()) < 0.05  # else it would be near 1


def test_rows_are_exchanged_within_their_group_alone() -> None:
    one, other = people(2)
    guesses = torch.stack([torch.stack([one, other]), torch.stack([other, one])])

    found = aligned(guesses, [torch.tensor([0, 1])] * 2)

    assert torch.equal(found, guesses)


def test_confidence_is_one_over_the_number_of_values_that_are_as_good() -> None:
    columns = Columns(
        columns=[Column(name="city", categories=("Rome", "Oslo", "Kiev", "Bern"))] * 3
    )
    eye = torch.eye(4)
    guesses = torch.stack(
        [torch.cat((eye[0], eye[number % 2], eye[number])) for number in range(4)]
    )

    found = confidence(guesses[:, None], columns)

    assert found[0].tolist() == pytest.approx([1, 1 / 2, 1 / 4])


def test_confidence_in_a_number_falls_with_how_far_guesses_spread() -> None:
    columns = Columns(columns=[Column(name="age"), Column(name="pay"), Column(name="rent")])
    spread = torch.tensor([0.0, 0.1, 0.4])
    guesses = 0.5 + torch.tensor([-1.0, 1.0])[:, None, None] * spread

    same, near, far = confidence(guesses, columns)[0].tolist()

    assert same == 1
    # the entropy of a normal distribution of standard deviation 0.1 is that of an even one of
    # width 0.1 * 4.133
    assert near == pytest.approx(0.1 / 0.4133, rel=1e-3)
    assert far == pytest.approx(near / 4)
