"""What the weight gradient of a convolution says about its input: one linear system per victim.

    dW[o, i, k] = sum_p delta[o, p] h[i, stride p + dilation k - padding]

It is the same system for all input channels of a group, and falls apart by the pixels' place modulo
the stride. Its singular vectors are the directions of h that it tells, each as well as its singular
value is large. Shapes: V victims; O and I channels out and in; L systems, one per victim and group,
and per input channel where a part of the gradient was not heard; R images per victim, c channels.
"""

import copy
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from attacks.convolution_maps import Maps

_WEAKEST = 1e-3
"""Singular values of the gradient system below this share of the largest are not read off: a
float32 gradient carries seven digits, of which this keeps four."""

_SHARP = 0.01
"""A direction is read off the gradient when its error is below this share of a pixel's spread;
otherwise its equation is weighed against the others."""

_NOTHING = 1e-7
"""Singular values below this share of the largest say nothing."""

_STRONG = 0.1
"""Directions whose singular value exceeds this share of the largest tell the spread of a pixel."""

_NEARLY = 0.7
"""A part with at least so many equations per pixel has all directions worked out, told or not."""

FLAT = 1e-3
"""Equations more precise than this count alike. Trusting them by their precision, which varies by
1e4 where a sigmoid saturates, makes the system ill-conditioned and gains nothing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Directions:
    """Directions of one channel that are not read off, and what is heard of them all the same.

    Attributes:
        images: Orthonormal, (V, k, H, W); zero where a victim has fewer.
        said: What the gradient says along each, per channel, (V, R, I, k).
        weight: How much that weighs, (V, k).
    """

    images: Tensor
    said: Tensor
    weight: Tensor


@dataclass(kw_only=True, eq=False)
class _Part:
    """The gradient equations of the pixels at one place modulo the stride.

    Attributes:
        rows: Slices of an image that hold those pixels.
        plane: Number of the plane that holds them (`Maps.fold`).
        size: Their rows and columns.
        taps: Indices of the kernel's rows and columns that see them.
        blocks: One equation per output channel and tap, (L, equations, pixels).
        basis: Orthonormal right singular vectors, (L, pixels, r).
        reader: What turns right-hand sides into coefficients along them, (L, equations, r).
        values: Squared singular values, (L, 1, r).
        read: Which directions are read off, (L, 1, r).
        weight: Weight of the others in least squares, (L, 1, r).
        reading: The directions read off, float32, filled up with zeros, (L, pixels, <= r).
        single: `basis` in float32.
    """

    rows: tuple[slice, slice]
    plane: int
    size: tuple[int, int]
    taps: tuple[list[int], list[int]]
    blocks: Tensor
    basis: Tensor
    reader: Tensor
    values: Tensor
    read: Tensor
    weight: Tensor
    reading: Tensor
    single: Tensor

    @property
    def pixels(self) -> int:
        """How many pixels there are."""
        return self.size[0] * self.size[1]


class GradientSystem:
    """The gradient equations of all victims.

    Attributes:
        maps: The convolution.
        rank: How many unknowns are read off them, per victim, (V,); set by `trust`.
        is_partial: Whether they leave something open; set by `trust`.
        is_soft: Whether some directions are weighed; set by `trust`.
    """

    rank: Tensor
    open: Tensor
    is_partial: bool
    is_soft: bool

    def __init__(self, maps: Maps, delta: Tensor, heard: Tensor | None) -> None:
        self.maps, self._heard = maps, heard
        inputs = maps.weight.shape[1]
        self._each = inputs if heard is not None else 1  # systems per victim and group
        self._lead = (len(delta), maps.groups, self._each, inputs // self._each)
        padded = functional.pad(delta, (0, 1, 0, 1))  # the last row and column mean "outside"
        down, across = (self._axis(axis, delta.shape[2 + axis]) for axis in (0, 1))
        self._parts = [
            self._part(padded, vertical, horizontal) for vertical in down for horizontal in across
        ]

    def _axis(self, axis: int, length: int) -> list[tuple[slice, list[int], Tensor]]:
        """Return, per place modulo the stride that some tap sees: pixels, taps, and whose delta.

        The last is (taps, pixels): the output through which a tap sees a pixel, or `length`.
        """
        maps = self.maps
        step, spread, before = maps.stride[axis], maps.dilation[axis], maps.before[axis]
        places = []
        for place in range(min(step, maps.size[axis])):
            pixels = torch.arange(place, maps.size[axis], step)
            taps = [
                k for k in range(maps.kernel[axis]) if (k * spread - before - place) % step == 0
            ]
            if not taps:
                continue
            first = pixels + before - torch.tensor(taps)[:, None] * spread
            source = torch.div(first, step, rounding_mode="floor")
            inside = (source >= 0) & (source < length)
            places.append((slice(place, None, step), taps, torch.where(inside, source, length)))
        return places

    def _part(
        self,
        delta: Tensor,
        vertical: tuple[slice, list[int], Tensor],
        horizontal: tuple[slice, list[int], Tensor],
    ) -> _Part:
        (rows, down, ys), (columns, across, xs) = vertical, horizontal
        ys, xs = ys.to(delta.device), xs.to(delta.device)
        blocks = delta[:, :, ys[:, None, :, None], xs[None, :, None, :]]  # (V, O, th, tw, h, w)
        victims, groups, each, _ = self._lead
        blocks = blocks.reshape(victims, groups, 1, -1, ys.shape[1] * xs.shape[1])
        taps = (down, across)
        if self._heard is not None:
            blocks = blocks * self._rows(self._heard.to(blocks)[:, None], taps).view(
                victims, groups, each, -1, 1
            )
        blocks = blocks.flatten(0, 2)
        values, basis, reader = _right_singular(blocks)
        nothing = torch.zeros_like(values)
        return _Part(
            rows=(rows, columns),
            plane=rows.start * self.maps.stride[1] + columns.start,
            size=(ys.shape[1], xs.shape[1]),
            taps=taps,
            blocks=blocks,
            basis=basis,
            reader=reader,
            values=values,
            read=nothing.bool(),
            weight=nothing,
            reading=basis[..., :0].float(),
            single=basis.float(),
        )

    def _rows(self, gradients: Tensor, taps: tuple[list[int], list[int]]) -> Tensor:
        """Take what `taps` see of gradients (V, R, O, I / groups, kh, kw): (L, R c, equations)."""
        victims, groups, each, columns = self._lead
        down, across = taps
        seen = gradients[..., down, :][..., across]
        seen = seen.reshape(
            victims, -1, groups, seen.shape[2] // groups, each, columns, *seen.shape[4:]
        )
        seen = seen.permute(0, 2, 4, 1, 5, 3, 6, 7)  # (V, groups, each, R, c, O, th, tw)
        return seen.reshape(victims * groups * each, seen.shape[3] * columns, -1)

    def _pixels(self, images: Tensor, part: _Part) -> Tensor:
        """Take the part's pixels of images (V, R, I, H, W), as (L, R c, pixels)."""
        victims, groups, each, columns = self._lead
        seen = images[..., part.rows[0], part.rows[1]]
        seen = seen.reshape(victims, -1, groups, each, columns, part.basis.shape[1])
        return seen.permute(0, 2, 3, 1, 4, 5).reshape(len(part.basis), -1, part.basis.shape[1])

    def _put(self, images: Tensor, part: _Part, pixels: Tensor) -> None:
        """Write (L, R c, pixels) back into images (V, R, I, H, W)."""
        victims, groups, each, columns = self._lead
        hole = images[..., part.rows[0], part.rows[1]]
        pixels = pixels.view(victims, groups, each, -1, columns, part.basis.shape[1])
        hole.copy_(pixels.permute(0, 3, 1, 2, 4, 5).reshape(hole.shape))

    def trust(self, gradient: Tensor, error: Tensor) -> Tensor:
        """Decide which directions are read off, and what the others weigh.

        Args:
            gradient: What the equations say, (V, O, I / groups, kh, kw).
            error: Its standard deviation, (V,).

        Returns:
            The spread of a pixel, (V,), as the strong directions tell it; 1 without any.
        """
        victims, columns = self._lead[0], self._lead[3]
        per_victim = [part.values.view(victims, -1) for part in self._parts]
        largest = torch.cat(per_victim, 1).amax(1)
        power, count = torch.zeros_like(largest), torch.zeros_like(largest)
        for part in self._parts:
            strong = part.values > _STRONG**2 * self._spread_out(largest, part)
            squares = self._coefficients(gradient[:, None], part).square().sum(1, keepdim=True)
            noise = self._spread_out(error.square(), part) / part.values.clamp_min(1e-300)
            extra = torch.where(strong, (squares - columns * noise).maximum(0.01 * squares), 0.0)
            power += extra.view(victims, -1).sum(1)
            count += columns * strong.view(victims, -1).sum(1)
        spread = torch.where(power > 0, (power / count.clamp_min(1)).sqrt(), 1.0)
        self.rank, soft = torch.zeros_like(count), []
        for part in self._parts:
            top = self._spread_out(largest, part)
            doubt = self._spread_out(error, part) / part.values.clamp_min(1e-300).sqrt()
            part.read = (part.values > _WEAKEST**2 * top) & (
                doubt <= _SHARP * self._spread_out(spread, part)
            )
            told = ~part.read & (part.values > _NOTHING**2 * top)
            part.weight = torch.where(told, FLAT / (doubt.square() + FLAT**2).sqrt(), 0.0)
            part.reading = (part.basis * part.read)[..., part.read.any(0).any(0)].float()
            self.rank += columns * part.read.view(victims, -1).sum(1)
            soft.append(told.any())
        unknowns = self._lead[1] * self._lead[2] * columns * self.maps.size[0] * self.maps.size[1]
        self.open = self.rank < unknowns
        self.is_partial = bool(self.open.any())
        self.is_soft = bool(torch.stack(soft).any())
        return spread

    def only(self, victims: Tensor) -> "GradientSystem":
        """Return the system of some victims, (n,), for the steps of conjugate gradients alone."""
        some, number = copy.copy(self), self._lead[1] * self._lead[2]
        places = (victims[:, None] * number + torch.arange(number).to(victims)).flatten()
        some._lead = (len(victims), *self._lead[1:])
        nothing = self._parts[0].values[:0]
        some._parts = [
            replace(
                part,
                blocks=nothing,
                basis=nothing,
                reader=nothing,
                values=nothing,
                weight=part.weight[places],
                reading=part.reading[places],
                single=part.single[places] if self.is_soft else nothing,
            )
            for part in self._parts
        ]
        return some

    def _spread_out(self, each: Tensor, part: _Part) -> Tensor:
        """Repeat one number per victim, (V,), for its systems: (L, 1, 1)."""
        return each.repeat_interleave(len(part.basis) // len(each))[:, None, None]

    def _coefficients(self, gradients: Tensor, part: _Part) -> Tensor:
        """Return what the equations say along each direction, (L, R c, r)."""
        return self._rows(gradients, part.taps) @ part.reader

    def apply(self, images: Tensor) -> Tensor:
        """Map images (V, I, H, W) to weight gradients (V, O, I / groups, kh, kw)."""
        victims, groups, each, columns = self._lead
        outputs, inputs = self.maps.weight.shape[:2]
        gradient = images.new_zeros(victims, outputs, inputs, *self.maps.kernel)
        for part in self._parts:
            down, across = part.taps
            rows = self._pixels(images[:, None], part) @ part.blocks.mT  # (L, c, equations)
            rows = rows.view(victims, groups, each * columns, outputs // groups, len(down), -1)
            rows = rows.transpose(2, 3).reshape(victims, outputs, inputs, len(down), len(across))
            for row, y in enumerate(down):
                gradient[:, :, :, y, across] = rows[:, :, :, row]
        return gradient

    def solve(self, gradients: Tensor) -> Tensor:
        """Return the images (V, R, I, H, W) along the directions that are read off."""
        images = gradients.new_zeros(
            *gradients.shape[:2], self.maps.groups * self.maps.weight.shape[1], *self.maps.size
        )
        for part in self._parts:
            found = self._coefficients(gradients, part) * part.read
            self._put(images, part, found @ part.basis.mT)
        return images

    def open_directions(self, most: int, gradients: Tensor) -> "Directions | None":
        """Return what spans the images of one channel that are not read off; or None.

        None where they are more than `most`, where they are not worked out, and where channels
        differ.

        Args:
            most: How many there may be.
            gradients: What the equations say, (V, R, O, I / groups, kh, kw).
        """
        if self._lead[1:3] != (1, 1):
            return None
        numbers = [part.pixels == part.values.shape[2] for part in self._parts]
        seen = sum(part.pixels for part in self._parts)
        if not all(numbers) or seen < self.maps.size[0] * self.maps.size[1]:
            return None
        counts = torch.stack([(~part.read).sum(2).max() for part in self._parts]).tolist()
        if sum(counts) > most:
            return None
        victims, _, _, columns = self._lead
        images = self._parts[0].basis.new_zeros(victims, sum(counts), 1, *self.maps.size)
        said, weights = [], []
        start = 0
        for part, count in zip(self._parts, counts, strict=True):  # the faintest come first
            left = (part.basis * ~part.read)[..., :count].mT
            here = images[:, start : start + count, 0, part.rows[0], part.rows[1]]
            here.copy_(left.reshape(here.shape))
            start += count
            told = self._coefficients(gradients, part)[..., :count]
            said.append(told.reshape(*gradients.shape[:2], columns, count))
            weights.append(part.weight[:, 0, :count])
        return Directions(
            images=images[:, :, 0], said=torch.cat(said, 3), weight=torch.cat(weights, 1)
        )

    def rows(self, gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Return equations of one victim that are equivalent in least squares, (m, I H W) and (m,).

        One per singular value and channel, instead of one per entry of the gradient (1, ...).
        """
        _, groups, each, columns = self._lead
        channels, pixels = groups * each * columns, self.maps.size[0] * self.maps.size[1]
        numbers = torch.arange(pixels).view(self.maps.size)
        equations, right = [], []
        for part in self._parts:
            size = part.values.sqrt()
            own = (part.basis * size).mT  # (L, r, the part's pixels)
            said = self._coefficients(gradients[:, None], part) * size  # (L, c, r)
            here = numbers[part.rows].flatten().to(own.device)
            whole = own.new_zeros(channels, own.shape[1], channels, pixels)
            for channel in range(channels):
                whole[channel, :, channel, here] = own[channel // columns]
            equations.append(whole.flatten(2).flatten(0, 1))
            right.append(said.reshape(channels, -1).flatten())
        return torch.cat(equations), torch.cat(right)

    def adjoint(self, gradients: Tensor) -> Tensor:
        """Map gradients (V, O, I / groups, kh, kw) to images (V, I, H, W): that of `apply`."""
        channels = self.maps.groups * self.maps.weight.shape[1]
        images = gradients.new_zeros(len(gradients), 1, channels, *self.maps.size)
        for part in self._parts:
            self._put(images, part, self._rows(gradients[:, None], part.taps) @ part.blocks)
        return images[:, 0]

    def normal(self) -> Tensor:
        """Return `adjoint` after `apply` of one victim as a matrix, (I H W, I H W)."""
        _, groups, each, columns = self._lead
        channels, pixels = groups * each * columns, self.maps.size[0] * self.maps.size[1]
        numbers = torch.arange(pixels).view(self.maps.size)
        whole = self._parts[0].blocks.new_zeros(channels, pixels, channels, pixels)
        for part in self._parts:
            here = numbers[part.rows].flatten().to(whole.device)
            square = part.blocks.mT @ part.blocks
            for channel in range(channels):
                block = whole[channel, :, channel]
                block[here[:, None], here] = square[channel // columns]
        return whole.view(channels * pixels, channels * pixels)

    def said(self, gradients: Tensor) -> list[Tensor]:
        """Return the right-hand sides of the directions that are weighed, (V, R, ...), per part."""
        return [
            self._by_victim(self._coefficients(gradients, part) * part.weight)
            for part in self._parts
        ]

    def weigh(self, planes: Tensor) -> list[Tensor]:
        """Return the weighted coefficients of planes (V, R, I S, h, w), float32, likewise."""
        sorted_planes = self._by_plane(planes)
        return [
            self._by_victim(self._of(sorted_planes, part) @ part.single * part.weight.to(planes))
            for part in self._parts
        ]

    def add_back(self, planes: Tensor, weighed: list[Tensor]) -> None:
        """Add the adjoint of `weigh` to planes (V, R, I S, h, w), in place."""
        added = self._by_plane(torch.zeros_like(planes))
        for part, coefficients in zip(self._parts, weighed, strict=True):
            columns = coefficients.transpose(1, 2).flatten(0, 1).flatten(1, 2)
            pixels = (columns * part.weight.to(planes)) @ part.single.mT
            hole = added[part.plane][..., : part.size[0], : part.size[1]]
            hole.copy_(pixels.view(hole.shape))
        planes += self._by_example(added, planes)

    def keep_open(self, planes: Tensor) -> None:
        """Project planes (V, R, I S, h, w), float32, on directions not read off, in place."""
        sorted_planes = self._by_plane(planes)
        for part in self._parts:
            pixels = self._of(sorted_planes, part)
            rest = torch.baddbmm(pixels, pixels @ part.reading, part.reading.mT, alpha=-1)
            hole = sorted_planes[part.plane][..., : part.size[0], : part.size[1]]
            hole.copy_(rest.view(hole.shape))
        planes.copy_(self._by_example(sorted_planes, planes))

    def _by_plane(self, planes: Tensor) -> Tensor:
        """Sort planes (V, R, I S, h, w) as (S, V, groups, each, R, c, h, w)."""
        victims, groups, each, columns = self._lead
        shape = (victims, -1, groups, each, columns, self.maps.stride[0] * self.maps.stride[1])
        return planes.view(*shape, *planes.shape[3:]).permute(5, 0, 2, 3, 1, 4, 6, 7).contiguous()

    def _by_example(self, sorted_planes: Tensor, like: Tensor) -> Tensor:
        """Undo `_by_plane`."""
        return sorted_planes.permute(1, 4, 2, 3, 5, 0, 6, 7).reshape(like.shape)

    def _of(self, sorted_planes: Tensor, part: _Part) -> Tensor:
        """Take the part's pixels of what `_by_plane` returned, (L, R c, pixels)."""
        pixels = sorted_planes[part.plane][..., : part.size[0], : part.size[1]]
        return pixels.reshape(math.prod(self._lead[:3]), -1, part.pixels)

    def share_read(self, like: Tensor) -> Tensor:
        """Return how much of each pixel is read off the gradient, from 0 to 1, (V, I, H, W)."""
        shares = torch.zeros_like(like)[:, None]
        for part in self._parts:
            share = part.reading.square().sum(2).double().clamp_max(1.0)
            self._put(shares, part, share[:, None].expand(-1, self._lead[3], -1))
        return shares[:, 0]

    def _by_victim(self, columns: Tensor) -> Tensor:
        """Sort (L, R c, r) as (V, R, systems, c, r)."""
        victims, groups, each, width = self._lead
        shape = (victims, groups * each, -1, width, columns.shape[2])
        return columns.view(shape).transpose(1, 2)


def _right_singular(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the singular values of (L, m, n), squared, their right vectors, and the pseudoinverse.

    Shapes: (L, 1, r); (L, n, r); (L, m, r), the left vectors over the singular values.

    By the smaller Gram matrix, in float64: squaring costs no digit that the gradient carries.
    Vectors of zero singular values are zero or arbitrary; where they are few, all are there, and
    they are orthonormal, in order of their values.
    """
    if blocks.shape[1] >= _NEARLY * blocks.shape[2]:
        values, vectors = torch.linalg.eigh(blocks.mT @ blocks)
        values = values.clamp_min(0.0).unsqueeze(1)
        inverse = torch.where(values > 0, 1 / values.clamp_min(1e-300), 0.0)
        return values, vectors, blocks @ vectors * inverse
    values, left = torch.linalg.eigh(blocks @ blocks.mT)
    told = values > _NOTHING**2 * values.amax(1, keepdim=True)  # others are rounding, or zero
    reader = left * torch.where(told, values, torch.inf).rsqrt().unsqueeze(1)
    return values.clamp_min(0.0).unsqueeze(1), blocks.mT @ reader, reader
