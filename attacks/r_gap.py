"""R-GAP, recursive gradient attack on privacy (Zhu and Blaschko, 2021, arxiv.org/abs/2010.07733).

For one image and a chain of layers. Known at a layer's output are its pre-activation, undone from
what the layer above received, and the loss's derivative. The weight gradient and the forward pass
are then linear equations in the layer's input: stack both, solve by the pseudo-inverse, go down.

At the top the paper has one logit and a logistic loss: the product of weight and weight gradient
is u l'(u) for the margin u, which has to be inverted. Two classes without a bias are that case.
With a bias the derivative at the logits is the bias gradient, as in the code of breaching.

Differs from the paper: several classes without a bias are read as in `classifier`; the margin is
found by bisection; gradient equations are replaced by as many as they have unknowns, which are
equivalent in least squares; everything is float64; padding is left out instead of constrained to
zero. As published all equations count alike (`gradient_weight = 1`), and what the forward pass has
wrong is handed down; here each counts by its expected error, which is followed from layer to layer.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from attacks.activations import INVERTIBLE
from attacks.classifier import read_head
from attacks.convolution_maps import Maps
from attacks.entrance import check_chain
from attacks.gradient_system import GradientSystem
from attacks.network import (
    Layer,
    Trace,
    all_visible,
    known_architecture,
    normalisation,
    trace,
    with_weights,
)
from attacks.observation import (
    AttackFailed,
    Budget,
    Knowledge,
    Observation,
    Reconstruction,
    Tensors,
    gradient_of,
    only,
    require_one_step,
)
from attacks.signals import ROUNDING, Heard, Signal, reshaped
from attacks.threats import WHITE_BOX, Capability
from attacks.undo import undo_layer

_SINGULAR = 1e-12
"""Singular values below this share of the largest count as zero."""

_ROUGH = 1e-6
"""Share of the largest pivot above which all pivots of Cholesky's factor tell a sound system."""

_REFINEMENTS = 4
"""Solutions of what the equations still miss; each takes off what squaring them has cost."""

_SAMPLES = 64
"""Draws by which the error of a solution is measured, to 9 %."""

_FINEST = 1e-3
"""An output is not believed to be more precise than this share of the worst one's error."""

_LOWEST = -0.2784645427610738
"""Smallest value of -u / (1 + e^u), taken at `_TURN`."""

_TURN = 1.2784645427610738

_FAR = 700.0
"""Largest margin looked for: float64 holds its exponential."""

_COLUMNS = 512
"""Unit images run through a convolution at once."""


