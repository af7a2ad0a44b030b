"""The input of a convolution, from its output, the loss's derivative there and its weight gradient.

Two kinds of equations, both linear in the input h:

    gradient:  dW[o, i, k] = sum_p delta[o, p] h[i, stride p + dilation k - padding]
    forward:   a[o, p] = b[o] + sum_ik W[o, i, k] h[i, stride p + dilation k - padding]

The gradient equations are one system for all input channels, and fall apart by the pixels' place
modulo the stride. Directions of h that they determine well are read off them; the others are found
from all other equations by conjugate gradients in that subspace (CGLS; Hestenes and Stiefel,
1952), each equation weighted by its precision. Where nothing is said, h stays at `centre`.

Several victims of the same weights are solved together; no victim's result depends on the others
beyond rounding. Shapes: V victims; O and I channels out and in; L systems, one per victim and
group, and per input channel where a part of the gradient was not heard.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.convolution_maps import Maps
from attacks.gradient_system import FLAT, Directions, GradientSystem

_MAX_STEPS = 300
"""Steps of conjugate gradients; well-posed layers need 30 to 100."""

_ENOUGH = 1e-4
"""Conjugate gradients end when the slope has fallen to this share; float32 allows little more."""

_CHECK_EVERY = 5
"""Steps between looks at the progress, each of which waits for the device."""

_THINNED = 0.75
"""Victims whose steps go on leave the others behind when they are at most this share."""

_FEW = 512
"""Up to so many unknowns that are left open are solved for by Cholesky's factors."""

_REFINEMENTS = 2
"""Solutions of what is still missing after that, which make up for factors in float32."""

_PASSES = 4
"""How often outputs that broke their upper bound are held to it, and the rest solved again."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What is known about each victim's run of one convolution, all float64.

    Attributes:
        output: What it returned, (V, O, H', W').
        error: Standard deviation of the error of `output`; infinite where nothing is known of it.
        delta: Derivative of the loss with respect to `output`, (V, O, H', W').
        gradient: Derivative with respect to the weight, (V, O, I / groups, kh, kw).
        gradient_error: Standard deviation of the error of `gradient`, (V,).
        delta_error: Standard deviation of the error of `delta`; counted as zero if None.
        heard: True where `gradient` was heard; None when all of it was.
        at_most: True where `output` is an upper bound only; None when nowhere.
    """

    output: Tensor
    error: Tensor
    delta: Tensor
    gradient: Tensor
    gradient_error: Tensor
    delta_error: Tensor | None = None
    heard: Tensor | None = None
    at_most: Tensor | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """Inputs that explain the evidence.

    Attributes:
        inputs: The inputs, (V, I, H, W), float64.
        error: Standard deviation of their error, likewise, as made-up inputs solved beside show:
            one figure for what is read off the gradient, one for the rest.
        delta: Derivative of the loss with respect to them.
        delta_error: Standard deviation of the error of `delta`.
        determined: How many of the I H W unknowns the equations determine, (V,), from the same.
        from_gradient: How many of them are read off the weight gradient, (V,).
    """

    inputs: Tensor
    error: Tensor
    delta: Tensor
    delta_error: Tensor
    determined: Tensor
    from_gradient: Tensor


def obstacle(conv: nn.Conv2d) -> str | None:
    """Say why `conv` cannot be inverted; None when it can."""
    if conv.padding_mode != "zeros":
        return f"padding must be zeros, not '{conv.padding_mode}'"
    return None


def invert_convolution(
    conv: nn.Conv2d, evidence: Evidence, *, centre: Tensor, rngs: Sequence[torch.Generator]
) -> Solution:
    """Find the inputs of `conv` behind the evidence, closest to `centre` where nothing is known.

    A made-up input of the same spread, seen with errors of the expected size, is solved beside
    each real one: what comes back wrong there tells what to expect of the real one.

    Args:
        conv: Padded with zeros.
        evidence: What is known at its output.
        centre: A typical input, (I, H, W), float64.
        rngs: One generator per victim, which draws the made-up input and its errors.
    """
    maps = Maps(conv, (centre.shape[1], centre.shape[2]))
    bias = 0.0 if conv.bias is None else conv.bias.detach().double()[:, None, None]
    system = GradientSystem(maps, evidence.delta, evidence.heard)
    gradient = evidence.gradient - system.apply(centre.expand(len(rngs), *centre.shape))
    output = evidence.output - bias - maps.forward(centre[None])
    spread = system.trust(gradient, evidence.gradient_error)

    noises = [[_normal(like, rng) for like in (centre, gradient[0], output[0])] for rng in rngs]
    signs, gradient_noise, output_noise = (torch.stack(part) for part in zip(*noises, strict=True))
    made_up = _wide(spread, signs) * signs.sign()  # counts what is missing best
    noisy = system.apply(made_up) + _wide(evidence.gradient_error, gradient) * gradient_noise
    seen = maps.forward(made_up) + torch.where(
        evidence.error.isfinite(), evidence.error * output_noise, 0.0
    )
    gradients, outputs = torch.stack([gradient, noisy], 1), torch.stack([output, seen], 1)
    found = system.solve(gradients)
    if system.is_partial:
        found = _complete(maps, system, found, gradients, outputs, evidence, spread)
    beyond = found[:, 1] - made_up
    wrong = beyond.square().flatten(1).sum(1)
    doubt = evidence.delta_error
    variance = torch.zeros_like(made_up) if doubt is None else maps.back_squared(doubt.square())
    return Solution(
        inputs=centre + found[:, 0],
        error=_error(system, beyond),
        delta=maps.back(evidence.delta),
        delta_error=variance.sqrt(),
        determined=(centre.numel() - wrong / spread.square()).clamp_min(0.0),
        from_gradient=system.rank,
    )


