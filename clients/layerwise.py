"""Gradients of many clients out of one pass of all their examples, layer by layer.

Where all clients stand at the same weights, forward and backward pass need not know whose an
example is; only the last step does, where what came into a layer meets what came back to its
output: one small matrix product per client. `vmap` over whole passes takes that for a convolution
with as many groups as there are clients, which is slow.

Holds for models whose trained parameters are all in linear layers and plain convolutions, each used
once a pass, and that treat one example like any other. `covers` tells the first from the model; the
rest shows in the numbers, and whoever calls this compares them once with those of single passes.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional

from attacks.observation import Loss

Layer = nn.Linear | nn.Conv2d


class Untraceable(RuntimeError):
    """A layer was used more than once in a pass, or not at all."""


def covers(model: nn.Module) -> bool:
    """Whether all trained parameters are in layers whose gradients are known here."""
    known = {
        id(parameter)
        for layer in model.modules()
        if _plain(layer)
        for parameter in layer.parameters(recurse=False)
    }
    # a parameter of two names is used twice
    names = [id(p) for _, p in model.named_parameters(remove_duplicate=False)]
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    return bool(trained) and trained <= known and len(names) == len(set(names))


def _plain(layer: nn.Module) -> bool:
    if type(layer) is nn.Linear:
        return True
    return type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros"


def gradients(
    model: nn.Module, loss: Loss, inputs: Tensor, labels: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the gradient of each client by name of parameter, shape (K, ...), and its loss (K,).

    Args:
        model: One that is covered.
        loss: Mean over a client's batch.
        inputs: Of K clients, shape (K, B, ...).
        labels: Theirs, shape (K, B, ...).

    Raises:
        Untraceable: A layer is used more than once, or not at all.
    """
    clients = len(inputs)
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if _plain(layer) and any(p.requires_grad for p in layer.parameters(recurse=False))
    }
    with torch.enable_grad(), _listening(layers) as (came, went):
        outputs = model(inputs.flatten(0, 1))
        if not isinstance(outputs, Tensor) or set(went) != set(layers):
            raise Untraceable
        losses = vmap(loss)(outputs.reshape(*labels.shape[:2], *outputs.shape[1:]), labels)
        back = torch.autograd.grad(losses.sum(), list(went.values()))
    found: dict[str, Tensor] = {}
    for name, delta in zip(went, back, strict=True):
        for key, gradient in _of_layer(layers[name], came[name], delta, clients).items():
            found[f"{name}.{key}" if name else key] = gradient
    return found, losses.detach()


@contextlib.contextmanager
def _listening(layers: dict[str, Layer]) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Note what comes into each layer, and what goes out of it."""
    came: dict[str, Tensor] = {}
    went: dict[str, Tensor] = {}

    def note(name: str) -> torch.utils.hooks.RemovableHandle:
        def hook(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            if name in went:
                raise Untraceable
            came[name], went[name] = given[0].detach(), output

        return layers[name].register_forward_hook(hook)

    handles = [note(name) for name in layers]
    try:
        yield came, went
    finally:
        for handle in handles:
            handle.remove()


def _of_layer(layer: Layer, came: Tensor, delta: Tensor, clients: int) -> dict[str, Tensor]:
    """Return the gradients of one layer's parameters that are trained, shape (K, ...)."""
    if isinstance(layer, nn.Conv2d):
        patches = _patches(layer, came, delta.shape[2:])
        weight = _by_client(delta, clients) @ _by_client(patches, clients).transpose(1, 2)
        bias = delta.sum((2, 3)).reshape(clients, -1, delta.shape[1]).sum(1)
    else:
        came, delta = (one.reshape(clients, -1, one.shape[-1]) for one in (came, delta))
        weight = delta.transpose(1, 2) @ came
        bias = delta.sum(1)
    both = {"weight": (layer.weight, weight), "bias": (layer.bias, bias)}
    return {
        key: gradient.reshape(clients, *parameter.shape)
        for key, (parameter, gradient) in both.items()
        if parameter is not None and parameter.requires_grad
    }


def _patches(layer: nn.Conv2d, inputs: Tensor, size: Sequence[int]) -> Tensor:
    """Return what each output sees of the inputs, as a view: (K B, C, kh, kw, H, W)."""
    sides: Sequence[int] = layer._reversed_padding_repeated_twice
    if any(sides):
        inputs = functional.pad(inputs, tuple(sides))
    examples, channels, down, right = inputs.stride()
    return inputs.as_strided(
        (*inputs.shape[:2], *layer.kernel_size, *size),
        (
            examples,
            channels,
            down * layer.dilation[0],
            right * layer.dilation[1],
            down * layer.stride[0],
            right * layer.stride[1],
        ),
        inputs.storage_offset(),
    )


def _by_client(tensor: Tensor, clients: int) -> Tensor:
    """Put the positions of a client's examples side by side: (K B, ..., H, W) to (K, C, B H W)."""
    own = tensor.reshape(clients, -1, *tensor.shape[1:]).movedim(1, -3)
    return own.flatten(-3).flatten(1, -2)
