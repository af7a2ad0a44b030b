"""Residual networks and their DLG variants."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fedsim.models.resnet import BasicBlock, dlg_resnet18, dlg_resnet20, resnet18, resnet20


@pytest.mark.parametrize("factory", [dlg_resnet18, dlg_resnet20])
def test_a_dlg_variant_has_sigmoid_no_strides_and_keeps_batch_normalisation(
    factory: Callable[..., nn.Module], rng: torch.Generator
) -> None:
    model = factory((3, 16, 16), 10, rng=rng, width=2)

    layers = list(model.modules())
    assert {layer.stride for layer in layers if isinstance(layer, nn.Conv2d)} == {(1, 1)}
    assert any(isinstance(layer, nn.Sigmoid) for layer in layers)
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in layers)
    assert not any(isinstance(layer, nn.ReLU) for layer in layers)


@pytest.mark.parametrize("train_mode", [True, False])
def test_a_dlg_variant_is_twice_differentiable(train_mode: bool, rng: torch.Generator) -> None:
    model = dlg_resnet20((1, 3, 3), 2, rng=rng, width=1).double().train(train_mode)
    images = torch.rand(2, 1, 3, 3, generator=rng, dtype=torch.float64).requires_grad_()

    def gradient_norm(inputs: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(model(inputs), torch.tensor([0, 1]))
        gradient = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        return torch.stack([part.square().sum() for part in gradient]).sum()

    # finite differences of a network of 19 normalised layers: looser than for one layer
    assert torch.autograd.gradcheck(gradient_norm, images, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize(("factory", "blocks"), [(resnet18, 8), (resnet20, 9)])
def test_the_ordinary_variant_halves_the_image_at_each_stage_but_the_first(
    factory: Callable[..., nn.Module], blocks: int, rng: torch.Generator
) -> None:
    model = factory((3, 32, 32), 10, rng=rng, width=2)

    found = [module for module in model.modules() if isinstance(module, BasicBlock)]
    halved = sum(block.conv1.stride == (2, 2) for block in found)
    assert len(found) == blocks
    assert halved == (3 if factory is resnet18 else 2)
    assert sum(len(block.shortcut) > 0 for block in found) == halved


def test_an_initial_range_reaches_every_parameter(rng: torch.Generator) -> None:
    model = dlg_resnet18((3, 16, 16), 10, rng=rng, width=2, init_range=0.5)

    drawn = nn.utils.parameters_to_vector(model.parameters())
    assert drawn.abs().max() <= 0.5
    assert drawn.std() > 0.25  # of U(-0.5, 0.5): 0.289
