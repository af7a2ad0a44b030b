"""Build a model by name, and refuse one that does not fit the data."""

import inspect
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from attacks.text.tokens import Tokens
from fedsim.components import build, check_options, find
from fedsim.errors import ConfigError
from fedsim.models import MODELS
from fedsim.models.normalize import Normalize

NORMALISATION = ("mean", "std")
"""Options that every model has besides its own."""
_IMAGES = (tuple[int, int, int], "tuple[int, int, int]")
"""How models that read nothing else declare the shape of their input."""


def build_model(
    name: str,
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    rng: torch.Generator,
    options: Mapping[str, object],
    tokens: Tokens | None = None,
) -> nn.Module:
    """Return a freshly drawn model.

    Every model takes two options besides its own, `mean` and `std`, one value per channel: given
    both, the model's first module, called `normalize`, normalises the pixels.

    Args:
        name: From `fedsim list models`, or the user's own `package.module:Name`.
        input_shape: Shape of one input.
        num_classes: K.
        rng: The only source of the initial weights.
        options: What the user wrote.
        tokens: Of text, which takes a model that reads it.

    Raises:
        ConfigError: No such model or option, or a value that an option cannot take.
    """
    chosen = {option: options[option] for option in NORMALISATION if option in options}
    own = {option: value for option, value in options.items() if option not in chosen}
    given: dict[str, object] = {"rng": rng}
    parameters = inspect.signature(find("model", name, MODELS)).parameters
    reads_text = "tokens" in parameters
    if reads_text != (tokens is not None):
        holds, other = ("text", "bert or gpt2") if tokens else ("no text", "mlp or dlg-lenet")
        raise ConfigError(
            f"model '{name}' {'reads' if reads_text else 'does not read'} text, and the data hold "
            f"{holds}; set model.name to one that fits, such as {other}, or data.name"
        )
    if tokens is not None:
        given["tokens"] = tokens
    elif len(input_shape) != 3 and next(iter(parameters.values())).annotation in _IMAGES:
        raise ConfigError(
            f"model '{name}' reads images (C, H, W), and the data hold inputs of shape "
            f"{input_shape}; set model.name to 'mlp', or data.name to images"
        )
    model: nn.Module = build("model", name, MODELS, input_shape, num_classes, options=own, **given)
    if not chosen:
        return model
    if len(input_shape) != 3:
        raise ConfigError(
            f"model.options.{min(chosen)} normalises the channels of images, and the data hold none"
        )
    return _normalized(model, normalization(input_shape[0], chosen))


def normalization(channels: int, options: Mapping[str, object]) -> Normalize:
    """Return the module behind `options`, which hold `mean` and `std`, one value per channel.

    Raises:
        ConfigError: One of the two is missing, has the wrong length, or `std` is not above 0.
    """

    def declared(*, mean: Sequence[float], std: Sequence[float]) -> None:
        """The two options; their annotations are the rules."""

    values = check_options("model.options", declared, options)
    for option in NORMALISATION:
        if len(values[option]) != channels:
            raise ConfigError(
                f"model.options.{option} must hold one value per channel ({channels}), "
                f"got {len(values[option])}"
            )
    if min(values["std"]) <= 0:
        raise ConfigError(
            f"model.options.std must be above 0 in every channel, got {values['std']}"
        )
    return Normalize(**values)


def _normalized(model: nn.Module, first: Normalize) -> nn.Sequential:
    if isinstance(model, nn.Sequential):  # stays a flat list of layers, for those who walk it
        return nn.Sequential(OrderedDict(normalize=first, **dict(model.named_children())))
    return nn.Sequential(OrderedDict(normalize=first, network=model))


def refuse_misfit(
    name: str,
    model: nn.Module,
    input_shape: tuple[int, ...],
    num_classes: int,
    tokens: Tokens | None = None,
) -> None:
    """Run one blank input through `model`, in evaluation mode, and leave it there.

    Raises:
        ConfigError: The model cannot take such inputs, or does not return `num_classes` logits.
    """
    blank = torch.zeros(1, *input_shape)
    expected: tuple[int, ...] = (1, num_classes)
    if tokens is not None:
        blank = torch.full((1, *input_shape), (tokens.pad + 1) % tokens.vocabulary_size)
        expected = expected if tokens.head == "classes" else (1, *input_shape, num_classes)
    try:
        with torch.no_grad():
            logits = model.eval()(blank)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"model '{name}' cannot take inputs of shape {input_shape}: {error}; "
            "choose another model or another size of inputs"
        ) from error
    if logits.shape != expected:
        raise ConfigError(
            f"model '{name}' must return logits of shape {expected} for one input, "
            f"got {tuple(logits.shape)}"
        )
