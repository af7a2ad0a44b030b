"""The LeNet of Deep Leakage from Gradients (Zhu et al., 2019, https://arxiv.org/abs/1906.08935)."""

from collections import OrderedDict
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from fedsim.models.drawing import draw_uniform, weights_from

CHANNELS = 12
STRIDES = (2, 2, 1)


def dlg_lenet(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    rng: torch.Generator,
    init_range: Annotated[float, Field(gt=0)] = 0.5,
) -> nn.Sequential:
    """LeNet of DLG: three 5x5 convolutions with sigmoid and one linear layer.

    Twice differentiable everywhere. 85,036 parameters for 3x32x32 and 100 classes.

    Args:
        input_shape: (C, H, W).
        num_classes: K.
        rng: Draws every weight and bias.
        init_range: They come from U(-init_range, init_range). The published 0.5 is what makes
            this network easy to invert; PyTorch's own initialisation gives vanishing gradients.
    """
    channels, height, width = input_shape
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    with weights_from(rng):
        for index, stride in enumerate(STRIDES, start=1):
            layers[f"conv{index}"] = nn.Conv2d(channels, CHANNELS, 5, stride=stride, padding=2)
            layers[f"sigmoid{index}"] = nn.Sigmoid()
            channels, height, width = CHANNELS, -(-height // stride), -(-width // stride)
        layers["flatten"] = nn.Flatten()
        layers["linear"] = nn.Linear(channels * height * width, num_classes)
    model = nn.Sequential(layers)
    draw_uniform(model, init_range, rng)
    return model
