"""The distance of a gradient from signs."""

import torch

from attacks.matching.signs import sign_distance

SEEN = {"w": torch.tensor([[0.5, -0.5], [0.5, 0.0]]), "b": torch.tensor([-9.0])}
RIGHT = {"w": torch.tensor([[1.0, -3.0], [0.1, 7.0]]), "b": torch.tensor([-1e-6])}


def test_it_is_zero_where_all_signs_agree_whatever_the_magnitudes() -> None:
    assert float(sign_distance(RIGHT, SEEN)) < 1e-30


def test_it_is_one_where_none_agrees() -> None:
    wrong = {name: -tensor for name, tensor in RIGHT.items()}
    assert float(sign_distance(wrong, SEEN)) == 1


def test_it_is_the_share_of_wrong_magnitude_in_each_tensor_by_its_coordinates() -> None:
    guess = {"w": torch.tensor([[1.0, 3.0], [0.0, 7.0]]), "b": torch.tensor([-1e-6])}
    assert float(sign_distance(guess, SEEN)) == 3 / 4 * 3 / 4  # 3 of 4 are wrong in 3 of 4


def test_a_gradient_of_zero_is_half_wrong_and_has_no_bad_slope() -> None:
    guess = {name: torch.zeros_like(tensor).requires_grad_() for name, tensor in SEEN.items()}
    distance = sign_distance(guess, SEEN)
    slopes = torch.autograd.grad(distance, list(guess.values()))
    assert float(distance.detach()) == 0.5
    assert not any(slope.isnan().any() for slope in slopes)
