import copy
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.matching.chains import Thin, chain_of
from attacks.matching.victim import rebuild

from .conftest import Overhear


class Halves(nn.Module):
    """Maps [0, 1] to [-1, 1], as fixed normalisation does."""

    def forward(self, images: Tensor) -> Tensor:
        return 2 * images - 1


class Grown(nn.Sigmoid):
    """A sigmoid to look at, but not what it computes."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + 0.1 * images.square()


def network(*, kernel: int, stride: int, padding: int, activation: nn.Module) -> nn.Module:
    conv = nn.Conv2d(2, 3, kernel, stride=stride, padding=padding, bias=stride != 2)
    features = conv(torch.zeros(1, 2, 7, 6)).numel()
    return nn.Sequential(
        conv,
        activation,
        nn.Flatten(),
        nn.Linear(features, 5),
        copy.deepcopy(activation),
        nn.Linear(5, 4),
    )


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (5, 2, 2), (2, 3, 1)])
@pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.Tanh(), nn.Softplus(2), nn.LeakyReLU(0.1)])
def test_a_step_by_hand_is_the_double_backward_pass(
    kernel: int,
    stride: int,
    padding: int,
    activation: nn.Module,
    overhear: Overhear,
    rng: torch.Generator,
) -> None:
    torch.manual_seed(0)
    model = network(kernel=kernel, stride=stride, padding=padding, activation=activation)
    inputs = torch.rand(3, 2, 7, 6, generator=rng)
    victim = rebuild(*overhear(model, inputs, torch.tensor([0, 1, 3])), dtype=torch.float64)
    chain = chain_of(victim)
    assert chain is not None
    guesses = torch.rand(2, 3, 2, 7, 6, generator=rng).double()  # two rows of three examples
    chances = torch.rand(2, 3, 4, generator=rng).double().softmax(dim=-1)
    weights = {name: p.detach()[None] for name, p in victim.model.named_parameters()}

    heard = chain.lay_out_gradients({name: t[None] for name, t in victim.target.items()})

    def compare(
        gradients: dict[str, Tensor | Thin],
    ) -> tuple[Tensor, dict[str, Tensor | Thin]]:
        rests = {name: cast(Tensor, gradients[name]) - target for name, target in heard.items()}
        values = [rest.flatten(1).square().sum(dim=1) for rest in rests.values()]
        return torch.stack(values).sum(dim=0), {name: 2 * rest for name, rest in rests.items()}

    values, slopes, by_target = chain.value_and_slopes(
        guesses, chances, chain.lay_out(weights), compare
    )

    for row in range(2):
        guess, wanted = guesses[row].clone().requires_grad_(), chances[row].requires_grad_()
        gradient = victim.gradient(guess, wanted)
        value = torch.stack([(gradient[n] - t).square().sum() for n, t in victim.target.items()])
        expected = torch.autograd.grad(value.sum(), (guess, wanted))
        torch.testing.assert_close(values[row], value.sum())
        torch.testing.assert_close(slopes[row], expected[0])
        torch.testing.assert_close(by_target[row], expected[1])


def residual() -> nn.Module:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(1, 1, 3, padding=1)
            self.head = nn.Linear(16, 3)

        def forward(self, images: Tensor) -> Tensor:
            found: Tensor = self.head((images + self.inner(images).sigmoid()).flatten(1))
            return found

    return Residual()


@pytest.mark.parametrize(
    ("build", "understood"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)), True),
        (lambda: nn.Sequential(Halves(), nn.Flatten(), nn.Linear(16, 3)), True),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Sigmoid()), False),
        (
            lambda: nn.Sequential(nn.Conv2d(1, 2, 2, dilation=2), nn.Flatten(), nn.Linear(8, 3)),
            False,
        ),
        (
            lambda: nn.Sequential(
                nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 3)
            ),
            False,
        ),
        (
            lambda: nn.Sequential(
                nn.Conv2d(1, 2, 1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)
            ),
            False,
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(1, 2, 1), Grown(), nn.Flatten(), nn.Linear(32, 3)),
            False,
        ),
        (residual, False),
    ],
)
def test_only_chains_are_computed_by_hand(
    build: Callable[[], nn.Module], understood: bool, image: Tensor, overhear: Overhear
) -> None:
    torch.manual_seed(0)
    model = build()
    victim = rebuild(*overhear(model, image, torch.tensor([1])), dtype=torch.float64)

    assert (chain_of(victim) is not None) == understood


def test_a_loss_that_is_not_cross_entropy_is_left_to_autograd(
    net: nn.Module, image: Tensor, overhear: Overhear
) -> None:
    victim = rebuild(*overhear(net, image, torch.tensor([1])), dtype=torch.float64)

    def smoothed(logits: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(logits, targets, label_smoothing=0.1)

    assert chain_of(victim) is not None
    assert chain_of(replace(victim, loss=smoothed)) is None
