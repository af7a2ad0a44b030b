import pytest
import torch

from attacks.matching.priors import total_variation


def test_a_constant_image_does_not_vary() -> None:
    assert total_variation(torch.full((2, 3, 4, 5), 0.3)).item() == 0


def test_a_checkerboard_varies_by_one_everywhere_in_both_directions() -> None:
    board = (torch.arange(6)[:, None] + torch.arange(6)) % 2

    assert total_variation(board.float()[None, None]).item() == 2


def test_a_ramp_has_the_mean_of_its_steps() -> None:
    image = torch.tensor([[[[0.0, 0.5, 1.0], [0.0, 0.5, 1.0]]]])  # 0.5 across, 0 down

    assert total_variation(image).item() == pytest.approx(0.5)


def test_one_pixel_has_no_neighbours() -> None:
    assert total_variation(torch.ones(1, 1, 1, 1)).item() == 0
