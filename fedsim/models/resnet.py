"""Residual networks for small images (He et al., 2016, https://arxiv.org/abs/1512.03385).

The DLG variants follow Zhu et al., 2019 (https://arxiv.org/abs/1906.08935): sigmoid instead of
ReLU and no strides, so that they are twice differentiable and keep every pixel; batch
normalisation stays. They differ from it in one point: features are averaged over the whole image
before the classifier, so that any image size fits.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsim.models.drawing import draw_uniform, weights_from

Width = Annotated[int, Field(ge=1)]
Range = Annotated[float, Field(gt=0)]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, itself a 1x1 convolution where shapes change.

    Args:
        channels_in: Channels of the input.
        channels_out: Channels of the output.
        stride: Of the first convolution.
        activation: ReLU or sigmoid.
    """

    def __init__(
        self, channels_in: int, channels_out: int, stride: int, activation: type[nn.Module]
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.activation1 = activation()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.activation2 = activation()
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, channels_in, H, W) to (B, channels_out, H / stride, W / stride)."""
        inner = self.activation1(self.norm1(self.conv1(features)))
        outer: Tensor = self.activation2(self.norm2(self.conv2(inner)) + self.shortcut(features))
        return outer


class ResNet(nn.Module):
    """A 3x3 stem, stages of basic blocks whose width doubles, mean over the image, linear.

    Args:
        channels: C.
        num_classes: K.
        blocks: Number of blocks in each stage.
        width: Channels of the stem and the first stage.
        stride: Of every stage but the first.
        activation: ReLU or sigmoid.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        blocks: Sequence[int],
        width: int,
        stride: int,
        activation: type[nn.Module],
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.activation = activation()
        self.stages = nn.Sequential()
        current = width
        for stage, num_blocks in enumerate(blocks):
            for block in range(num_blocks):
                step = stride if stage > 0 and block == 0 else 1
                self.stages.append(BasicBlock(current, width * 2**stage, step, activation))
                current = width * 2**stage
        self.linear = nn.Linear(current, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (B, K) of images (B, C, H, W)."""
        features = self.stages(self.activation(self.norm(self.conv(inputs))))
        logits: Tensor = self.linear(features.mean(dim=(2, 3)))
        return logits


def resnet20(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    rng: torch.Generator,
    width: Width = 16,
) -> ResNet:
    """ResNet-20 for small images; 272,474 parameters for 3x32x32 and 10 classes.

    Args:
        input_shape: (C, H, W).
        num_classes: K.
        rng: Draws the weights, by PyTorch's own initialisation.
        width: Channels of the first stage; 64 is the ResNet20-4 of Geiping et al., 2020.
    """
    return _resnet(input_shape, num_classes, (3, 3, 3), width, rng)


def resnet18(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    rng: torch.Generator,
    width: Width = 64,
) -> ResNet:
    """ResNet-18 for small images; 11,173,962 parameters for 3x32x32 and 10 classes.

    Args:
        input_shape: (C, H, W).
        num_classes: K.
        rng: Draws the weights, by PyTorch's own initialisation.
        width: Channels of the first stage.
    """
    return _resnet(input_shape, num_classes, (2, 2, 2, 2), width, rng)


def dlg_resnet20(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    rng: torch.Generator,
    width: Width = 16,
    init_range: Range | None = None,
) -> ResNet:
    """ResNet-20 of DLG: sigmoid instead of ReLU, no strides, batch normalisation kept.

    Args:
        input_shape: (C, H, W).
        num_classes: K.
        rng: Draws the weights.
        width: Channels of the first stage.
        init_range: Draw every parameter from U(-init_range, init_range); None leaves PyTorch's
            own initialisation.
    """
    return _dlg_resnet(input_shape, num_classes, (3, 3, 3), width, init_range, rng)


def dlg_resnet18(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    rng: torch.Generator,
    width: Width = 64,
    init_range: Range | None = None,
) -> ResNet:
    """ResNet-18 of DLG: sigmoid instead of ReLU, no strides, batch normalisation kept.

    Args:
        input_shape: (C, H, W).
        num_classes: K.
        rng: Draws the weights.
        width: Channels of the first stage.
        init_range: Draw every parameter from U(-init_range, init_range); None leaves PyTorch's
            own initialisation.
    """
    return _dlg_resnet(input_shape, num_classes, (2, 2, 2, 2), width, init_range, rng)


def _resnet(
    input_shape: tuple[int, int, int],
    num_classes: int,
    blocks: tuple[int, ...],
    width: int,
    rng: torch.Generator,
    *,
    stride: int = 2,
    activation: type[nn.Module] = nn.ReLU,
) -> ResNet:
    with weights_from(rng):
        return ResNet(
            input_shape[0],
            num_classes,
            blocks=blocks,
            width=width,
            stride=stride,
            activation=activation,
        )


def _dlg_resnet(
    input_shape: tuple[int, int, int],
    num_classes: int,
    blocks: tuple[int, ...],
    width: int,
    init_range: float | None,
    rng: torch.Generator,
) -> ResNet:
    model = _resnet(input_shape, num_classes, blocks, width, rng, stride=1, activation=nn.Sigmoid)
    if init_range is not None:
        draw_uniform(model, init_range, rng)
    return model
