"""The LeNet of DLG."""

import torch
from torch import Tensor, nn
from torch.autograd import gradgradcheck

from fedsim.models.lenet import dlg_lenet


def test_its_layers_are_those_of_the_paper(rng: torch.Generator) -> None:
    model = dlg_lenet((3, 32, 32), 100, rng=rng)

    convolutions = [layer for layer in model if isinstance(layer, nn.Conv2d)]
    assert [layer.stride for layer in convolutions] == [(2, 2), (2, 2), (1, 1)]
    assert {(layer.kernel_size, layer.padding) for layer in convolutions} == {((5, 5), (2, 2))}
    assert {layer.out_channels for layer in convolutions} == {12}
    assert [name for name, _ in model.named_children()] == [
        *("conv1", "sigmoid1", "conv2", "sigmoid2", "conv3", "sigmoid3"),
        *("flatten", "linear"),
    ]


def test_every_weight_and_bias_is_uniform_on_the_published_interval(rng: torch.Generator) -> None:
    model = dlg_lenet((3, 32, 32), 100, rng=rng)

    drawn = nn.utils.parameters_to_vector(model.parameters())
    shares = torch.histc(drawn, bins=10, min=-0.5, max=0.5) / len(drawn)
    # 85,036 draws: the share of a bin has a standard error of 0.001
    torch.testing.assert_close(shares, torch.full((10,), 0.1), rtol=0, atol=0.006)


def test_it_is_twice_differentiable_in_its_input(rng: torch.Generator) -> None:
    model = dlg_lenet((1, 4, 4), 3, rng=rng).double()
    image = torch.rand(2, 1, 4, 4, generator=rng, dtype=torch.float64).requires_grad_()

    def gradient_norm(inputs: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(model(inputs), torch.tensor([0, 2]))
        gradient = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        return torch.stack([part.square().sum() for part in gradient]).sum()

    assert torch.autograd.gradcheck(gradient_norm, image)
    assert gradgradcheck(model, image)
