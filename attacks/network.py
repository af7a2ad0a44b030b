"""What running a model shows about its architecture.

Attacks that need one particular layer find it by running the model and looking at what flows,
never by position in the list of parameters.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attacks.global_generators import global_generators
from attacks.observation import AttackFailed, Knowledge, Tensors
from attacks.text.language import LanguageModel


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """One run of a leaf module, on one example.

    Attributes:
        name: Its name in the model; "" when the model is this one module.
        module: The module.
        inputs: What went in, shape (1, ...).
        outputs: What came out, shape (1, ...).
    """

    name: str
    module: nn.Module
    inputs: Tensor
    outputs: Tensor

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of what goes in, without the batch dimension."""
        return tuple(self.inputs.shape[1:])

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of what comes out, without the batch dimension."""
        return tuple(self.outputs.shape[1:])

    @property
    def kind(self) -> str:
        """The name of the module's class."""
        return type(self.module).__name__

    def parameter(self, name: str) -> str:
        """Return the model-wide name of the module's parameter `name`."""
        return f"{self.name}.{name}" if self.name else name


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """One run of a model, leaf module by leaf module, in the order they ran.

    Attributes:
        layers: The leaf modules that ran; a module that runs twice is there twice.
        inputs: What the model was given, shape (1, ...).
        outputs: What the model returned.
    """

    layers: tuple[Layer, ...]
    inputs: Tensor
    outputs: Tensor

    def break_in_chain(self, length: int | None = None) -> str | None:
        """Say where the layers stop being a chain, or return None when they are one.

        A chain feeds each layer exactly what the one before returned, reshaped at most, starting
        from the model's inputs and ending with its outputs.

        Args:
            length: Look at so many layers only, from the first; what runs after them does not
                count. None for all, and the model's outputs.
        """
        flowing, before = self.inputs, "the input"
        chain = self.layers[:length]
        for layer in chain:
            if not same_values(flowing, layer.inputs):
                return f"layer '{layer.name}' ({layer.kind}) does not see what {before} gives"
            flowing, before = layer.outputs, f"layer '{layer.name}'"
        if length is None and not same_values(flowing, self.outputs):
            return f"the model's output is not what {before} gives"
        names = [layer.name for layer in self.layers]
        twice = next((layer.name for layer in chain if names.count(layer.name) > 1), None)
        return None if twice is None else f"layer '{twice}' runs more than once"

    def classifier(self) -> Layer | None:
        """Return the last linear layer whose output is the model's output, (1, K)."""
        for layer in reversed(self.layers):
            if isinstance(layer.module, nn.Linear) and torch.equal(layer.outputs, self.outputs):
                return layer if self.outputs.dim() == 2 else None
        return None


def trace(model: nn.Module, input_shape: tuple[int, ...], *, training: bool = False) -> Trace:
    """Run a copy of `model` on one random input and note what flows.

    The input is standard normal, always the same, and so is what flows: a layer is recognised by
    its values. The layers hold modules of the copy, so `model` is neither changed nor kept.

    Args:
        model: With the weights in force.
        input_shape: Shape of one input.
        training: Run it in training mode, but for batch normalisation, which one example may not
            be enough for; else in evaluation mode. Layers that draw numbers draw others then.
    """
    model = copy.deepcopy(model).train(training)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    layers: list[Layer] = []
    waiting: dict[str, Tensor] = {}  # cloned before the module runs, which may work in place

    def before(name: str, inputs: tuple[object, ...]) -> None:
        if len(inputs) == 1 and isinstance(inputs[0], Tensor):
            waiting[name] = inputs[0].clone()

    def after(name: str, module: nn.Module, outputs: object) -> None:
        inputs = waiting.pop(name, None)
        if inputs is not None and isinstance(outputs, Tensor):
            layers.append(Layer(name=name, module=module, inputs=inputs, outputs=outputs.clone()))

    handles = []
    for name, module in model.named_modules():
        if not any(True for _ in module.children()):
            handles += [
                module.register_forward_pre_hook(lambda _, inputs, name=name: before(name, inputs)),
                module.register_forward_hook(
                    lambda module, _, outputs, name=name: after(name, module, outputs)
                ),
            ]
    rng = torch.Generator().manual_seed(0)
    if isinstance(model, LanguageModel):
        some = model.token_embedding.weight
        example = torch.randint(len(some), (1, *input_shape), generator=rng).to(some.device)
    else:
        example = torch.randn(1, *input_shape, generator=rng)
        example = example.to(next(model.parameters(), example))  # device and precision
    with torch.no_grad(), global_generators(int(training), example.device):
        outputs = logits_of(model, example.clone())
    for handle in handles:
        handle.remove()
    return Trace(layers=tuple(layers), inputs=example, outputs=outputs)


