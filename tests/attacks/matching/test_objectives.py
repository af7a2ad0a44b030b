import pytest
import torch

from attacks.matching.objectives import chord, cosine_distance, squared_distance


def test_squared_distance_adds_over_all_tensors() -> None:
    guess = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3.0]])}
    seen = {"a": torch.tensor([0.0, 0.0]), "b": torch.tensor([[1.0]])}

    assert squared_distance(guess, seen).item() == 1 + 4 + 4


def test_cosine_distance_takes_all_tensors_as_one_vector() -> None:
    guess = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    seen = {"a": torch.tensor([4.0]), "b": torch.tensor([3.0])}

    assert cosine_distance(guess, seen).item() == pytest.approx(1 - 24 / 25)


@pytest.mark.parametrize(("scale", "expected"), [(7.0, 0.0), (-0.1, 2.0)])
def test_cosine_distance_sees_direction_alone(scale: float, expected: float) -> None:
    seen = {"a": torch.tensor([1.0, -2.0, 0.5])}

    distance = cosine_distance({"a": scale * seen["a"]}, seen)

    assert distance.item() == pytest.approx(expected, abs=1e-6)


def test_a_zero_gradient_has_no_direction_and_a_finite_slope() -> None:
    guess = torch.zeros(2, requires_grad=True)

    distance = cosine_distance({"a": guess}, {"a": torch.tensor([1.0, 0.0])})
    (slope,) = torch.autograd.grad(distance, guess)

    assert distance.item() == 1
    assert slope.isfinite().all()


def test_the_chord_is_the_root_of_the_cosine_distance() -> None:
    guess = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([4.0])}
    seen = {"a": torch.tensor([4.0, -2.0]), "b": torch.tensor([3.0])}

    assert chord(guess, seen).item() == pytest.approx(cosine_distance(guess, seen).sqrt().item())


def test_the_chord_tells_apart_what_the_cosine_rounds_off() -> None:
    seen = {"a": torch.tensor([1.0, 0.0])}
    guess = {"a": torch.tensor([1.0, 1e-5])}

    assert chord(guess, seen).item() == pytest.approx(1e-5 / 2**0.5, rel=1e-3)
    assert cosine_distance(guess, seen).item() == 0


@pytest.mark.parametrize("guess", [[0.0, 0.0], [1.0, 0.0]])
def test_the_chord_has_a_finite_slope_where_it_is_zero_or_has_no_direction(
    guess: list[float],
) -> None:
    point = torch.tensor(guess, requires_grad=True)

    (slope,) = torch.autograd.grad(chord({"a": point}, {"a": torch.tensor([1.0, 0.0])}), point)

    assert slope.isfinite().all()
