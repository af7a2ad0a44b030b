from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from attacks.matching.differentiable import check_twice_differentiable, require_twice_differentiable
from attacks.matching.victim import rebuild
from attacks.observation import AttackFailed, Knowledge

from .conftest import Overhear


class FusedAttention(nn.Module):
    """Attention in one kernel, whose second derivative raises."""

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(inputs, inputs, inputs)


class Once(torch.autograd.Function):
    """A sigmoid whose backward pass cannot be differentiated, and does not always say so."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        outputs: Tensor = inputs.sigmoid()
        ctx.save_for_backward(outputs)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        outputs: Tensor = ctx.saved_tensors[0]
        return slope * outputs * (1 - outputs)


class Hidden(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = Once.apply(inputs)
        return outputs


class Blind(nn.Module):
    """Rounds its input: no derivative reaches it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.linear(inputs.flatten(1).round())
        return logits


def test_a_smooth_model_is_twice_differentiable(
    net: nn.Module, image: Tensor, overhear: Overhear
) -> None:
    seen, known = overhear(net, image, torch.tensor([2]))

    require_twice_differentiable(rebuild(seen, known, dtype=torch.float64))
    check_twice_differentiable(known)
    check_twice_differentiable(replace(known, batch_size=None), seen.weights)


@pytest.mark.parametrize("layer", [FusedAttention, Hidden])
def test_a_model_without_a_second_derivative_is_refused_before_anything_is_heard(
    layer: type[nn.Module],
) -> None:
    model = nn.Sequential(nn.Linear(4, 4), layer(), nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():  # far from linear, so that the second derivative matters
        for parameter in model.parameters():
            parameter.copy_(3 * torch.arange(parameter.numel()).sin().view_as(parameter))

    with pytest.raises(AttackFailed, match="model Sequential is not twice differentiable"):
        check_twice_differentiable(Knowledge(model=model, input_shape=(1, 4, 4)))


def test_a_model_whose_gradient_says_nothing_of_the_input_is_refused() -> None:
    known = Knowledge(model=Blind(), input_shape=(1, 4, 4))

    with pytest.raises(AttackFailed, match="of model Blind does not change with the input"):
        check_twice_differentiable(known)


def test_a_model_whose_gradient_hardly_changes_passes() -> None:
    deep = nn.Sequential(
        nn.Flatten(), *(layer for _ in range(8) for layer in (nn.Linear(16, 16), nn.Sigmoid()))
    )
    with torch.no_grad():  # every layer flattens the signal by about a hundred
        for parameter in deep.parameters():
            parameter.copy_(0.01 * torch.arange(parameter.numel()).cos().view_as(parameter))

    check_twice_differentiable(Knowledge(model=deep, input_shape=(1, 4, 4)))