@dataclass(frozen=True, kw_only=True)
class RGap:
    """Undo the network layer by layer with gradient and weight constraints stacked; see the module.

    Attributes:
        gradient_weight: How much an equation of the weight gradient counts against one of the
            forward pass: 1 is published. None weighs every equation by its expected error:
            rounding of a float32 gradient, and what the layers above have handed down.
        max_unknowns: Largest input of a convolution that is solved for: the system is dense.
    """

    gradient_weight: float | None = None
    max_unknowns: int = 8_192

    def __post_init__(self) -> None:
        """Refuse settings under which nothing could be solved."""
        weight = self.gradient_weight
        if weight is not None and not 0 < weight < float("inf"):
            raise ValueError(f"gradient_weight must be above 0, got {self.gradient_weight}")
        if self.max_unknowns < 1:
            raise ValueError(f"max_unknowns must be at least 1, got {self.max_unknowns}")

    @property
    def needs(self) -> frozenset[Capability]:
        """The weights in force and the architecture, one image's shape, and that it is one."""
        return WHITE_BOX

    def check(self, known: Knowledge) -> None:
        """Refuse several steps or images, and models with layers that the recursion cannot pass."""
        require_one_step(known.recipe)
        if known.batch_size != 1:
            raise AttackFailed(f"R-GAP is for one image, not {known.batch_size}")
        self._check_layers(trace(*known_architecture(known)))

    def _check_layers(self, traced: Trace) -> None:
        check_chain(traced)
        for layer in traced.layers:
            if not _passable(layer):
                raise AttackFailed(
                    f"layer '{layer.name}' ({layer.kind}) is none that R-GAP passes: convolutions, "
                    "linear layers and activations that never take the same value twice"
                )
            unknowns = layer.inputs.numel()
            if isinstance(layer.module, nn.Conv2d) and unknowns > self.max_unknowns:
                raise AttackFailed(
                    f"the input of layer '{layer.name}' has {unknowns} numbers, more than "
                    f"max_unknowns = {self.max_unknowns}; its dense system would be too large"
                )

    def __call__(
        self,
        seen: Observation | Sequence[Observation],
        known: Knowledge,
        *,
        rng: torch.Generator,
        budget: Budget | None = None,
    ) -> Reconstruction:
        """Guess the image behind one update.

        Shapes:
            returns .inputs: (1, C, H, W)
            returns .labels: (1,) int64

        Raises:
            AttackFailed: A part of the update or the weights not heard, a layer that no error
                reaches, or the time is over before the image is reached.
        """
        start, budget = time.monotonic(), budget or Budget()
        seen = only(seen)
        self.check(known)
        model, input_shape = known_architecture(known)
        if seen.weights is None:
            raise AttackFailed("R-GAP needs the weights in force; none heard")
        gradient = gradient_of(seen, known.recipe)
        traced = trace(with_weights(model, seen.weights, seen.buffers), input_shape)
        _check_whole(traced, gradient, seen)
        delta, label = _top(traced.layers[-1], gradient)
        notes: dict[str, str | float] = {}
        signal = _signal(torch.full_like(delta, torch.nan), delta)
        for layer in reversed(traced.layers):
            if budget.spent:
                raise AttackFailed(f"the time allowed was over at layer '{layer.name}'")
            signal = reshaped(signal, layer.output_shape)
            weight = gradient.get(layer.parameter("weight"), signal.delta).double()
            if isinstance(layer.module, nn.Linear):
                signal = self._undo_linear(layer, signal, weight)
            elif isinstance(layer.module, nn.Conv2d):
                signal, rank = self._undo_convolution(layer, signal, weight, rng)
                notes[layer.name] = f"rank {rank} of {signal.value.numel()}"
            else:
                signal = undo_layer(layer, signal, _NOTHING)
        image = reshaped(signal, input_shape).value
        low, high = known.input_range
        inputs = image.clamp(low, high)
        notes["excursion"] = float((image - inputs).abs().max())
        return Reconstruction(
            inputs=inputs.to(traced.inputs.dtype),
            labels=torch.tensor([label], device=inputs.device),
            seconds=time.monotonic() - start,
            notes=notes,
        )

    def _undo_linear(self, layer: Layer, above: Signal, gradient: Tensor) -> Signal:
        """Every row of the weight gradient is the input times its delta.

        Published is the mean of the quotients, which the smallest delta spoils most; otherwise the
        rows count by their delta squared, as least squares has it.
        """
        told = above.delta[0] != 0
        if not bool(told.any()):
            raise AttackFailed(f"no error reaches layer '{layer.name}' ({layer.kind})")
        weight = cast(nn.Linear, layer.module).weight.detach().double()
        below = above.delta @ weight
        if self.gradient_weight is not None:
            value = (gradient[told] / above.delta[0, told, None]).mean(0, keepdim=True)
            return _signal(value, below)
        power = above.delta.square().sum()
        value = above.delta @ gradient / power
        error = (_gradient_error(gradient, above) / power.sqrt()).expand_as(value)
        doubt = (above.delta_error.square() @ weight.square()).sqrt()
        return Signal(value=value, error=error, delta=below, delta_error=doubt)

    def _undo_convolution(
        self, layer: Layer, above: Signal, gradient: Tensor, rng: torch.Generator
    ) -> tuple[Signal, int]:
        """Solve the stack of both kinds of equations; return what is below, and its rank."""
        conv = cast(nn.Conv2d, layer.module)
        maps = Maps(conv, (layer.input_shape[1], layer.input_shape[2]))
        system = GradientSystem(maps, above.delta, None)
        bias = 0.0 if conv.bias is None else conv.bias.detach().double()[:, None, None]
        output = (above.value - bias)[0]
        if self.gradient_weight is None:
            upper, lower = _gradient_error(gradient, above), above.error[0]
            lower = lower.maximum(_FINEST * lower.max()).clamp_min(1e-300)
            weight, weights = float(lower.min() / upper), lower.min() / lower
        else:
            weight, weights = self.gradient_weight, torch.ones_like(output)
        found = _by_normal_equations(maps, system, gradient, output, weight, weights, rng)
        if found is None:
            told, said = system.rows(gradient[None])
            rows = weights.flatten()[:, None] * _forward_rows(maps, layer.input_shape)
            stack = torch.cat([weight * told, rows])
            found = _least_squares(stack, torch.cat([weight * said, (weights * output).flatten()]))
        value = found.value.view(1, *layer.input_shape)
        delta = maps.back(above.delta)
        if self.gradient_weight is not None:
            return _signal(value, delta), found.rank
        error = (float(lower.min()) * found.spread).view_as(value)
        doubt = maps.back_squared(above.delta_error.square()).sqrt()
        return Signal(value=value, error=error, delta=delta, delta_error=doubt), found.rank


