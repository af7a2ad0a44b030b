"""How far the gradients of many guesses are from those heard, and how to move the guesses, by hand.

For models that are chains of convolutions, linear layers and activations, under cross-entropy. The
distance D(g(x)) changes with the guess x by J^T v, where v is the derivative of D at the gradient
g, and J^T v is the derivative of grad_x loss(x, w + e v) by e, at e = 0. So one pass forward and
back gives g, and a second one, which carries derivatives by e along (the R-operator of
Pearlmutter, 1994, Neural Computation 6), gives all the rest; nothing is stored for a second
backward pass. Every layer is a few matrix products over patches, for all guesses together.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.matching.victim import Victim
from attacks.network import Layer, trace


@dataclass(frozen=True, eq=False)
class Thin:
    """Matrices left^T right of low rank, (r, O, K), that are never multiplied out.

    Attributes:
        left: Shape (r, n, O).
        right: Shape (r, n, K).
    """

    left: Tensor
    right: Tensor

    def after(self, rows: Tensor) -> Tensor:
        """Multiply rows (r, M, K) by the transposed matrices: (r, M, O)."""
        return rows @ self.right.mT @ self.left

    def before(self, rows: Tensor) -> Tensor:
        """Multiply rows (r, M, O) by the matrices: (r, M, K)."""
        return rows @ self.left.mT @ self.right


Compare = Callable[[dict[str, Tensor | Thin]], tuple[Tensor, dict[str, Tensor | Thin]]]
"""Gradients by name -> their distances (r,) from those heard, and the derivatives of each.

Gradients (r, ...) are laid out as by `Chain.lay_out_gradients`, those of layers that were named so
are thin. A name without derivatives takes no part."""

Curve = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor, Tensor | None]]
"""(activation, its input) -> output, first and second derivative; None for a vanishing second."""


def _sigmoid(_: nn.Module, z: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    y = z.sigmoid()
    first = torch.addcmul(y, y, y, value=-1)
    return y, first, first * (1 - 2 * y)


def _tanh(_: nn.Module, z: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    y = z.tanh()
    first = 1 - y.square()
    return y, first, -2 * y * first


def _softplus(module: nn.Module, z: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    beta = cast(nn.Softplus, module).beta
    first = (beta * z).sigmoid()
    return cast(Tensor, module(z)), first, beta * first * (1 - first)


def _relu(_: nn.Module, z: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    return z.clamp_min(0), (z > 0).to(z), None


def _leaky_relu(module: nn.Module, z: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    slope = cast(nn.LeakyReLU, module).negative_slope
    first = torch.where(z > 0, 1.0, slope).to(z)
    return z * first, first, None


def _identity(_: nn.Module, z: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    return z, torch.ones_like(z), None


_NARROW = 16
"""Columns of a matrix product below which it is computed the other way round."""

CURVES: dict[type[nn.Module], Curve] = {
    nn.Sigmoid: _sigmoid,
    nn.Tanh: _tanh,
    nn.Softplus: _softplus,
    nn.ReLU: _relu,
    nn.LeakyReLU: _leaky_relu,
}
"""Activations that are known; another one is one more entry."""


class _Dense:
    """y = W h + b on vectors: (r, B, features) -> (r, B, outputs)."""

    def __init__(self, layer: Layer) -> None:
        self.input_shape = layer.input_shape
        self.output_shape = layer.output_shape
        self.width = math.prod(layer.input_shape) * (1 + math.prod(layer.output_shape))

    def lay_out(self, weight: Tensor) -> Tensor:
        return weight

    def patches(self, h: Tensor) -> Tensor:
        """Return the rows that the weight is multiplied with, (r, B, features)."""
        return h.flatten(2)

    def deltas(self, delta: Tensor) -> Tensor:
        return delta

    def turned(self, weight: Tensor) -> Tensor:
        """Return the matrix that carries deltas to the layer's input."""
        return weight

    def image(self, found: Tensor, shape: torch.Size) -> Tensor:
        return found.view(shape)


