"""Classifiers of torchvision by name."""

import pytest
import torch
from torch import nn

from fedsim.errors import ConfigError
from fedsim.models.torchvision_classifier import torchvision_classifier


@pytest.mark.parametrize(
    ("name", "size"),
    [("mobilenet_v3_small", 32), ("shufflenet_v2_x0_5", 32), ("resnet18", 24)],
)
def test_grey_images_get_a_first_convolution_that_fits(
    name: str, size: int, rng: torch.Generator
) -> None:
    model = torchvision_classifier(name, (1, size, size), 5, rng=rng).eval()

    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert first.in_channels == 1
    assert model(torch.rand(2, 1, size, size, generator=rng)).shape == (2, 5)


def test_a_vision_transformer_is_built_for_the_size_of_the_images(rng: torch.Generator) -> None:
    model = torchvision_classifier("vit_b_32", (3, 32, 32), 4, rng=rng).eval()

    assert model(torch.rand(1, 3, 32, 32, generator=rng)).shape == (1, 4)


@pytest.mark.parametrize("input_shape", [(3, 32, 64), (3, 40, 40)])
def test_a_vision_transformer_that_cannot_be_cut_into_patches_is_refused(
    input_shape: tuple[int, int, int], rng: torch.Generator
) -> None:
    with pytest.raises(ConfigError, match=r"'torchvision:vit_b_32' cannot be built for images"):
        torchvision_classifier("vit_b_32", input_shape, 4, rng=rng)
