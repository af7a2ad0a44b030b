"""The input of a convolution, from its output, the loss's derivative there and its weight gradient.

Two kinds of equations, both linear in the input h:

    gradient:  dW[o, i, k] = sum_p delta[o, p] h[i, stride p + k - padding]
    forward:   a[o, p] = b[o] + sum_ik W[o, i, k] h[i, stride p + k - padding]

The gradient equations are one system for all input channels. Directions of h that it determines
are read off it; the others are found from the forward equations by conjugate gradients in that
subspace (CGLS; Hestenes and Stiefel, 1952), damped by how uncertain the equations are. Where
neither kind says anything, h stays at `centre`.

A strided convolution is a plain one of an image folded by the stride, each pixel modulo the stride
a channel of its own. Everything here happens on that folded image, shape (S, I, h, w) for S
remainders; its border that is padding in the original is zero and stays so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

_WEAKEST = 1e-3
"""Singular values of the gradient system below this share of the largest are left to the forward
equations: a float32 gradient carries seven digits, of which this keeps four."""

_FLAT = 1e-3
"""Forward equations more precise than this count alike. Trusting them by their precision, which
varies by 1e4 where a sigmoid saturates, makes the system ill-conditioned and gains nothing."""

_MAX_STEPS = 300
"""Steps of conjugate gradients; well-posed layers need 30 to 100."""

_ENOUGH = 3e-5
"""Conjugate gradients end when the slope has fallen to this share; float32 allows little more."""

_CHECK_EVERY = 5
"""Steps between looks at the progress, each of which waits for the device."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What is known about one convolution's run, all float64.

    Attributes:
        output: What it returned, (O, H', W').
        error: Standard deviation of the error of `output`, (O, H', W').
        delta: Derivative of the loss with respect to `output`, (O, H', W').
        gradient: Derivative with respect to the weight, (O, I, kh, kw).
        gradient_error: Standard deviation of the error of `gradient`.
    """

    output: Tensor
    error: Tensor
    delta: Tensor
    gradient: Tensor
    gradient_error: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """An input that explains the evidence.

    Attributes:
        inputs: The input, (I, H, W), float64.
        error: Standard deviation of its error, measured on a made-up input solved alongside.
        determined: How many of the I H W unknowns the equations determine, measured on the same.
        from_gradient: How many of them the weight gradient determines.
    """

    inputs: Tensor
    error: float
    determined: float
    from_gradient: int


def invert_convolution(
    conv: nn.Conv2d, evidence: Evidence, *, centre: Tensor, rng: torch.Generator
) -> Solution:
    """Find the input of `conv` behind the evidence, closest to `centre` where nothing is known.

    A made-up input of the same spread, seen with errors of the expected size, is solved beside
    the real one: what comes back wrong there tells what to expect of the real one.

    Args:
        conv: Without groups or dilation, padded with a number of zeros.
        evidence: What is known at its output.
        centre: A typical input, (I, H, W), float64.
        rng: Draws the made-up input and its errors.
    """
    fold = _Fold(conv, (centre.shape[1], centre.shape[2]), evidence.output.shape[1:])
    by_gradient = _GradientSystem(fold, evidence.delta)
    by_forward = _ForwardSystem(fold.weight(conv.weight.detach().double()), evidence.error)
    bias = 0.0 if conv.bias is None else conv.bias.detach().double()[:, None, None]
    folded_centre = fold.image(centre)

    gradient = fold.weight(evidence.gradient) - by_gradient.apply(folded_centre)
    output = evidence.output - bias - by_forward.apply(folded_centre)
    found = by_gradient.solve(gradient)

    spread = float(found.square().sum() / max(by_gradient.rank * len(centre), 1)) ** 0.5 or 1.0
    made_up = fold.image(spread * _normal(centre, rng).sign())  # counts what is missing best
    noise = evidence.gradient_error * _normal(gradient, rng)
    rehearsed = by_gradient.solve(by_gradient.apply(made_up) + noise)
    seen = by_forward.apply(made_up) + evidence.error * _normal(output, rng)

    if by_gradient.rank < fold.inside.sum():
        found, rehearsed = by_forward.complete(
            [found, rehearsed], [output, seen], fold.inside, by_gradient.basis, spread
        )
    wrong = float((rehearsed - made_up).square().sum())
    missing = wrong / spread**2 + centre.numel() - fold.inside.sum() * len(centre)
    return Solution(
        inputs=centre + fold.undo(found),
        error=(wrong / centre.numel()) ** 0.5,
        determined=max(centre.numel() - float(missing), 0.0),
        from_gradient=by_gradient.rank * len(centre),
    )


class _Fold:
    """The rearrangement that turns a strided convolution into a plain one.

    Attributes:
        inside: 1 where a folded image holds a pixel, 0 where it holds padding, (S, 1, h, w).
        taps: 1 where a folded kernel holds a weight, 0 where it is filled up, (S, 1, 1, kh', kw').
    """

    def __init__(self, conv: nn.Conv2d, size: tuple[int, int], output: torch.Size) -> None:
        self._stride, self._kernel, padding = conv.stride, conv.kernel_size, _padding(conv)
        self._taps = [-(-k // s) for k, s in zip(self._kernel, self._stride, strict=True)]
        grid = [length + taps - 1 for length, taps in zip(output, self._taps, strict=True)]
        below, right = (
            cells * s - length - before
            for cells, s, length, before in zip(grid, self._stride, size, padding, strict=True)
        )  # negative where the last pixels are out of reach of the kernel
        self._border = (padding[1], right, padding[0], below)
        like = conv.weight.detach().double()
        self.inside = self.image(like.new_ones(1, *size))
        self.taps = self.weight(like.new_ones(1, 1, *self._kernel))

    def image(self, image: Tensor) -> Tensor:
        """Fold an image (I, H, W) to (S, I, h, w)."""
        return self._fold(functional.pad(image, self._border))

    def weight(self, weight: Tensor) -> Tensor:
        """Fold a kernel (O, I, kh, kw) to (S, O, I, kh', kw')."""
        (tall, wide), (kh, kw), (down, across) = self._taps, self._kernel, self._stride
        return self._fold(functional.pad(weight, (0, wide * across - kw, 0, tall * down - kh)))

    def undo(self, folded: Tensor) -> Tensor:
        """Unfold (S, I, h, w) to (I, H, W), with zeros where the kernel does not reach."""
        down, across = self._stride
        _, channels, height, width = folded.shape
        image = folded.view(down, across, channels, height, width).permute(2, 3, 0, 4, 1)
        image = image.reshape(channels, height * down, width * across)
        return functional.pad(image, [-border for border in self._border])

    def _fold(self, image: Tensor) -> Tensor:
        down, across = self._stride
        *outer, height, width = image.shape
        cells = image.view(*outer, height // down, down, width // across, across)
        return cells.movedim((-3, -1), (0, 1)).flatten(0, 1)


class _GradientSystem:
    """The gradient equations of one channel, one block per remainder modulo the stride.

    Attributes:
        rank: How many directions of a channel they determine.
        basis: Orthonormal basis of those directions, filled up with zeros, (S, h w, r).
    """

    def __init__(self, fold: _Fold, delta: Tensor) -> None:
        *_, tall, wide = fold.taps.shape
        shifted = torch.stack(
            [
                functional.pad(delta, (x, wide - 1 - x, y, tall - 1 - y))
                for y in range(tall)
                for x in range(wide)
            ],
            dim=1,
        )  # (O, taps, h, w)
        blocks = fold.taps.flatten(2)[..., None] * shifted.flatten(2)
        self._blocks = blocks.flatten(1, 2) * fold.inside.flatten(2)  # (S, O taps, h w)
        self._shape = (len(fold.taps), len(delta), tall, wide)
        self._grid = fold.inside.shape[2:]
        values, basis = _right_singular(self._blocks)
        kept = values > _WEAKEST**2 * values.max()
        self.basis = basis * kept.unsqueeze(1)
        self._inverse = torch.where(kept, 1 / values, 0.0).unsqueeze(1)
        self.rank = int(kept.sum())

    def apply(self, h: Tensor) -> Tensor:
        """Map images (S, I, h, w) to weight gradients (S, O, I, kh', kw')."""
        return (self._blocks @ h.flatten(2).mT).view(*self._shape, -1).movedim(-1, 2)

    def solve(self, gradient: Tensor) -> Tensor:
        """Return the least-squares images (S, I, h, w) within the determined directions."""
        target = gradient.movedim(2, -1).flatten(1, 3).mT  # (S, I, O taps)
        found = (target @ self._blocks @ self.basis * self._inverse) @ self.basis.mT
        return found.view(*found.shape[:2], *self._grid)


class _ForwardSystem:
    """The forward equations, and how well their right-hand side is known."""

    def __init__(self, weight: Tensor, error: Tensor) -> None:
        self._kernel = weight.movedim(0, 1).flatten(1, 2)  # (O, S I, kh', kw')
        self._error = error

    def apply(self, h: Tensor) -> Tensor:
        """Map images (S, I, h, w) to outputs (O, H', W')."""
        return functional.conv2d(h.flatten(0, 1)[None], self._kernel)[0]

    def complete(
        self,
        images: list[Tensor],
        outputs: list[Tensor],
        inside: Tensor,
        basis: Tensor,
        spread: float,
    ) -> list[Tensor]:
        """Move images (S, I, h, w) towards outputs (O, H', W') in the directions left free.

        Least squares, each equation weighted by its precision and the move by that of a pixel of
        standard deviation `spread`. The images are solved as one tall image whose seams carry no
        weight: one convolution of twice the size costs less than two. In float32, on what is
        still to explain.

        Args:
            images: Where to start.
            outputs: What the convolution returned for each.
            inside: 1 where an image holds a pixel, (S, 1, h, w).
            basis: Orthonormal basis of the directions to leave alone, (S, h w, r).
            spread: Standard deviation of a pixel.

        Returns:
            The completed images.
        """
        kernel = self._kernel.float()
        turned = kernel.flip(2, 3).transpose(0, 1)
        below, beside = (taps - 1 for taps in kernel.shape[2:])

        def tall(parts: list[Tensor]) -> Tensor:
            rows = torch.cat([functional.pad(part, (0, 0, 0, below)) for part in parts], dim=-2)
            return rows[..., : rows.shape[-2] - below, :].float()

        misfits = [
            output - self.apply(image) for image, output in zip(images, outputs, strict=True)
        ]
        size = torch.stack(misfits).abs().max().clamp_min(1e-30)
        precision = _FLAT / (self._error.square() + _FLAT**2).sqrt()
        weight = tall([precision] * len(images))
        misfit = tall([precision * part / size for part in misfits])
        damping = ((precision * self._error).square().mean() / spread**2).float()
        basis, inside = basis.float(), inside.float().repeat(1, 1, len(images), 1)

        def forward(images: Tensor) -> Tensor:
            return weight * functional.conv2d(images.flatten(0, 1)[None], kernel)[0]

        def back(misfit: Tensor) -> Tensor:
            slope = functional.conv2d((weight * misfit)[None], turned, padding=(below, beside))
            slope = slope.view(len(inside), -1, *inside.shape[2:]) * inside
            parts = slope.view(len(basis), -1, basis.shape[1])
            return slope - (parts @ basis @ basis.mT).view_as(slope)

        found = _conjugate_gradients(misfit, forward, back, damping)
        changes = (size * found.double()).chunk(len(images), dim=-2)
        return [image + change for image, change in zip(images, changes, strict=True)]


def _conjugate_gradients(
    misfit: Tensor,
    forward: Callable[[Tensor], Tensor],
    back: Callable[[Tensor], Tensor],
    damping: Tensor,
) -> Tensor:
    """Return the x that minimises |misfit - forward(x)|^2 + damping |x|^2; `back` is the adjoint.

    Of several minima, the one of least norm: the steps never leave the range of `back`.
    """
    slope = direction = back(misfit)
    x = torch.zeros_like(slope)
    power = start = slope.square().sum()
    for step in range(1, _MAX_STEPS + 1):
        change = forward(direction)
        curvature = change.square().sum() + damping * direction.square().sum()
        length = power / curvature.clamp_min(1e-30)
        x = x + length * direction
        misfit = misfit - length * change
        slope = back(misfit) - damping * x
        previous, power = power, slope.square().sum()
        direction = slope + power / previous.clamp_min(1e-30) * direction
        if step % _CHECK_EVERY == 0 and bool(power <= _ENOUGH**2 * start):
            break
    return x


def _right_singular(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return squared singular values (S, r) and right singular vectors (S, n, r) of (S, m, n).

    By the smaller Gram matrix, in float64: squaring costs no digit that the gradient carries.
    Vectors of zero singular values are zero or arbitrary.
    """
    if blocks.shape[1] >= blocks.shape[2]:
        values, vectors = torch.linalg.eigh(blocks.mT @ blocks)
        return values, vectors
    values, left = torch.linalg.eigh(blocks @ blocks.mT)
    scale = torch.where(values > 0, values, torch.inf).rsqrt()
    return values, blocks.mT @ left * scale.unsqueeze(1)


def back_through(conv: nn.Conv2d, delta: Tensor, size: tuple[int, ...]) -> Tensor:
    """Map derivatives at the output of `conv`, (O, H', W'), to its input, (I, *size)."""
    padding = _padding(conv)
    beyond = [
        (length + 2 * pad - kernel) % stride
        for length, pad, kernel, stride in zip(
            size, padding, conv.kernel_size, conv.stride, strict=True
        )
    ]
    weight = conv.weight.detach().double()
    return functional.conv_transpose2d(
        delta[None], weight, stride=conv.stride, padding=padding, output_padding=beyond
    )[0]


def _normal(like: Tensor, rng: torch.Generator) -> Tensor:
    """Draw standard normal numbers shaped like `like`, on the CPU, then move them."""
    return torch.randn(like.shape, generator=rng, dtype=like.dtype).to(like.device)


def _padding(conv: nn.Conv2d) -> tuple[int, int]:
    """Return the (vertical, horizontal) padding, a number of zeros."""
    vertical, horizontal = cast("tuple[int, int]", conv.padding)
    return vertical, horizontal
