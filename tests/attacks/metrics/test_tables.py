"""Comparing rows of tables."""

import itertools

import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error

from attacks.metrics.tables import (
    accuracy_of_surest,
    calibration,
    calibration_error,
    match_rows,
    random_rows,
    right,
    tolerances,
    typical_row,
)
from attacks.tabular.columns import Column, Columns

COLUMNS = Columns(
    columns=[
        Column(name="age", low=0, high=100),
        Column(name="city", categories=("Rome", "Oslo", "Kiev")),
        Column(name="pay", low=0, high=10),
    ]
)


def rows(*values: tuple[float, int, float]) -> torch.Tensor:
    found = torch.zeros(len(values), 5)
    for row, (age, city, pay) in zip(found, values, strict=True):
        row[0], row[1 + city], row[4] = age, 1, pay
    return found


def some_rows(num: int, rng: torch.Generator) -> torch.Tensor:
    cities = torch.randint(3, (num,), generator=rng).tolist()
    numbers = torch.rand(num, 2, generator=rng).tolist()
    return rows(*((age, city, pay) for city, (age, pay) in zip(cities, numbers, strict=True)))


def test_a_category_must_be_the_same_and_a_number_within_the_tolerance() -> None:
    truth = rows((0.5, 0, 0.5), (0.5, 0, 0.5))
    guess = rows((0.55, 1, 0.56), (0.44, 0, 0.45))

    assert right(guess, truth, COLUMNS, tolerance=0.05).tolist() == [
        [True, False, False],
        [False, True, True],
    ]


def test_every_feature_may_have_a_tolerance_of_its_own() -> None:
    truth, guess = rows((0.5, 0, 0.5)), rows((0.7, 0, 0.7))

    found = right(guess, truth, COLUMNS, tolerance=torch.tensor([0.3, 0.0, 0.1]))

    assert found.tolist() == [[True, True, False]]


def test_the_likeliest_category_is_the_one_guessed() -> None:
    truth, guess = rows((0.5, 2, 0.5)), torch.tensor([[0.5, 0.3, 0.3, 0.4, 0.5]])

    assert right(guess, truth, COLUMNS).all()


def test_a_guess_of_the_mean_is_in_tolerance_for_a_quarter_of_a_normal_column(
    rng: torch.Generator,
) -> None:
    sample = torch.zeros(20_000, 5)
    sample[:, 0] = 0.5 + 0.1 * torch.randn(20_000, generator=rng)

    found = tolerances(sample, COLUMNS)

    assert found.tolist() == pytest.approx([0.0319, 0, 0], rel=0.02)
    typical = typical_row(sample, COLUMNS)
    hits = right(typical, sample, COLUMNS, tolerance=found)[:, 0]
    assert hits.double().mean().item() == pytest.approx(0.25, abs=0.015)  # 5 standard errors


@pytest.mark.parametrize("num_guesses", [2, 4, 5])
def test_no_other_pairing_has_more_features_right(num_guesses: int, rng: torch.Generator) -> None:
    truths, guesses = some_rows(4, rng), some_rows(num_guesses, rng)

    found = match_rows(guesses, truths, COLUMNS, tolerance=0.3)

    few = min(num_guesses, 4)
    table = right(guesses[None], truths[:, None], COLUMNS, tolerance=0.3).sum(dim=-1)
    best = max(
        sum(int(table[truth, guess]) for truth, guess in zip(some, chosen, strict=True))
        for some in itertools.combinations(range(4), few)
        for chosen in itertools.permutations(range(num_guesses), few)
    )
    assert len(found) == few
    assert sum(int(table[pair]) for pair in found) == best


def test_among_rows_with_as_many_features_right_the_closest_are_paired() -> None:
    truths = rows((0.1, 0, 0.2), (0.9, 0, 0.2))
    guesses = rows((0.7, 0, 0.2), (0.3, 0, 0.2))

    assert match_rows(guesses, truths, COLUMNS, tolerance=0.0) == [(0, 1), (1, 0)]


def test_the_typical_row_is_the_mode_of_categories_and_the_mean_of_numbers() -> None:
    sample = rows((0.2, 1, 0.0), (0.4, 1, 0.5), (0.6, 2, 1.0))

    expected = rows((0.4, 1, 0.5))[0]
    torch.testing.assert_close(typical_row(sample, COLUMNS), expected)


def test_random_rows_are_rows_of_the_sample(rng: torch.Generator) -> None:
    sample = some_rows(3, rng)

    drawn = random_rows(sample, 50, rng=rng)

    places = (drawn[:, None] == sample).all(dim=2)
    assert places.any(dim=1).all()
    assert places.any(dim=0).all()


def test_calibration_says_how_often_each_confidence_is_right() -> None:
    confidence = torch.tensor([[0.91, 0.93, 0.95], [0.15, 0.15, 1.0]])
    correct = torch.tensor([[True, True, False], [False, True, True]])

    low, high = calibration(confidence, correct)

    assert (low.count, high.count) == (2, 4)
    assert [low.confidence, low.accuracy] == pytest.approx([0.15, 0.5])
    assert [high.confidence, high.accuracy] == pytest.approx([0.9475, 0.75])
    assert calibration_error(confidence, correct) == pytest.approx((2 * 0.35 + 4 * 0.1975) / 6)


def test_the_calibration_error_is_that_of_torchmetrics(rng: torch.Generator) -> None:
    confidence = torch.rand(200, generator=rng)
    correct = torch.rand(200, generator=rng) < confidence**2

    expected = binary_calibration_error(confidence, correct.long(), n_bins=10)

    assert calibration_error(confidence, correct) == pytest.approx(float(expected), abs=1e-6)


def test_the_surest_features_are_right_more_often_and_ties_are_shared() -> None:
    confidence = torch.tensor([0.9, 0.8, 0.8, 0.8, 0.8])
    correct = torch.tensor([True, True, False, False, False])

    found = [accuracy_of_surest(confidence, correct, share) for share in (0.1, 0.6, 1.0)]

    assert found == pytest.approx([1.0, (1 + 2 / 4) / 3, 2 / 5])
