import pytest
import torch
from torch import Tensor

from attacks.matching.coordinates import Coordinates

LIKE = torch.zeros((), dtype=torch.float64)


def test_zero_is_the_middle_of_the_range() -> None:
    coordinates = Coordinates((3, 8, 6), (-1.0, 3.0), like=LIKE)

    inputs = coordinates.inputs(torch.zeros(2 * coordinates.size).to(LIKE))

    assert inputs.shape == (2, 3, 8, 6)
    torch.testing.assert_close(inputs, torch.ones(2, 3, 8, 6).to(LIKE))


@pytest.mark.parametrize("input_shape", [(1, 8, 8), (3, 5, 4), (7,), (2, 6)])
def test_every_input_has_coordinates(input_shape: tuple[int, ...], rng: torch.Generator) -> None:
    coordinates = Coordinates(input_shape, (0.0, 1.0), like=LIKE)
    unit = torch.eye(coordinates.size).to(LIKE)
    columns = (coordinates.inputs(unit.flatten()) - coordinates.middle).flatten(1)
    wanted = torch.rand(coordinates.size, generator=rng).to(LIKE)

    z = torch.linalg.solve(columns.T, wanted - 0.5)

    torch.testing.assert_close(coordinates.inputs(z).flatten(), wanted)


def test_waves_are_orthogonal_and_slow_ones_weigh_more() -> None:
    coordinates = Coordinates((1, 8, 8), (0.0, 1.0), like=LIKE)
    unit = torch.eye(coordinates.size).to(LIKE)

    waves = (coordinates.inputs(unit.flatten()) - 0.5).flatten(1)

    norms = waves.square().sum(dim=1)
    torch.testing.assert_close(waves @ waves.T, torch.diag(norms))
    assert norms.argmax() == 0
    assert norms[0] == 1
    assert norms.argmin() == 63


def test_brightness_weighs_more_than_colour() -> None:
    weights = Coordinates((3, 4, 4), (0.0, 1.0), like=LIKE).weights

    assert (weights[0] > weights[1]).all()
    torch.testing.assert_close(weights[1], weights[2])


def spread(inputs: Tensor) -> float:
    return float(inputs.square().mean().sqrt())


@pytest.mark.parametrize("input_shape", [(1, 8, 8), (3, 32, 32), (100,)])
def test_clouds_vary_by_a_quarter_of_the_range(
    input_shape: tuple[int, ...], rng: torch.Generator
) -> None:
    coordinates = Coordinates(input_shape, (-2.0, 2.0), like=LIKE)

    inputs = coordinates.inputs(coordinates.clouds(500, rng=rng))

    assert spread(inputs) == pytest.approx(1.0, rel=0.05)  # 500 draws: 3 % at most