@dataclass(frozen=True, kw_only=True, eq=False)
class _Found:
    """The solution of a layer's equations.

    Attributes:
        value: The unknowns, (n,).
        spread: Their standard deviation when that of every weighted equation is one, (n,).
        rank: Of the equations.
    """

    value: Tensor
    spread: Tensor
    rank: int


def _gradient_error(gradient: Tensor, above: Signal) -> Tensor:
    """Return the standard deviation of an equation of the weight gradient: rounding, and delta."""
    size = gradient.square().mean().sqrt().clamp_min(1e-300)
    delta = above.delta.square().sum().clamp_min(1e-300)
    return size * torch.hypot(
        torch.full_like(size, ROUNDING), (above.delta_error.square().sum() / delta).sqrt()
    )


def _by_normal_equations(
    maps: Maps,
    system: GradientSystem,
    gradient: Tensor,
    output: Tensor,
    weight: float,
    weights: Tensor,
    rng: torch.Generator,
) -> _Found | None:
    """Solve for the input by Cholesky's factors and refinement; None when they are singular.

    Args:
        maps: The convolution.
        system: What its weight gradient says.
        gradient: The weight gradient, (O, I / groups, kh, kw).
        output: What it returned, without bias, (O, H', W').
        weight: Of an equation of the gradient.
        weights: Of those of the forward pass, shaped like `output`.
        rng: Draws errors of the equations, which show those of the solution.
    """
    shape = (maps.groups * maps.weight.shape[1], *maps.size)
    squares = weights.square()
    normal = system.normal() * weight**2
    for start, units in _units(maps, shape):
        own = maps.back(squares * maps.forward(units))
        normal[start : start + len(units)] += own.flatten(1)
    factor, failed = torch.linalg.cholesky_ex(normal)
    sizes = factor.diagonal()
    if bool(failed) or not float(sizes.min()) > _ROUGH * float(sizes.max()):
        return None
    value = torch.zeros_like(sizes)
    for _ in range(_REFINEMENTS):
        image = value.view(1, *shape)
        slope = weight**2 * system.adjoint(gradient[None] - system.apply(image)).flatten()
        slope += maps.back(squares * (output - maps.forward(image))).flatten()
        value = value + torch.cholesky_solve(slope[:, None], factor)[:, 0]
    drawn = torch.randn(len(value), _SAMPLES, generator=rng, dtype=value.dtype).to(value.device)
    errors = torch.linalg.solve_triangular(factor.mT, drawn, upper=True)
    return _Found(value=value, spread=errors.square().mean(1).sqrt(), rank=len(value))


_RESHAPERS = (nn.Flatten, nn.Unflatten, nn.Identity)

_NOTHING = Heard(
    gradient={},
    masks={},
    noise=torch.zeros(1),
    is_whole=True,
    lowest=None,
    head=None,
    centre={},
    rngs=(),
)
"""What an activation's undoing needs of the gradient."""


def _passable(layer: Layer) -> bool:
    return (
        isinstance(layer.module, (nn.Conv2d, nn.Linear, *INVERTIBLE, *_RESHAPERS))
        or normalisation(layer) is not None
    )


def _check_whole(traced: Trace, gradient: Tensors, seen: Observation) -> None:
    for layer in traced.layers:
        if isinstance(layer.module, nn.Linear | nn.Conv2d):
            name = layer.parameter("weight")
            if name not in gradient or not all_visible(seen.visible, name):
                raise AttackFailed(f"R-GAP needs all of the gradient of '{name}'")
            if not bool(gradient[name].isfinite().all()):
                raise AttackFailed(f"the gradient of '{name}' is not finite")


