"""A convolution as a linear map, and its adjoint."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional


class Maps:
    """A convolution without its bias as a linear map, and the adjoint of that.

    The adjoint of a strided convolution is a plain convolution that gives each place modulo the
    stride as a channel of its own, which is three times as fast as `conv_transpose2d`.

    Args:
        conv: Padded with zeros.
        size: (H, W) of its input.
    """

    def __init__(self, conv: nn.Conv2d, size: tuple[int, int]) -> None:
        self.size, self.groups = size, conv.groups
        self.stride = cast("tuple[int, int]", conv.stride)
        self.dilation = cast("tuple[int, int]", conv.dilation)
        self.kernel = cast("tuple[int, int]", conv.kernel_size)
        self.before, self._after = _padding(conv)
        self.weight = conv.weight.detach().double()
        self._single = self.weight.float()
        self._turned, self._taps = self._turn()
        self._turned_single = self._turned.float()

    def _turn(self) -> tuple[Tensor, tuple[int, int]]:
        """Return the adjoint's kernel (I S, O / groups, th, tw) for S places, and (th, tw)."""
        (kh, kw), (down, across) = self.kernel, self.dilation
        outputs, inputs = self.weight.shape[:2]
        tall, wide = ((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))
        sy, sx = self.stride
        ty, tx = -(-tall // sy), -(-wide // sx)
        whole = self.weight.new_zeros(outputs, inputs, ty * sy, tx * sx)
        whole[:, :, :tall:down, :wide:across] = self.weight.view(outputs, inputs, kh, kw)
        parts = whole.view(self.groups, outputs // self.groups, inputs, ty, sy, tx, sx)
        turned = parts.permute(0, 2, 4, 6, 1, 3, 5).flip(-1, -2)
        return turned.reshape(-1, outputs // self.groups, ty, tx).contiguous(), (ty, tx)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (V, I, H, W) to outputs (V, O, H', W'), in their precision."""
        weight = self._single if images.dtype == torch.float32 else self.weight
        padding = self.before
        if self.before != self._after:
            (top, left), (bottom, right) = self.before, self._after
            images, padding = functional.pad(images, (left, right, top, bottom)), (0, 0)
        return functional.conv2d(
            images,
            weight,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
        )

    def per_channel(self, images: Tensor) -> Tensor:
        """Map float32 images (N, 1, H, W), put into each channel in turn: (N, O, I, H', W')."""
        outputs, inputs, *kernel = self._single.shape
        (top, left), (bottom, right) = self.before, self._after
        every = functional.conv2d(
            functional.pad(images, (left, right, top, bottom)),
            self._single.view(outputs * inputs, 1, *kernel),
            stride=self.stride,
            dilation=self.dilation,
        )
        return every.view(len(images), outputs, inputs, *every.shape[2:])

    def back(self, outputs: Tensor) -> Tensor:
        """Map outputs (V, O, H', W') to images (V, I, H, W): the adjoint of `forward`."""
        kernel = self._turned_single if outputs.dtype == torch.float32 else self._turned
        (ty, tx), (sy, sx), (height, width) = self._taps, self.stride, self.size
        planes = functional.conv2d(outputs, kernel, padding=(ty - 1, tx - 1), groups=self.groups)
        victims, _, high, wide = planes.shape
        planes = planes.view(victims, -1, sy, sx, high, wide).permute(0, 1, 4, 2, 5, 3)
        image = planes.reshape(victims, -1, high * sy, wide * sx)
        top, left = self.before
        image = image[..., top : top + height, left : left + width]
        below, beside = height - image.shape[-2], width - image.shape[-1]
        return functional.pad(image, (0, beside, 0, below)) if below or beside else image

    def back_squared(self, variances: Tensor) -> Tensor:
        """Map variances at the outputs, (V, O, H', W'), to those that `back` makes of them."""
        turned = self._turned_single
        self._turned_single = turned.square()
        try:
            return self.back(variances.float()).double()
        finally:
            self._turned_single = turned


def _padding(conv: nn.Conv2d) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the zeros (above, to the left) and (below, to the right)."""
    if not isinstance(conv.padding, str):
        vertical, horizontal = conv.padding
        return (vertical, horizontal), (vertical, horizontal)
    if conv.padding == "valid":
        return (0, 0), (0, 0)
    total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    above, left = (zeros // 2 for zeros in total)
    return (above, left), (total[0] - above, total[1] - left)