class _Convolution:
    """The same on images (r, B, H, W, C), with everything that the weight meets laid out in rows.

    Carrying deltas back is a convolution of its own: of the s x s inputs between two places of a
    kernel that moves by s, each meets the kernel's entries of its own parity (in general: of its
    own remainder), so s * s outputs are computed for each place, from ceil(k / s)^2 deltas.
    """

    def __init__(self, layer: Layer) -> None:
        conv = cast(nn.Conv2d, layer.module)
        self.input_shape = layer.input_shape
        self.channels, *size = layer.input_shape
        self.outputs, *self.places = layer.output_shape
        self.output_shape = (*self.places, self.outputs)
        self.kernel = cast("tuple[int, int]", conv.kernel_size)
        self.stride = cast("tuple[int, int]", conv.stride)
        self.padding = cast("tuple[int, int]", conv.padding)
        axes = range(2)
        self.reach = [math.ceil(self.kernel[a] / self.stride[a]) for a in axes]
        first = [self.padding[a] // self.stride[a] for a in axes]
        last = [(self.padding[a] + size[a] - 1) // self.stride[a] for a in axes]
        self.blocks = [last[a] - first[a] + 1 for a in axes]
        self.before = [self.reach[a] - 1 - first[a] for a in axes]
        self.after = [last[a] + 1 - self.places[a] for a in axes]
        self.skip = [self.padding[a] - first[a] * self.stride[a] for a in axes]
        self.pick = self._kernel_of_deltas()
        seen = math.prod((*self.places, *self.kernel, self.channels))
        self.width = 2 * seen + 2 * math.prod((*self.blocks, *self.reach, self.outputs))

    def _kernel_of_deltas(self) -> Tensor:
        """Return where each entry of the turned kernel is in the kernel; beyond its end: zero."""
        taps = []
        for axis in range(2):
            phase = torch.arange(self.stride[axis])
            back = self.reach[axis] - 1 - torch.arange(self.reach[axis])
            taps.append(back[:, None] * self.stride[axis] + phase)  # (reach, stride)
        (high, wide), (height, width) = taps, self.kernel
        o = torch.arange(self.outputs).view(1, 1, -1, 1, 1, 1)
        c = torch.arange(self.channels)
        i, j = high.view(len(high), 1, 1, -1, 1, 1), wide.view(1, len(wide), 1, 1, -1, 1)
        place = ((o * height + i) * width + j) * self.channels + c
        nowhere = self.outputs * height * width * self.channels
        place = torch.where((i < height) & (j < width), place, nowhere)
        return place.reshape(-1, math.prod(self.stride) * self.channels)

    def lay_out(self, weight: Tensor) -> Tensor:
        """(..., O, C, kh, kw) -> (..., O, kh * kw * C)."""
        return weight.movedim(-3, -1).flatten(-3)

    def patches(self, h: Tensor) -> Tensor:
        """(r, B, H, W, C) -> (r, B * places, kh * kw * C)."""
        (up, left) = self.padding
        return _windows(
            functional.pad(h, (0, 0, left, left, up, up)), self.kernel, self.stride, self.places
        )

    def deltas(self, delta: Tensor) -> Tensor:
        """(r, B, places..., O) -> (r, B * blocks, reach * reach * O)."""
        (up, left), (down, right) = self.before, self.after
        padded = functional.pad(delta, (0, 0, left, right, up, down))
        return _windows(padded, self.reach, (1, 1), self.blocks)

    def turned(self, weight: Tensor) -> Tensor:
        """(n, O, kh * kw * C) -> (n, reach * reach * O, stride * stride * C)."""
        self.pick = self.pick.to(weight.device)
        flat = functional.pad(weight.flatten(1), (0, 1))
        return flat.index_select(1, self.pick.flatten()).view(-1, *self.pick.shape)

    def kernels(self, weight: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights of one victim, as laid out and turned, as kernels of convolutions."""
        ahead = weight.view(self.outputs, *self.kernel, self.channels).movedim(-1, 1)
        back = turned.view(*self.reach, self.outputs, -1).permute(3, 2, 0, 1)
        channels_last = torch.channels_last
        return ahead.contiguous(memory_format=channels_last), back.contiguous(
            memory_format=channels_last
        )

    def convolve(self, h: Tensor, kernel: Tensor) -> Tensor:
        """Do what a product with `patches` does: (r, B, H, W, C) -> (r, B * places, O)."""
        images = h.flatten(0, 1).movedim(-1, 1)
        found = functional.conv2d(images, kernel, stride=self.stride, padding=self.padding)
        return found.movedim(1, -1).reshape(len(h), -1, self.outputs)

    def convolve_back(self, delta: Tensor, kernel: Tensor) -> Tensor:
        """Do what a product with `deltas` does, for `image`."""
        images = delta.flatten(0, 1).movedim(-1, 1)
        (up, left), (down, right) = self.before, self.after
        if up == down >= 0 and left == right >= 0:
            found = functional.conv2d(images, kernel, padding=(up, left))
        else:
            found = functional.conv2d(functional.pad(images, (left, right, up, down)), kernel)
        return found.movedim(1, -1).reshape(len(delta), -1, len(kernel))

    def image(self, found: Tensor, shape: torch.Size) -> Tensor:
        """(r, B * blocks, stride * stride * C) -> (r, B, H, W, C)."""
        (high, wide), (down, across) = self.blocks, self.stride
        rows, batch, height, width, channels = shape
        found = found.view(rows, batch, high, wide, down, across, channels).transpose(3, 4)
        found = found.reshape(rows, batch, high * down, wide * across, channels)
        (up, left) = self.skip
        return found[:, :, up : up + height, left : left + width]


def _windows(
    images: Tensor, size: Sequence[int], stride: Sequence[int], places: Sequence[int]
) -> Tensor:
    """Return what a window of `size` sees at its places: (r, B * places, size * C), one copy.

    With the channels last, a row of the window is one run of memory, whatever the stride.
    """
    images = images.contiguous()
    rows, batch, _, _, channels = images.shape
    row, example, line, pixel, _ = images.stride()
    view = images.as_strided(
        (rows, batch, *places, size[0], size[1] * channels),
        (row, example, line * stride[0], pixel * stride[1], line, 1),
    )
    return view.reshape(rows, batch * places[0] * places[1], -1)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Step:
    """One layer with weights, and what follows it up to the next one."""

    weight: str
    bias: str | None
    kind: _Dense | _Convolution
    activation: nn.Module
    curve: Curve


class Chain:
    """A model that `chain_of` has understood.

    Args:
        steps: Layers with weights, first to last.
        before: What runs on the inputs before the first of them, without weights.
    """

    def __init__(self, steps: Sequence[_Step], before: nn.Module) -> None:
        self.steps = tuple(steps)
        self.before = before

    @property
    def width(self) -> int:
        """Numbers that one example takes in patches, about."""
        return sum(step.kind.width for step in self.steps)

    def enter(self, inputs: Tensor) -> Tensor:
        """Return what reaches the first layer with weights, for inputs (r, B, ...)."""
        found = self.before(inputs.flatten(0, 1))
        return cast(Tensor, found.reshape(*inputs.shape[:2], *self.steps[0].kind.input_shape))

    @property
    def dense(self) -> dict[str, int]:
        """Names of the weights of dense layers, and how many entries each has."""
        return {
            step.weight: math.prod((*step.kind.input_shape, *step.kind.output_shape))
            for step in self.steps
            if isinstance(step.kind, _Dense)
        }

    def lay_out(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return weights (n, ...) by name in the form that `value_and_slopes` takes."""
        found = {}
        for step in self.steps:
            weight = step.kind.lay_out(weights[step.weight]).contiguous()
            turned = step.kind.turned(weight)
            found[step.weight] = weight
            found[step.weight + " turned"] = turned
            if isinstance(step.kind, _Convolution) and _has_fast_convolutions(weight):
                ahead, back = step.kind.kernels(weight[0], turned[0])
                found |= {step.weight + " ahead": ahead, step.weight + " back": back}
            if step.bias is not None:
                found[step.bias] = weights[step.bias]
        return found

    def lay_out_gradients(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return gradients (n, ...) by name, or masks of them, in the form that is compared."""
        kinds = {step.weight: step.kind for step in self.steps}
        return {
            name: kinds[name].lay_out(tensor).contiguous() if name in kinds else tensor
            for name, tensor in gradients.items()
        }

    def value_and_slopes(
        self,
        inputs: Tensor,
        targets: Tensor,
        weights: Mapping[str, Tensor],
        compare: Compare,
        *,
        thin: Collection[str] = (),
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return distances (r,) and their derivatives by inputs and targets, shaped like these.

        Args:
            inputs: (r, B, C, H, W), or (r, B, features), as they reach the first layer.
            targets: Probabilities (r, B, K).
            weights: From `lay_out`, with n = 1 for all rows, or n = r.
            compare: The distance.
            thin: Names of dense layers' weights whose gradients are not multiplied out.
        """
        batch = inputs.shape[1]
        image = inputs.dim() == 5
        h = inputs.movedim(2, -1) if image else inputs
        seen: list[Tensor] = []
        curves: list[tuple[Tensor, Tensor | None]] = []
        shapes: list[torch.Size] = []
        for number, step in enumerate(self.steps):
            shapes.append(h.shape)
            rows = step.kind.patches(h)
            seen.append(rows)
            z = _times(rows, weights[step.weight].mT)
            if step.bias is not None:
                z = z + weights[step.bias][:, None]
            z = z.view(*h.shape[:2], *step.kind.output_shape)
            h, first, second = step.curve(step.activation, z)
            curves.append((first, second))
            h = self._handed_on(number, h)
        chances = h.softmax(dim=-1)
        delta = (chances - targets) / batch

        gradients: dict[str, Tensor | Thin] = {}
        deltas: list[Tensor] = []
        turned: list[Tensor] = []
        arrived: list[Tensor | None] = []
        above: Tensor | None = None
        for number, step in reversed(list(enumerate(self.steps))):
            arrived.append(above)
            if above is not None:
                delta = above * curves[number][0]
            flat = delta.flatten(1, -2)
            deltas.append(flat)
            gradients[step.weight] = (
                Thin(flat, seen[number])
                if step.weight in thin
                else _sum_of_products(flat, seen[number])
            )
            if step.bias is not None:
                gradients[step.bias] = flat.sum(dim=1)
            turned.append(step.kind.deltas(delta))
            if number > 0:
                above = self._carried(
                    number, _times(turned[-1], weights[step.weight + " turned"]), shapes[number]
                )
        values, pushes = compare(gradients)
        deltas.reverse()
        turned.reverse()
        arrived.reverse()

        moved: Tensor | None = None
        speeds: list[Tensor] = []
        for number, step in enumerate(self.steps):
            push, by_bias = pushes.get(step.weight), pushes.get(cast(str, step.bias))
            speed: Tensor | None = None
            if push is not None:
                rows = seen[number]
                speed = push.after(rows) if isinstance(push, Thin) else _times(rows, push.mT)
            if moved is not None:
                ahead = self._ahead(number, moved, weights)
                speed = ahead if speed is None else speed.add_(ahead)
            if speed is None:
                speed = torch.zeros_like(deltas[number])
            if by_bias is not None:
                speed = speed.add_(cast(Tensor, by_bias)[:, None])
            speed = speed.view(curves[number][0].shape)
            speeds.append(speed)
            moved = self._handed_on(number, speed * curves[number][0])
        last = speeds[-1]
        centred = last - (chances * last).sum(dim=-1, keepdim=True)
        slope_targets = -centred / batch
        turn = chances * centred / batch  # of delta, by e
        for number, step in reversed(list(enumerate(self.steps))):
            found = self._back(number, turn, weights)
            push = pushes.get(step.weight)
            if isinstance(push, Thin):
                found = found + push.before(turned[number])
            elif push is not None:
                found = found.add_(_times(turned[number], step.kind.turned(push)))
            back = self._carried(number, found, shapes[number])
            if number == 0:
                break
            first, second = curves[number - 1]
            turn = back * first
            if second is not None:
                turn = turn.addcmul_(second * speeds[number - 1], cast(Tensor, arrived[number - 1]))
        return values, back.movedim(-1, 2) if image else back, slope_targets

    def _ahead(self, number: int, h: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """Return what the weights of layer `number` make of its input, rows (r, M, O)."""
        step = self.steps[number]
        kernel = weights.get(step.weight + " ahead")
        if kernel is None:
            return _times(step.kind.patches(h), weights[step.weight].mT)
        return cast(_Convolution, step.kind).convolve(h, kernel)

    def _back(self, number: int, delta: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """Return what the weights of layer `number` make of deltas, for `_carried`."""
        step = self.steps[number]
        kernel = weights.get(step.weight + " back")
        if kernel is None:
            return _times(step.kind.deltas(delta), weights[step.weight + " turned"])
        return cast(_Convolution, step.kind).convolve_back(delta, kernel)

    def _flat(self, number: int) -> bool:
        """Whether images are flattened behind layer `number`."""
        kinds = [type(step.kind) for step in self.steps[number : number + 2]]
        return kinds == [_Convolution, _Dense]

    def _handed_on(self, number: int, h: Tensor) -> Tensor:
        """Return the output of a layer as the next one takes it."""
        return h.movedim(-1, 2).flatten(2) if self._flat(number) else h

    def _carried(self, number: int, found: Tensor, shape: torch.Size) -> Tensor:
        """Return what arrives at the output of the layer before, in that layer's own shape."""
        image = self.steps[number].kind.image(found, shape)
        if number == 0 or not self._flat(number - 1):
            return image
        *places, outputs = self.steps[number - 1].kind.output_shape
        return image.view(*shape[:2], outputs, *places).movedim(2, -1)


def _has_fast_convolutions(weight: Tensor) -> bool:
    """Whether a convolution beats a product with patches, for weights (n, ...): see oneDNN."""
    return len(weight) == 1 and weight.dtype == torch.float32 and not weight.is_cuda


def _sum_of_products(deltas: Tensor, rows: Tensor) -> Tensor:
    """Multiply (r, M, O) and (r, M, K) to (r, O, K); a matrix product of one term is slow."""
    return deltas.mT * rows if deltas.shape[1] == 1 else deltas.mT @ rows


def _times(rows: Tensor, weight: Tensor) -> Tensor:
    """Multiply (r, M, K) by (1 or r, K, N): one large product where the weight is shared.

    Matrix products with few columns run at half speed, those with few rows do not.
    """
    narrow = weight.shape[-1] < _NARROW
    if len(weight) > 1:
        if narrow:
            return torch.bmm(weight.mT, rows.mT).mT.contiguous()
        return torch.bmm(rows, weight)
    flat = rows.flatten(0, 1)
    found = (weight[0].mT @ flat.mT).mT.contiguous() if narrow else flat @ weight[0]
    return found.view(*rows.shape[:2], -1)


def chain_of(victim: Victim) -> Chain | None:
    """Return the chain that the victim's model is, or None when it is something else.

    The chain must give what the victim gives, which is tried on a random batch.
    """
    if len(victim.input_shape) not in (1, 3):
        return None
    traced = trace(victim.model, victim.input_shape)
    if traced.break_in_chain() is not None:
        return None
    before: list[nn.Module] = []
    groups: list[tuple[Layer, list[nn.Module]]] = []
    for layer in traced.layers:
        if isinstance(layer.module, nn.Linear | nn.Conv2d):
            groups.append((layer, []))
        elif any(True for _ in layer.module.parameters()):
            return None
        elif not isinstance(layer.module, nn.Flatten | nn.Identity):  # shapes are known
            (groups[-1][1] if groups else before).append(layer.module)
    if not all(_understood(layer, after) for layer, after in groups):
        return None
    if not groups or groups[-1][1] or not isinstance(groups[-1][0].module, nn.Linear):
        return None
    chain = Chain([_step(layer, after) for layer, after in groups], nn.Sequential(*before))
    return chain if _agrees(chain, victim) else None


def _understood(layer: Layer, after: Sequence[nn.Module]) -> bool:
    """Whether there is a formula for a layer with weights and the activation after it."""
    if len(after) > 1 or any(type(module) not in CURVES for module in after):
        return False
    module = layer.module
    if type(module) is nn.Linear:
        return len(layer.input_shape) == 1
    return (
        type(module) is nn.Conv2d
        and module.groups == 1
        and module.dilation == (1, 1)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def _step(layer: Layer, after: Sequence[nn.Module]) -> _Step:
    activation = after[0] if after else nn.Identity()
    module = cast(nn.Linear | nn.Conv2d, layer.module)
    return _Step(
        weight=layer.parameter("weight"),
        bias=None if module.bias is None else layer.parameter("bias"),
        kind=_Convolution(layer) if isinstance(module, nn.Conv2d) else _Dense(layer),
        activation=activation,
        curve=CURVES.get(type(activation), _identity),
    )


def _agrees(chain: Chain, victim: Victim) -> bool:
    """Whether a product of the gradient, and its derivatives, are those by `Victim.gradient`."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator).to(victim.like)

    low, high = victim.input_range
    inputs = low + (high - low) * random(victim.batch_size, *victim.input_shape)
    chances = random(victim.batch_size, victim.num_classes).softmax(dim=1)
    inputs.requires_grad_()
    chances.requires_grad_()
    factors = {name: random(*target.shape) - 0.5 for name, target in victim.target.items()}
    for name, mask in victim.visible.items():
        factors[name] = factors[name] * mask
    try:
        gradient = victim.gradient(inputs, chances)
        value = torch.stack([(gradient[n] * f).sum() for n, f in factors.items()]).sum()
        expected = torch.autograd.grad(value, (inputs, chances), materialize_grads=True)
    except RuntimeError:
        return False

    laid = chain.lay_out_gradients({name: f[None] for name, f in factors.items()})

    def product(
        gradients: dict[str, Tensor | Thin],
    ) -> tuple[Tensor, dict[str, Tensor | Thin]]:
        values = [(cast(Tensor, gradients[n]) * f).flatten(1).sum(dim=1) for n, f in laid.items()]
        return torch.stack(values).sum(dim=0), dict(laid)

    weights = {name: p.detach()[None] for name, p in victim.model.named_parameters()}
    with torch.no_grad():
        found = chain.enter(inputs[None])
    found = found.detach().requires_grad_()
    _, slopes, by_target = chain.value_and_slopes(
        found, chances.detach()[None], chain.lay_out(weights), product
    )
    again = inputs.detach()[None].requires_grad_()
    (slopes,) = torch.autograd.grad(chain.enter(again), again, slopes.reshape(found.shape))
    rough = 1e-8 if victim.like.dtype == torch.float64 else 1e-3
    return all(
        bool((mine - theirs).norm() <= rough * theirs.norm())
        for mine, theirs in zip((slopes[0], by_target[0]), expected, strict=True)
    )
