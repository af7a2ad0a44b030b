"""A convolution as a linear map, and its adjoint."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional


class Maps:
    """A convolution without its bias as a linear map, and the adjoint of that.

    A strided convolution is a plain one of the image's planes, one for each place modulo the
    stride: (V, I S, h, w) for S places, filled up with zeros where the stride does not divide
    the image. That, and its adjoint, are faster than `conv_transpose2d`.

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
        rows, columns = (self._axis(axis) for axis in (0, 1))
        self.plane = rows.length, columns.length
        self.is_filled = self.plane != tuple(
            n // step for n, step in zip(size, self.stride, strict=True)
        )
        self._ahead = (*columns.ahead, *rows.ahead)
        self._behind = (*columns.behind, *rows.behind)
        planar, turned = self._planar(rows, columns)
        self._planar_single, self._turned = planar.float(), turned
        self._turned_single = turned.float()

    def _axis(self, axis: int) -> "_Axis":
        """Return where the taps of one axis fall among the planes."""
        step, spread, before = self.stride[axis], self.dilation[axis], self.before[axis]
        reach = [k * spread - before for k in range(self.kernel[axis])]
        low, high = reach[0] // step, reach[-1] // step
        length = -(-self.size[axis] // step)
        padded = self.size[axis] + before + self._after[axis]
        outputs = (padded - (self.kernel[axis] - 1) * spread - 1) // step + 1
        return _Axis(
            length=length,
            places=[tap % step for tap in reach],
            shifts=[tap // step - low for tap in reach],
            taps=high - low + 1,
            ahead=(-low, outputs + high - length),
            behind=(high, length - low - outputs),
        )

    def _planar(self, rows: "_Axis", columns: "_Axis") -> tuple[Tensor, Tensor]:
        """Return the kernel on planes, (O, I S, th, tw), and the adjoint's, (I G S, O / G, ...)."""
        outputs, inputs = self.weight.shape[:2]
        (sy, sx), (ty, tx) = self.stride, (rows.taps, columns.taps)
        whole = self.weight.new_zeros(outputs, inputs, sy, sx, ty, tx)
        for y, (place, shift) in enumerate(zip(rows.places, rows.shifts, strict=True)):
            for x, (beside, offset) in enumerate(zip(columns.places, columns.shifts, strict=True)):
                whole[:, :, place, beside, shift, offset] = self.weight[:, :, y, x]
        planar = whole.view(outputs, -1, ty, tx)
        turned = planar.view(self.groups, outputs // self.groups, -1, ty, tx).transpose(1, 2)
        turned = turned.flip(-1, -2).reshape(-1, outputs // self.groups, ty, tx)
        return planar.contiguous(), turned.contiguous()

    def fold(self, images: Tensor) -> Tensor:
        """Sort images (..., I, H, W) into planes (..., I S, h, w)."""
        (high, wide), (sy, sx), lead = self.plane, self.stride, images.shape[:-3]
        if self.is_filled:
            missing = (0, wide * sx - self.size[1], 0, high * sy - self.size[0])
            images = functional.pad(images, missing)
        images = images.reshape(-1, images.shape[-3], high, sy, wide, sx)
        return images.permute(0, 1, 3, 5, 2, 4).reshape(*lead, -1, high, wide)

    def unfold(self, planes: Tensor) -> Tensor:
        """Put planes (..., I S, h, w) together to images (..., I, H, W)."""
        (high, wide), (sy, sx), lead = self.plane, self.stride, planes.shape[:-3]
        planes = planes.reshape(-1, planes.shape[-3] // (sy * sx), sy, sx, high, wide)
        images = planes.permute(0, 1, 4, 2, 5, 3).reshape(*lead, -1, high * sy, wide * sx)
        return images[..., : self.size[0], : self.size[1]]

    def forward_planes(self, planes: Tensor) -> Tensor:
        """Map planes (V, I S, h, w), float32, to outputs (V, O, H', W')."""
        return _convolve(planes, self._planar_single, self._ahead, self.groups)

    def back_planes(self, outputs: Tensor) -> Tensor:
        """Map outputs (V, O, H', W') to planes: the adjoint of `forward_planes`.

        What lies outside of the image is not zero in them.
        """
        kernel = self._turned_single if outputs.dtype == torch.float32 else self._turned
        return _convolve(outputs, kernel, self._behind, self.groups)

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
        return self.unfold(self.back_planes(outputs))

    def back_squared(self, variances: Tensor) -> Tensor:
        """Map variances at the outputs, (V, O, H', W'), to those that `back` makes of them."""
        planes = _convolve(
            variances.float(), self._turned_single.square(), self._behind, self.groups
        )
        return self.unfold(planes).double()


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """One axis of a convolution of planes.

    Attributes:
        length: Of a plane.
        places: Per tap, the place modulo the stride that it sees.
        shifts: Per tap, how far away in that plane, from 0.
        taps: How many shifts there are.
        ahead: Zeros before and after a plane that the outputs need.
        behind: Zeros before and after the outputs that the planes need.
    """

    length: int
    places: list[int]
    shifts: list[int]
    taps: int
    ahead: tuple[int, int]
    behind: tuple[int, int]


def _convolve(images: Tensor, kernel: Tensor, zeros: tuple[int, ...], groups: int) -> Tensor:
    """Convolve after padding by (left, right, top, bottom), which cuts where negative."""
    left, right, top, bottom = zeros
    if left == right >= 0 and top == bottom >= 0:
        return functional.conv2d(images, kernel, padding=(top, left), groups=groups)
    return functional.conv2d(functional.pad(images, zeros), kernel, groups=groups)


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
