"""The ConvNet of Inverting Gradients (Geiping et al., 2020, https://arxiv.org/abs/2003.14053)."""

from collections import OrderedDict
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from fedsim.errors import ConfigError
from fedsim.models.drawing import weights_from

MULTIPLES = (1, 2, 2, 4, 4, 4, 4, 4)
"""Channels of each convolution, in units of the width."""
POOL_AFTER = (6, 8)
POOL = 3


def convnet(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    rng: torch.Generator,
    width: Annotated[int, Field(ge=1)] = 64,
) -> nn.Sequential:
    """ConvNet of Inverting Gradients: eight 3x3 convolutions, batch normalisation, ReLU.

    2,904,970 parameters for 3x32x32, 10 classes and width 64.

    Args:
        input_shape: (C, H, W), at least 9x9 pixels: two poolings divide by three.
        num_classes: K.
        rng: Draws the weights, by PyTorch's own initialisation.
        width: Channels of the first convolution; the others have 2 and 4 times as many.

    Raises:
        ConfigError: The images are too small.
    """
    channels, height, columns = input_shape
    if min(height, columns) < POOL * POOL:
        raise ConfigError(
            f"model 'convnet' needs images of at least {POOL * POOL}x{POOL * POOL} pixels, "
            f"got {height}x{columns}; choose another model or larger images"
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    with weights_from(rng):
        for index, multiple in enumerate(MULTIPLES, start=1):
            layers[f"conv{index}"] = nn.Conv2d(channels, multiple * width, 3, padding=1)
            layers[f"norm{index}"] = nn.BatchNorm2d(multiple * width)
            layers[f"relu{index}"] = nn.ReLU()
            channels = multiple * width
            if index in POOL_AFTER:
                layers[f"pool{index}"] = nn.MaxPool2d(POOL)
                height, columns = height // POOL, columns // POOL
        layers["flatten"] = nn.Flatten()
        layers["linear"] = nn.Linear(channels * height * columns, num_classes)
    return nn.Sequential(layers)
