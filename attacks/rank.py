"""How much of one image a network's layers determine, told before any gradient is heard.

Undoing a chain layer by layer works as far as each layer's equations, those of its weight gradient
and those of its forward pass, determine its input (the rank analysis of R-GAP; Zhu and Blaschko,
2021, https://arxiv.org/abs/2010.07733). Here one input, made up unless given, is run through the
model, and the equations it leaves are counted as `closed_form` would use them.

Differs from the paper: directions that float32 cannot tell do not count, and ReLU's clipped
outputs count for nothing.
"""

import copy
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.convolution import Evidence, invert_convolution
from attacks.entrance import check_chain
from attacks.network import Layer, Trace, trace
from attacks.observation import AttackFailed
from attacks.signals import gradient_error
from attacks.undo import POOLS, obstacle

_ROUNDING = 1e-6
"""Error of a layer's output when it is known from above, in units of its largest entry."""


@dataclass(frozen=True, kw_only=True)
class LayerRank:
    """What one layer's equations determine of its input, when all above is known.

    Attributes:
        name: The layer's name in the model.
        kind: The name of its class.
        unknowns: Numbers in its input.
        gradient_equations: Entries of its weight gradient.
        forward_equations: Entries of its output that are known.
        from_gradient: Unknowns that the weight gradient alone determines.
        rank: Unknowns that both determine.
        obstacle: Why it cannot be undone at all; None when it can.
    """

    name: str
    kind: str
    unknowns: int
    gradient_equations: int = 0
    forward_equations: int = 0
    from_gradient: int = 0
    rank: int = 0
    obstacle: str | None = None

    @property
    def share(self) -> float:
        """The share of the input that is determined, 0 to 1."""
        return self.rank / self.unknowns


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What the layers determine, and whether they can be undone one by one.

    Attributes:
        layers: Those with weights, and those that cannot be undone, from input to output; empty
            when the model is no chain.
        obstacle: Why the model cannot be undone layer by layer; None when it can be tried.
    """

    layers: tuple[LayerRank, ...]
    obstacle: str | None = None

    @property
    def is_determined(self) -> bool:
        """Whether every layer's input is determined, so that the image is."""
        return self.obstacle is None and all(layer.rank >= layer.unknowns for layer in self.layers)

    @property
    def index(self) -> float:
        """The missing rank, summed over d layers, the i-th from the input counting (d - i + 1) / d.

        The rank analysis index of the paper: 0 when nothing is missing, else negative. What is
        missing near the input counts most: what is missing higher up can still be made up below.
        """
        depth = len(self.layers)
        return sum(
            (depth - place) / depth * (layer.rank - layer.unknowns)
            for place, layer in enumerate(self.layers)
        )


def analyse(
    model: nn.Module,
    input_shape: tuple[int, ...],
    *,
    image: Tensor | None = None,
    label: int = 0,
    rng: torch.Generator | None = None,
) -> Analysis:
    """Count, per layer, unknowns, equations and rank for one example in evaluation mode.

    Args:
        model: With the weights to analyse; not modified.
        input_shape: (C, H, W).
        image: The input, (C, H, W); uniform on [0, 1] if None.
        label: Its class.
        rng: A CPU generator; one of seed 0 if None.
    """
    rng = torch.Generator().manual_seed(0) if rng is None else rng
    model = copy.deepcopy(model).eval()
    traced = trace(model, input_shape)
    try:
        check_chain(traced)
        reason = None
    except AttackFailed as failure:
        reason = str(failure)
    if traced.break_in_chain() is not None:
        return Analysis(layers=(), obstacle=reason)
    if image is None:
        image = torch.rand(input_shape, generator=rng)
    flows, deltas = _run(traced, image.to(traced.inputs), label)
    ranks = []
    for place, layer in enumerate(traced.layers):
        hindrance = obstacle(layer)
        if hindrance is not None:
            ranks.append(
                LayerRank(
                    name=layer.name,
                    kind=layer.kind,
                    unknowns=layer.inputs.numel(),
                    obstacle=hindrance,
                )
            )
        elif isinstance(layer.module, nn.Linear):
            ranks.append(_linear(layer, deltas[place]))
        elif isinstance(layer.module, nn.Conv2d):
            seen = _seen_from_above(traced, place, flows[place + 1])
            ranks.append(_convolution(layer, flows, place, deltas[place], seen, rng))
    return Analysis(layers=tuple(ranks), obstacle=reason)


