"""Fully connected networks."""

from collections import OrderedDict
from math import prod
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from fedsim.models.drawing import weights_from

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
}


def mlp(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    rng: torch.Generator,
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (128,),
    activation: Literal["relu", "sigmoid", "tanh", "gelu", "silu", "softplus"] = "relu",
) -> nn.Sequential:
    """Fully connected network; with no hidden layer, logistic regression.

    Args:
        input_shape: Of any input that is numbers: (C, H, W) or (D,).
        num_classes: K.
        rng: Draws the weights, by PyTorch's own initialisation.
        hidden: Width of each hidden layer; may be empty.
        activation: After every hidden layer.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    width = prod(input_shape)
    with weights_from(rng):
        for index, hidden_width in enumerate(hidden, start=1):
            layers[f"linear{index}"] = nn.Linear(width, hidden_width)
            layers[f"{activation}{index}"] = ACTIVATIONS[activation]()
            width = hidden_width
        layers["linear"] = nn.Linear(width, num_classes)
    return nn.Sequential(layers)
