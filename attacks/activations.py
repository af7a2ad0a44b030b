"""How activations are undone: their inverses, with the slope there, and what ReLU leaves known."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from attacks.network import Layer
from attacks.signals import Heard, Signal, Undo

_EDGE = 1e-7
"""How close to its limits an activation is believed: the resolution of float32 near 1."""

Formula = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]
"""Maps an activation's output to its input and to its slope there."""


def _sigmoid(_: nn.Module, y: Tensor) -> tuple[Tensor, Tensor]:
    y = y.clamp(_EDGE, 1 - _EDGE)
    return y.logit(), y * (1 - y)


def _tanh(_: nn.Module, y: Tensor) -> tuple[Tensor, Tensor]:
    y = y.clamp(_EDGE - 1, 1 - _EDGE)
    return y.atanh(), 1 - y.square()


def _softsign(_: nn.Module, y: Tensor) -> tuple[Tensor, Tensor]:
    y = y.clamp(_EDGE - 1, 1 - _EDGE)
    return y / (1 - y.abs()), (1 - y.abs()).square()


def _leaky_relu(module: nn.Module, y: Tensor) -> tuple[Tensor, Tensor]:
    slope = torch.where(y > 0, 1.0, cast(nn.LeakyReLU, module).negative_slope).to(y)
    return y / slope, slope


def _prelu(module: nn.Module, y: Tensor) -> tuple[Tensor, Tensor]:
    slopes = cast(nn.PReLU, module).weight.detach().to(y).view(-1, *(1,) * (y.dim() - 2))
    slope = torch.where(y > 0, 1.0, slopes)
    return y / slope, slope


def _exponential(y: Tensor, alpha: float, rate: float, scale: float) -> tuple[Tensor, Tensor]:
    """Undo y = scale x for x > 0, else y = scale alpha (exp(rate x) - 1)."""
    y = y / scale
    below = (y / alpha).clamp_min(_EDGE - 1)
    value = torch.where(y > 0, y, below.clamp_max(0.0).log1p() / rate)
    return value, scale * torch.where(y > 0, 1.0, alpha * rate * (1 + below))


def _elu(module: nn.Module, y: Tensor) -> tuple[Tensor, Tensor]:
    return _exponential(y, cast(nn.ELU, module).alpha, 1.0, 1.0)


def _celu(module: nn.Module, y: Tensor) -> tuple[Tensor, Tensor]:
    alpha = cast(nn.CELU, module).alpha
    return _exponential(y, alpha, 1 / alpha, 1.0)


def _selu(_: nn.Module, y: Tensor) -> tuple[Tensor, Tensor]:
    return _exponential(y, 1.6732632423543772, 1.0, 1.0507009873554805)


def _softplus(module: nn.Module, y: Tensor) -> tuple[Tensor, Tensor]:
    beta = cast(nn.Softplus, module).beta
    y = y.clamp_min(_EDGE / beta)
    slope = -torch.expm1(-beta * y)
    return y + slope.log() / beta, slope


def _undo_activation(formula: Formula) -> Undo:
    """Undo an activation that never takes the same value twice."""

    def undo(layer: Layer, above: Signal, _: Heard) -> Signal:
        value, slope = formula(layer.module, above.value)
        unknown = above.error.isinf()
        margin = torch.where(unknown, 0.0, above.error)
        high, steep = formula(layer.module, above.value + margin)
        low, flat = formula(layer.module, above.value - margin)
        bend = torch.where(unknown, slope, (steep - slope).abs().maximum((flat - slope).abs()))
        return Signal(
            value=value,
            error=torch.where(unknown, torch.inf, (high - low).abs() / 2),
            delta=above.delta * slope,
            delta_error=torch.hypot(above.delta_error * slope, above.delta * bend),
        )

    return undo


_CERTAIN = 4.0
"""An output of ReLU counts as positive when it is so by this many standard deviations."""


def _undo_relu(_: Layer, above: Signal, __: Heard) -> Signal:
    """Undo max(x, 0): what came out positive is known; of the rest only that it is at most zero."""
    scale = above.value.flatten(1).abs().amax(1).view(-1, *(1,) * (above.value.dim() - 1))
    margin = (_CERTAIN * above.error).maximum(1e-6 * scale)
    active = above.value > margin
    in_doubt = ~active & (above.value > -margin) & (above.error > 1e-6 * scale)
    return Signal(
        value=torch.where(active, above.value, 0.0),
        error=torch.where(active, above.error, torch.inf),
        delta=above.delta * active,
        delta_error=torch.where(in_doubt, above.delta.abs() * 0.5, above.delta_error * active),
        at_most=~active,
    )


_FORMULAS: dict[type[nn.Module], Formula] = {
    nn.LeakyReLU: _leaky_relu,
    nn.PReLU: _prelu,
    nn.ELU: _elu,
    nn.CELU: _celu,
    nn.SELU: _selu,
    nn.Sigmoid: _sigmoid,
    nn.Tanh: _tanh,
    nn.Softsign: _softsign,
    nn.Softplus: _softplus,
}

INVERTIBLE: tuple[type[nn.Module], ...] = tuple(_FORMULAS)
"""Activations that never take the same value twice."""

ACTIVATIONS: tuple[type[nn.Module], ...] = (nn.ReLU, *INVERTIBLE)

UNDO_ACTIVATION: dict[type[nn.Module], Undo] = {
    nn.ReLU: _undo_relu,
    **{kind: _undo_activation(formula) for kind, formula in _FORMULAS.items()},
}
"""How to undo each activation; another is one more formula."""