def logits_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return what `model` makes of `inputs`, (B, ...).

    Raises:
        AttackFailed: It takes no inputs of their shape.
    """
    try:
        outputs: Tensor = model(inputs)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:  # what layers raise at other shapes
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise AttackFailed(
            f"model {type(model).__name__} does not take inputs of shape "
            f"{tuple(inputs.shape[1:])}: {reason}"
        ) from error
    return outputs


def known_architecture(known: Knowledge) -> tuple[nn.Module, tuple[int, ...]]:
    """Return the model and its input shape.

    Raises:
        AttackFailed: One of them was not granted.
    """
    if known.tokens is not None:
        raise AttackFailed(
            "this attack looks for numbers, and clients train on text; choose 'auto', 'adaptive', "
            "'dlg', or one that is on text"
        )
    if known.model is None:
        raise AttackFailed("this attack runs the model; grant 'architecture'")
    if known.input_shape is None:
        raise AttackFailed("this attack needs the shape of an input, which was not granted")
    return known.model, known.input_shape


def with_weights(model: nn.Module, weights: Tensors, buffers: Tensors | None) -> nn.Module:
    """Return a copy of `model` with the weights and buffers in force, in evaluation mode.

    It lies on the device of the weights.

    Raises:
        AttackFailed: A parameter of the model was not heard, or its weights are not sound; see
            `require_sound_weights`.
    """
    require_sound_weights(model, weights)
    device = next(iter(weights.values()), torch.empty(0)).device
    model = copy.deepcopy(model).eval().to(device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in weights:
                raise AttackFailed(f"the weights in force of '{name}' were not heard")
            parameter.copy_(weights[name])
        for name, buffer in model.named_buffers():
            if buffers is not None and name in buffers:
                buffer.copy_(buffers[name])
    return model


def require_sound_weights(model: nn.Module, weights: Tensors) -> None:
    """Refuse weights in force that the model cannot take, of the parameters that were heard.

    Raises:
        AttackFailed: They have another shape than the model's, or are not finite.
    """
    for name, parameter in model.named_parameters():
        if name not in weights:
            continue
        if weights[name].shape != parameter.shape:
            raise AttackFailed(
                f"the weights heard of '{name}' have shape {tuple(weights[name].shape)}, the "
                f"model's have {tuple(parameter.shape)}"
            )
        if not bool(weights[name].isfinite().all()):
            raise AttackFailed(f"the weights in force of '{name}' are not finite")


def normalisation(layer: Layer) -> tuple[Tensor, Tensor] | None:
    """Return (mean, std), each (C, 1, 1), when `layer` is a fixed normalisation of images.

    Such a layer has no parameters, the two buffers, and returned (input - mean) / std.
    """
    buffers = dict(layer.module.named_buffers())
    if set(buffers) != {"mean", "std"} or any(True for _ in layer.module.parameters()):
        return None
    mean, std = buffers["mean"].reshape(-1, 1, 1), buffers["std"].reshape(-1, 1, 1)
    expected = (layer.inputs - mean) / std
    if expected.shape != layer.outputs.shape or not torch.allclose(expected, layer.outputs):
        return None
    return mean, std


def all_visible(visible: Mapping[str, Tensor] | None, *names: str) -> bool:
    """Whether every coordinate of the named parameters was heard."""
    return visible is None or all(
        name not in visible or bool(visible[name].all()) for name in names
    )


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers in the same order, whatever their shapes."""
    return one.numel() == other.numel() and torch.equal(one.flatten(), other.flatten())
