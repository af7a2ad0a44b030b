"""Networks that are chains of layers, and what is heard of one private image."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attacks.closed_form import ClosedForm
from attacks.observation import Kind, Knowledge, Observation, Reconstruction, Tensors
from tests.attacks.overhearing import gradient_of_batch

DIGIT = (1, 8, 8)


def lenet(
    activation: Callable[[], nn.Module] = nn.Sigmoid,
    *,
    shape: tuple[int, int, int] = DIGIT,
    num_classes: int = 10,
    seed: int = 0,
) -> nn.Sequential:
    """The LeNet of Deep Leakage from Gradients, weights from U(-0.5, 0.5)."""
    channels, height, width = shape
    model = nn.Sequential(
        nn.Conv2d(channels, 12, 5, stride=2, padding=2),
        activation(),
        nn.Conv2d(12, 12, 5, stride=2, padding=2),
        activation(),
        nn.Conv2d(12, 12, 5, stride=1, padding=2),
        activation(),
        nn.Flatten(),
        nn.Linear(12 * (height // 4) * (width // 4), num_classes),
    )
    rng = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5, generator=rng)
    return model


def two_linear() -> nn.Module:
    return nn.Sequential(*lenet()[:-1], nn.Linear(48, 20), nn.Sigmoid(), nn.Linear(20, 10))


def heard(
    model: nn.Module,
    update: Tensors,
    kind: Kind = Kind.GRADIENT,
    visible: Tensors | None = None,
) -> Observation:
    return Observation(
        round=1,
        sender="client-0",
        receiver="server",
        kind=kind,
        update=update,
        visible=visible,
        weights={name: tensor.detach().clone() for name, tensor in model.named_parameters()},
    )


def known_of(model: nn.Module, shape: tuple[int, ...] = DIGIT) -> Knowledge:
    return Knowledge(model=model, input_shape=shape, batch_size=1)


def attack(model: nn.Module, image: Tensor, label: int, rng: torch.Generator) -> Reconstruction:
    gradient = gradient_of_batch(model, image, torch.tensor([label]))
    known = known_of(model, tuple(image.shape[1:]))
    return ClosedForm()(heard(model, gradient), known, rng=rng)


def mse(found: Reconstruction, image: Tensor) -> float:
    assert found.inputs is not None
    return float((found.inputs - image).square().mean())