def _run(traced: Trace, image: Tensor, label: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return what each layer receives, the logits last, and the derivative at each output."""
    flowing = image[None].requires_grad_()
    flows, outputs = [], []
    with torch.enable_grad():
        for layer in traced.layers:
            flowing = flowing.reshape(1, *layer.input_shape)
            flows.append(flowing.detach())
            flowing = layer.module(flowing.clone())
            outputs.append(flowing)
        loss = functional.cross_entropy(flowing.flatten(1), torch.tensor([label]).to(image.device))
        deltas = torch.autograd.grad(loss, outputs, allow_unused=True, materialize_grads=True)
    return [*flows, flowing.detach()], [delta.detach() for delta in deltas]


def _linear(layer: Layer, delta: Tensor) -> LayerRank:
    module = cast(nn.Linear, layer.module)
    told = module.in_features if bool(delta.any()) else 0
    return LayerRank(
        name=layer.name,
        kind=layer.kind,
        unknowns=module.in_features,
        gradient_equations=module.weight.numel(),
        forward_equations=module.out_features,
        from_gradient=told,
        rank=told or min(module.in_features, module.out_features),
    )


def _seen_from_above(traced: Trace, place: int, output: Tensor) -> Tensor:
    """Return which entries of an output, (1, ...), the layers above let through."""
    for layer in traced.layers[place + 1 :]:
        if isinstance(layer.module, nn.ReLU):
            return output.reshape(layer.inputs.shape) > 0
        if isinstance(layer.module, POOLS) and layer.input_shape != layer.output_shape:
            return torch.zeros_like(output, dtype=torch.bool)
        if layer.input_shape != tuple(output.shape[1:]) or any(
            True for _ in layer.module.parameters()
        ):
            break
    return torch.ones_like(output, dtype=torch.bool)


def _convolution(
    layer: Layer,
    flows: list[Tensor],
    place: int,
    delta: Tensor,
    seen: Tensor,
    rng: torch.Generator,
) -> LayerRank:
    conv = cast(nn.Conv2d, layer.module)
    inputs, output = flows[place].double(), flows[place + 1].double().view_as(delta)
    seen = seen.view_as(delta)
    exact = inputs.detach()
    weight = conv.weight.detach().double()
    gradient = _weight_gradient(conv, exact, delta.double())
    error = torch.where(seen, _ROUNDING * output.abs().max(), torch.inf)
    found = invert_convolution(
        conv,
        Evidence(
            output=output,
            error=error,
            delta=delta.double(),
            gradient=gradient[None],
            gradient_error=gradient_error(gradient[None], torch.zeros_like(error[:, 0, 0, 0])),
        ),
        centre=exact[0].mean().expand_as(exact[0]),
        rngs=[rng],
    )
    from_gradient = int(found.from_gradient)
    return LayerRank(
        name=layer.name,
        kind=layer.kind,
        unknowns=inputs.numel(),
        gradient_equations=weight.numel(),
        forward_equations=int(seen.sum()),
        from_gradient=from_gradient,
        rank=min(round(float(found.determined)), from_gradient + int(seen.sum())),
    )


def _weight_gradient(conv: nn.Conv2d, inputs: Tensor, delta: Tensor) -> Tensor:
    """Return the weight gradient of one run, float64."""
    conv = copy.deepcopy(conv).double()
    with torch.enable_grad():
        outputs = conv(inputs)
        (gradient,) = torch.autograd.grad(outputs, conv.weight, delta)
    return gradient