def _error(system: GradientSystem, beyond: Tensor) -> Tensor:
    """Return the standard deviation of pixels (V, I, H, W) whose errors look like `beyond`.

    The errors of what is read off the gradient and those of the rest differ by orders of
    magnitude: a pixel has of each as much as it lies in either subspace.
    """
    if not system.is_partial:
        return beyond.square().flatten(1).mean(1).sqrt().view(-1, 1, 1, 1).expand_as(beyond)
    rest = system.maps.fold(beyond[:, None].float())
    system.keep_open(rest)
    loose = system.maps.unfold(rest)[:, 0].double()
    tight = (beyond - loose).square().flatten(1).sum(1) / system.rank.clamp_min(1)
    number = (beyond[0].numel() - system.rank).clamp_min(1)
    loose = loose.square().flatten(1).sum(1) / number
    read = system.share_read(beyond)
    return (read * _wide(tight, read) + (1 - read) * _wide(loose, read)).sqrt()


def back_through(conv: nn.Conv2d, delta: Tensor, size: tuple[int, ...]) -> Tensor:
    """Map derivatives at the output of `conv`, (V, O, H', W'), to its input, (V, I, *size)."""
    return Maps(conv, (size[0], size[1])).back(delta)


def _complete(
    maps: Maps,
    system: GradientSystem,
    found: Tensor,
    gradients: Tensor,
    outputs: Tensor,
    evidence: Evidence,
    spread: Tensor,
) -> Tensor:
    """Explain the rest in the directions that are not read off the gradient.

    Weighted least squares, a pixel's own precision being that of its spread. An output that is
    only bounded counts when it breaks its bound. In float32, on what is still to explain.

    Args:
        maps: The convolution.
        system: What the gradient says.
        found: Where to start, (V, R, I, H, W): the real input, then the made-up one.
        gradients: What the gradient system says of each, (V, R, O, I / groups, kh, kw).
        outputs: What the convolution returned for each, (V, R, O, H', W').
        evidence: How precise the outputs are.
        spread: Of a pixel, (V,).

    Returns:
        The completed images.
    """
    squares = evidence.error.square()
    weight = FLAT / (squares + FLAT**2).sqrt()  # 0 where the error is infinite
    doubt = FLAT**2 * torch.where(squares.isfinite(), squares / (squares + FLAT**2), 1.0)
    total = weight.square().flatten(1).sum(1)
    damping = (weight.square() * doubt).flatten(1).sum(1) / total.clamp_min(1e-300)
    damping = torch.where(total > 0, damping, FLAT**2) / spread.square()
    weights = torch.stack([weight, weight], 1).float()
    if evidence.at_most is None:
        few = system.open_directions(_FEW // found.shape[2], gradients)
        if few is not None:
            completed = _densely(maps, few, found, outputs, weight, damping)
            if completed is not None:
                return completed
    said = system.said(gradients) if system.is_soft else []
    for held in range(_PASSES + 1):
        misfit = outputs - maps.forward(found.flatten(0, 1)).view_as(outputs)
        if evidence.at_most is not None and held > 0:
            broken = evidence.at_most & (misfit[:, 0] < 0) & (weights[:, 0] == 0)
            if not bool(broken.any()):
                break
            weights[:, 0] += broken
        found = found + _least_squares(maps, system, misfit, weights, said, found, damping)
        if evidence.at_most is None:
            break
    return found


def _densely(
    maps: Maps,
    directions: Directions,
    found: Tensor,
    outputs: Tensor,
    weight: Tensor,
    damping: Tensor,
) -> Tensor | None:
    """Do what `_least_squares` does by the normal equations of few unknowns.

    None where they are too near to singular for float32.

    Args:
        maps: The convolution, of one group.
        directions: What every channel's image is left open in.
        found: Where to start, (V, R, I, H, W).
        outputs: What is to be explained, (V, R, O, H', W').
        weight: Of an output, (V, O, H', W').
        damping: Per victim, (V,).
    """
    victims, number = directions.images.shape[:2]
    channels = found.shape[2]
    own = maps.per_channel(directions.images.flatten(0, 1).float()[:, None])  # (V k, O, I, H', W')
    own = own.view(victims, number, -1, channels, *outputs.shape[3:]).transpose(2, 3)
    rows = (own * weight[:, None, None].float()).flatten(3).flatten(1, 2)  # (V, k I, equations)
    system = rows @ rows.mT
    base = directions.images.flatten(2)
    idle = (base.square().sum(2) < 0.5).repeat_interleave(channels, dim=1)
    trust = directions.weight.square().repeat_interleave(channels, dim=1)
    said = directions.said.transpose(2, 3).flatten(2)  # (V, R, k I)
    system.diagonal(dim1=1, dim2=2).add_((damping[:, None] + trust).float() + idle)
    factor, failed = torch.linalg.cholesky_ex(system)
    if bool(failed.any()):
        return None
    total = found.new_zeros(victims, found.shape[1], number * channels)
    for _ in range(1 + _REFINEMENTS):
        misfit = outputs - maps.forward(found.flatten(0, 1)).view_as(outputs)
        size = misfit.flatten(1).abs().amax(1).clamp_min(1e-30)[:, None, None]
        right = ((weight[:, None] * misfit).flatten(2) / size).float() @ rows.mT
        right = right.double() * size - damping[:, None, None] * total
        right = right + trust[:, None] * (said - total)
        scale = right.flatten(1).abs().amax(1).clamp_min(1e-30)[:, None, None]
        step = torch.cholesky_solve((right / scale).float().mT, factor).mT.double() * scale
        total = total + step
        images = step.view(victims, -1, number, channels).transpose(2, 3).flatten(1, 2) @ base
        found = found + images.view_as(found)
    return found


def _least_squares(
    maps: Maps,
    system: GradientSystem,
    misfit: Tensor,
    weights: Tensor,
    said: list[Tensor],
    found: Tensor,
    damping: Tensor,
) -> Tensor:
    """Return the change (V, R, I, H, W) of `found` that explains `misfit` best; see `_complete`."""
    size = misfit.flatten(1).abs().amax(1).clamp_min(1e-30)
    right = [(weights * (misfit / _wide(size, misfit))).float()]
    if said:
        already = system.weigh(maps.fold(found.float()))
        right += [
            ((part - old) / _wide(size, old)).float()
            for part, old in zip(said, already, strict=True)
        ]
    lost = damping[:, None].float()

    outside = maps.fold(torch.ones_like(found[0, 0])) == 0 if maps.is_filled else None

    def forward(planes: Tensor) -> list[Tensor]:
        seen = maps.forward_planes(planes.flatten(0, 1)).view_as(weights).mul_(weights)
        return [seen, *(system.weigh(planes) if said else [])]

    def back(misfits: list[Tensor]) -> Tensor:
        slope = maps.back_planes((weights * misfits[0]).flatten(0, 1))
        slope = slope.view(*misfits[0].shape[:2], *slope.shape[1:])
        if outside is not None:
            slope.masked_fill_(outside, 0.0)
        if said:
            system.add_back(slope, misfits[1:])
        system.keep_open(slope)
        return slope

    slope = direction = back(right)
    x, solution = torch.zeros_like(slope), torch.zeros_like(slope)
    power = start = _squares(slope)
    running = (start > 0) & system.open[:, None]
    places = torch.arange(len(x), device=x.device)
    for step in range(1, _MAX_STEPS + 1):
        change = forward(direction)
        curvature = lost * _squares(direction)
        for part in change:
            curvature += _squares(part)
        length = torch.where(running, power / curvature.clamp_min(1e-30), 0.0)
        x.addcmul_(_wide(length, x), direction)
        for old, new in zip(right, change, strict=True):
            old.addcmul_(_wide(-length, old), new)
        slope = back(right).addcmul_(_wide(-lost, x), x)
        previous, power = power, _squares(slope)
        direction = slope.addcmul_(_wide(power / previous.clamp_min(1e-30), slope), direction)
        if step % _CHECK_EVERY == 0:
            running = running & (power > _ENOUGH**2 * start)
            keep = running.any(1).nonzero()[:, 0]
            if len(keep) == 0:
                break
            if len(keep) <= _THINNED * len(x):  # the others are done: go on without them
                solution[places] = x
                places, system = places[keep], system.only(keep)
                right = [part[keep] for part in right]
                x, direction, weights, lost, power, start, running = (
                    some[keep] for some in (x, direction, weights, lost, power, start, running)
                )
    solution[places] = x
    return _wide(size, solution) * maps.unfold(solution).double()


def _squares(rows: Tensor) -> Tensor:
    """Return the squared lengths, (V, R), of rows (V, R, ...)."""
    length: Tensor = torch.linalg.vector_norm(rows.flatten(2), dim=2)
    return length.square()


def _wide(each: Tensor, like: Tensor) -> Tensor:
    """Give `each` trailing dimensions of size one, as many as `like` has."""
    return each.view(*each.shape, *(1,) * (like.dim() - each.dim()))


def _normal(like: Tensor, rng: torch.Generator) -> Tensor:
    """Draw standard normal numbers shaped like `like`, on the CPU, then move them."""
    return torch.randn(like.shape, generator=rng, dtype=like.dtype).to(like.device)
