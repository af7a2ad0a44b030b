"""The first linear layer of a model, and everything after it as one function.

For z = W x + b and a batch, the gradients of W and b are sums over the examples of s x^T / B and
s / B, where s = dL/dz, (m,), is an example's *sensitivity* there. It depends on that example's z
and label alone, unless a later layer mixes examples. Attacks on the first layer undo the sum.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from attacks.global_generators import global_generators
from attacks.linear import layer_that_sees_the_input
from attacks.network import known_architecture, trace
from attacks.observation import AttackFailed, Knowledge, Loss, Tensors

_CHUNK = 1 << 24
"""Most numbers in one block of intermediate results: 128 MiB in double precision."""


class _Given(nn.Module):
    """Stands in for the first layer: returns what it was given."""

    output: Tensor

    def forward(self, _: Tensor) -> Tensor:
        return self.output


@dataclass(frozen=True, kw_only=True, eq=False)
class FirstLayer:
    """A model in force, cut behind its first linear layer; everything in float64.

    Shapes: N examples, D pixels, m rows (neurons), K classes.

    Attributes:
        name: Of the layer, in the model.
        weight: (m, D).
        bias: (m,).
        logits: What comes after: z (N, m) -> logits (N, K), each example for itself.
        num_classes: K.
        loss: The training loss, mean over a batch.
        low: The lowest value of each input of the layer, (D,).
        high: The highest, (D,).
        to_pixels: The layer's inputs (N, D) -> images (N, C, H, W), inside the input range.
    """

    name: str
    weight: Tensor
    bias: Tensor
    logits: Callable[[Tensor], Tensor]
    num_classes: int
    loss: Loss
    low: Tensor
    high: Tensor
    to_pixels: Callable[[Tensor], Tensor]

    def outputs(self, inputs: Tensor) -> Tensor:
        """Return z, (N, m), of the layer's inputs (N, D)."""
        return torch.addmm(self.bias, inputs, self.weight.T)

    def sensitivities(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each example's dL/dz, (N, m), L being its own loss.

        Args:
            outputs: z, (N, m).
            targets: Labels (N,), int64.
        """
        outputs = outputs.detach().requires_grad_()
        with torch.enable_grad():
            total = self.loss(self.logits(outputs), targets) * len(outputs)
        return torch.autograd.grad(total, outputs)[0]

    def sensitivities_at(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """Return dL/dz at one row per example, for every label, (N, K).

        Args:
            outputs: z, (N, m).
            rows: (N,), int64.
        """
        step = max(1, _CHUNK // (outputs.shape[1] + self.num_classes))
        return torch.cat(
            [
                self._sensitivities_at(outputs[at : at + step], rows[at : at + step])
                for at in range(0, len(rows), step)
            ]
        )

    def _sensitivities_at(self, outputs: Tensor, rows: Tensor) -> Tensor:
        outputs = outputs.detach().requires_grad_()
        with torch.enable_grad():
            logits = self.logits(outputs)
        slope = slope_of_logits(logits, outputs, rows)
        return sensitivity_by_label(self.loss, logits, slope, share=len(rows))


def slope_of_logits(logits: Tensor, outputs: Tensor, rows: Tensor) -> Tensor:
    """Return the derivative of all logits by one entry of a layer's output, (N, K).

    From two passes: one backward from the logits weighted by v; and, as that is linear in v, one
    more from its result at the entry back to v.

    Args:
        logits: (N, K), with the graph that leads to `outputs`.
        outputs: Of the layer, (N, m).
        rows: Which entry, (N,) int64.
    """
    with torch.enable_grad():
        v = torch.zeros_like(logits, requires_grad=True)
        (weighted,) = torch.autograd.grad(logits, outputs, v, create_graph=True)
        at_rows = weighted.gather(1, rows[:, None]).sum()
    return torch.autograd.grad(at_rows, v)[0]


def sensitivity_by_label(loss: Loss, logits: Tensor, slope: Tensor, *, share: float) -> Tensor:
    """Return `share` times the derivative of the mean loss by an entry, for every label, (N, K).

    Args:
        loss: The training loss, mean over a batch.
        logits: (N, K).
        slope: Their derivative by that entry, (N, K).
        share: With N, it is each example's own loss.
    """
    logits = logits.detach().requires_grad_()
    found = torch.empty_like(slope)
    for label in range(slope.shape[1]):
        targets = torch.full((len(logits),), label, device=logits.device)
        with torch.enable_grad():
            total = loss(logits, targets) * share
        found[:, label] = (torch.autograd.grad(total, logits)[0] * slope).sum(1)
    return found


def first_layer(
    known: Knowledge, weights: Tensors | None = None, buffers: Tensors | None = None
) -> FirstLayer:
    """Cut the model behind its first linear layer.

    Args:
        known: At least the model, the inputs' shape and range.
        weights: Those in force; None takes the model's own, to look at the architecture.
        buffers: Those in force, used in evaluation mode.

    Raises:
        AttackFailed: The first layer that sees the image is not linear with a bias, the input also
            flows around it, examples are mixed (batch normalisation in training mode), the model
            draws random numbers, or the weights in force of a parameter were not heard.
    """
    architecture, input_shape = known_architecture(known)
    traced = trace(architecture, input_shape)
    layer, constants = layer_that_sees_the_input(traced)
    train_mode = known.recipe is None or known.recipe.train_mode
    model = _in_force(architecture, weights, buffers, train_mode)
    linear = cast(nn.Linear, model.get_submodule(layer.name))
    weight, bias = linear.weight.detach(), linear.bias.detach()
    low, high = (torch.full(input_shape, v).to(weight) for v in known.input_range)
    if constants is not None:
        mean, std = (constant.to(weight) for constant in constants)
        low, high = (low - mean) / std, (high - mean) / std

    def to_pixels(inputs: Tensor) -> Tensor:
        images = inputs.reshape(-1, *input_shape)
        if constants is not None:
            images = images * std + mean
        return images.clamp(*known.input_range)

    logits, num_classes = _cut(model, layer.name, input_shape, weight)
    return FirstLayer(
        name=layer.name,
        weight=weight,
        bias=bias,
        logits=logits,
        num_classes=num_classes,
        loss=known.loss,
        low=low.flatten(),
        high=high.flatten(),
        to_pixels=to_pixels,
    )


def layer_gradient(
    gradient: Tensors, name: str, visible: Tensors | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of the layer `name`, float64, rows not heard completely being zero.

    Returns:
        Of the weight, (m, D); of the bias, (m,); and which rows were heard completely, (m,) bool.

    Raises:
        AttackFailed: It was not heard, no row of it completely, it is not finite, or zero.
    """
    parts = []
    for parameter in ("weight", "bias"):
        full = f"{name}.{parameter}" if name else parameter
        if full not in gradient:
            raise AttackFailed(f"the gradient of '{full}' was not heard")
        tensor = gradient[full].double()
        mask = None if visible is None else visible.get(full)
        heard = torch.ones_like(tensor).bool() if mask is None else mask.to(tensor.device).bool()
        parts.append((tensor, heard))
    (weight, weight_heard), (bias, bias_heard) = parts
    if weight.dim() != 2 or bias.shape != weight.shape[:1]:
        raise AttackFailed(
            f"the gradient of layer '{name}' has shapes {tuple(weight.shape)} and "
            f"{tuple(bias.shape)}, which are not those of a linear layer"
        )
    rows = weight_heard.all(1) & bias_heard
    if not bool(rows.any()):
        raise AttackFailed(f"no row of the gradient of layer '{name}' was heard completely")
    weight, bias = torch.where(rows[:, None], weight, 0.0), torch.where(rows, bias, 0.0)
    if not bool(weight.isfinite().all() & bias.isfinite().all()):
        raise AttackFailed(f"the gradient of layer '{name}' is not finite")
    if not bool(bias.any()):
        raise AttackFailed(f"the bias gradient of layer '{name}' is zero")
    return weight, bias, rows


def require_sparsity(layer: FirstLayer) -> None:
    """Refuse a layer whose rows are active for every example.

    Raises:
        AttackFailed: The derivative of the logits does not vanish where z is far below zero.
    """
    size = layer.bias.shape
    outputs = 1 + torch.rand(1, *size, generator=torch.Generator().manual_seed(0)).to(layer.bias)
    outputs[:, ::2] *= -1
    targets = torch.arange(layer.num_classes, device=outputs.device)
    reached = layer.sensitivities(outputs.expand(layer.num_classes, -1), targets)
    if bool(reached[:, ::2].any()):
        raise AttackFailed(
            f"layer '{layer.name}' is not followed by a ReLU: every example takes part in every "
            "row of its gradient, and no row shows one example alone"
        )


def _in_force(
    model: nn.Module, weights: Tensors | None, buffers: Tensors | None, train_mode: bool
) -> nn.Module:
    """Return a float64 copy of the model, with the weights heard, in the client's mode."""
    model = copy.deepcopy(model).train(train_mode).requires_grad_(False)
    if weights is not None:
        for name, parameter in model.named_parameters():
            if name not in weights:
                raise AttackFailed(f"the weights in force of '{name}' were not heard")
            if weights[name].shape != parameter.shape:
                raise AttackFailed(
                    f"the weights heard of '{name}' have shape {tuple(weights[name].shape)}, "
                    f"the model's have {tuple(parameter.shape)}"
                )
        model = model.to(next(iter(weights.values())).device)
    model = model.double()  # before the weights: they may be heard in double precision
    for name, parameter in model.named_parameters():
        if weights is not None:
            parameter.copy_(weights[name])
    for name, buffer in model.named_buffers():
        if buffers is not None and name in buffers:
            buffer.copy_(buffers[name])
        elif weights is not None and not train_mode and name.endswith("running_mean"):
            raise AttackFailed(
                f"clients train in evaluation mode, and '{name}' was not heard; "
                "grant 'batchnorm-statistics'"
            )
    return model


def _cut(
    model: nn.Module, name: str, input_shape: tuple[int, ...], like: Tensor
) -> tuple[Callable[[Tensor], Tensor], int]:
    """Return what `model` makes of the outputs of layer `name`, and K; the model is used up."""
    given = _Given()
    if name:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, given)
    else:
        model = given

    def run(outputs: Tensor, fill: float) -> Tensor:
        given.output = outputs
        inputs = torch.full((1, *input_shape), fill).to(like).expand(len(outputs), *input_shape)
        logits: Tensor = model(inputs)
        return logits

    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(3, len(like), generator=generator).to(like)
    with torch.no_grad(), global_generators(device=like.device):
        together, again = run(outputs, 0.0), run(outputs, 0.0)
        around = run(outputs, 0.5)
        try:
            alone = torch.cat([run(one[None], 0.0) for one in outputs])
        except ValueError:  # batch normalisation of one example
            alone = torch.full_like(together, torch.nan)
    if together.dim() != 2:
        raise AttackFailed(f"the model must return logits (B, K), got {tuple(together.shape)}")
    if not torch.allclose(together, again):
        raise AttackFailed(
            "the client's model draws random numbers in training mode: what it computed cannot be "
            "recomputed"
        )
    if not torch.allclose(together, around):
        raise AttackFailed(f"the input reaches the logits around layer '{name}', too")
    if not torch.allclose(together, alone):
        raise AttackFailed(
            "a layer mixes the examples of a batch (batch normalisation in training mode): no "
            "example's gradient can be recomputed alone"
        )
    return (lambda outputs: run(outputs, 0.0)), together.shape[1]