def _signal(value: Tensor, delta: Tensor) -> Signal:
    """Return what is known at one place, (1, ...), taken for exact."""
    exact = torch.zeros_like(delta)
    return Signal(value=value, error=exact, delta=delta, delta_error=exact)


def _top(head: Layer, gradient: Tensors) -> tuple[Tensor, int]:
    """Return the derivative at the logits, (1, K), and the label."""
    module = cast(nn.Linear, head.module)
    weight = gradient[head.parameter("weight")].double()
    bias = gradient.get(head.parameter("bias"))
    in_force = module.weight.detach().double()
    if bias is None and module.out_features == 2:
        delta = _two_classes(in_force, weight)
        return delta[None], int(delta.argmin())
    found = read_head(
        weight,
        None if bias is None else bias.double(),
        weight=in_force,
        bias=None if module.bias is None else module.bias.detach().double(),
    )
    return found.delta[None], found.label


def _two_classes(weight: Tensor, gradient: Tensor) -> Tensor:
    """Return the derivative at two logits without bias, (2,), from weight and gradient (2, n).

    Which class is the label cannot be told from the margin: both signs of the features explain
    it. Features of positive sum are taken for granted, as iDLG does.
    """
    product = float((weight * gradient).sum())
    slope = min(
        (1 / (1 + torch.tensor(u, dtype=torch.float64).exp()) for u in margins(product)),
        key=lambda size: abs(float(size) - 0.5),
    )
    label = int(gradient.sum(1).argmin())
    delta = slope.to(gradient).expand(2).clone()
    delta[label] *= -1
    return delta


def margins(product: float) -> list[float]:
    """Return every u with -u / (1 + e^u) = `product`: one above zero, two below, none too low.

    The paper's case of a logistic loss: `product` is that of the last weight and its gradient.

    Raises:
        AttackFailed: No margin gives it.
    """
    if product < _LOWEST:
        raise AttackFailed(
            f"weight times gradient is {product:.3g} at the last layer; "
            f"no logistic loss gives less than {_LOWEST:.3g}"
        )
    branches = [(-_FAR, _TURN)] if product >= 0 else [(-_FAR, _TURN), (_TURN, _FAR)]
    return [_bisect(low, high, product) for low, high in branches]


def _bisect(low: float, high: float, product: float) -> float:
    """Return the u in [low, high], where -u / (1 + e^u) is monotone, that gives `product`."""

    def value(u: float) -> float:
        return float(-u / (1 + torch.tensor(u, dtype=torch.float64).exp()))

    falls = value(low) > value(high)
    for _ in range(100):
        middle = (low + high) / 2
        if (value(middle) > product) == falls:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _units(maps: Maps, shape: tuple[int, ...]) -> Iterator[tuple[int, Tensor]]:
    """Yield every unit image, (n, *shape), in groups, with the number of the first."""
    unknowns = torch.Size(shape).numel()
    for start in range(0, unknowns, _COLUMNS):
        number = min(_COLUMNS, unknowns - start)
        units = maps.weight.new_zeros(number, unknowns)
        units[torch.arange(number), torch.arange(start, start + number)] = 1.0
        yield start, units.view(number, *shape)


def _forward_rows(maps: Maps, shape: tuple[int, ...]) -> Tensor:
    """Return the forward equations as a matrix (outputs, n), by running unit images through."""
    return torch.cat([maps.forward(units).flatten(1) for _, units in _units(maps, shape)]).T


def _least_squares(stack: Tensor, right: Tensor) -> _Found:
    """Return the least-squares solution of least norm of (m, n) equations.

    Directions of which nothing is said count as sure: they stay at zero.
    """
    left, values, turned = torch.linalg.svd(stack, full_matrices=False)
    told = values > _SINGULAR * values.max()
    inverse = torch.where(told, 1 / values.clamp_min(1e-300), 0.0)
    return _Found(
        value=turned.T @ (inverse * (left.T @ right)),
        spread=(turned.T.square() @ inverse.square()).sqrt(),
        rank=int(told.sum()),
    )
