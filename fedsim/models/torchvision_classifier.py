"""Any classifier of torchvision, untrained."""

import torch
from torch import nn

from fedsim.catalog import nearest
from fedsim.errors import ConfigError
from fedsim.models.drawing import weights_from


def torchvision_classifier(
    name: str, input_shape: tuple[int, int, int], num_classes: int, *, rng: torch.Generator
) -> nn.Module:
    """Any classifier of torchvision by its name there, as `torchvision:resnet50`; untrained.

    Auxiliary classifiers are left out. Where images do not have three channels, the first
    convolution is replaced by one that fits, freshly drawn.

    Args:
        name: As torchvision lists it.
        input_shape: (C, H, W).
        num_classes: K.
        rng: Draws the weights, by the model's own initialisation.

    Raises:
        ConfigError: torchvision has no such classifier, or it cannot be built for these images.
    """
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise ConfigError(f"torchvision has no classifier '{name}'{nearest(name, names)}")
    try:
        with weights_from(rng):
            model: nn.Module = torchvision.models.get_model(
                name, weights=None, num_classes=num_classes, **_extras(name, input_shape)
            )
            if input_shape[0] != 3:
                _replace_first_convolution(model, input_shape[0])
    except (AssertionError, ValueError) as error:
        raise ConfigError(
            f"model 'torchvision:{name}' cannot be built for images of shape {input_shape}: {error}"
        ) from error
    return model


def _extras(name: str, input_shape: tuple[int, int, int]) -> dict[str, object]:
    _, height, width = input_shape
    if name.startswith("vit_"):
        if height != width:
            raise ValueError("vision transformers take square images only")
        return {"image_size": height}
    if name.startswith("maxvit"):
        return {"input_size": (height, width)}
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True}
    return {}


def _replace_first_convolution(model: nn.Module, channels: int) -> None:
    path, first = next(
        (path, module) for path, module in model.named_modules() if isinstance(module, nn.Conv2d)
    )
    parent, _, attribute = path.rpartition(".")
    replacement = nn.Conv2d(
        channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]  # a pair, typed as a longer tuple
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    setattr(model.get_submodule(parent), attribute, replacement)
