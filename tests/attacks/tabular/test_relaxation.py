"""Points that stand for rows."""

import torch

from attacks.tabular.relaxation import decided, relaxed

from .people import COLUMNS, people


def test_whatever_a_point_is_it_stands_for_chances_and_numbers_in_range(
    rng: torch.Generator,
) -> None:
    points = 9 * torch.randn(3, 4, COLUMNS.width, generator=rng)

    rows = relaxed(points, COLUMNS)

    assert rows.shape == points.shape
    assert bool(((rows >= 0) & (rows <= 1)).all())
    for column, place in COLUMNS.places():
        if column.categories:
            torch.testing.assert_close(rows[..., place].sum(dim=-1), torch.ones(3, 4))
        else:
            torch.testing.assert_close(rows[..., place], points[..., place].sigmoid())


def test_a_decided_row_is_one_hot_and_keeps_its_numbers() -> None:
    rows = people(5)
    blurred = 0.6 * rows + 0.02
    blurred[:, [0, 6]] = rows[:, [0, 6]]

    assert torch.equal(decided(blurred, COLUMNS), rows)
