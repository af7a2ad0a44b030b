"""Build a model by name, and refuse one that does not fit the data."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from fedsim.components import build, check_options
from fedsim.errors import ConfigError
from fedsim.models import MODELS
from fedsim.models.normalize import Normalize

NORMALISATION = ("mean", "std")
"""Options that every model has besides its own."""


def build_model(
    name: str,
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    rng: torch.Generator,
    options: Mapping[str, object],
) -> nn.Module:
    """Return a freshly drawn model.

    Every model takes two options besides its own, `mean` and `std`, one value per channel: given
    both, the model's first module, called `normalize`, normalises the pixels.

    Args:
        name: From `fedsim list models`, or the user's own `package.module:Name`.
        input_shape: (C, H, W).
        num_classes: K.
        rng: The only source of the initial weights.
        options: What the user wrote.

    Raises:
        ConfigError: No such model or option, or a value that an option cannot take.
    """
    chosen = {option: options[option] for option in NORMALISATION if option in options}
    own = {option: value for option, value in options.items() if option not in chosen}
    model: nn.Module = build("model", name, MODELS, input_shape, num_classes, options=own, rng=rng)
    if not chosen:
        return model
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
    name: str, model: nn.Module, input_shape: tuple[int, int, int], num_classes: int
) -> None:
    """Run one blank image through `model`, in evaluation mode, and leave it there.

    Raises:
        ConfigError: The model cannot take such images, or does not return `num_classes` logits.
    """
    blank = torch.zeros(1, *input_shape)
    try:
        with torch.no_grad():
            logits = model.eval()(blank)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"model '{name}' cannot take images of shape {input_shape}: {error}; "
            "choose another model or another image size"
        ) from error
    if logits.shape != (1, num_classes):
        raise ConfigError(
            f"model '{name}' must return logits of shape (B, {num_classes}), "
            f"got {tuple(logits.shape)} for B = 1"
        )
