"""mixup: blends, their gradient, and how little they hide."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from attacks.linear import LinearInversion
from attacks.observation import Kind, Knowledge, Observation
from clients.defenses.mixup import Mixup, blend, unmix
from fedsim.config import parse_experiment
from fedsim.errors import ConfigError
from fedsim.models.build import build_model

SHAPE = (1, 8, 8)


@pytest.fixture
def model() -> nn.Module:
    rng = torch.Generator().manual_seed(1)
    return build_model("mlp", SHAPE, 10, rng=rng, options={"hidden": [16]})


def test_the_gradient_is_that_of_blended_images_and_blended_labels(model: nn.Module) -> None:
    inputs, labels = torch.rand(4, *SHAPE), torch.tensor([3, 1, 4, 1])
    defense = Mixup(alpha=0.4)

    found, loss = defense.gradient(
        model,
        functional.cross_entropy,
        inputs,
        labels,
        batch_size=4,
        rng=torch.Generator().manual_seed(5),
    )

    factor, partners = defense.draw_blend(4, torch.Generator().manual_seed(5))
    soft = functional.one_hot(labels, 10).float()
    blends, targets = (blend(one, factor, partners) for one in (inputs, soft))
    value = functional.cross_entropy(model(blends), targets)
    expected = torch.autograd.grad(value, list(model.parameters()))
    torch.testing.assert_close(list(found.values()), list(expected))
    assert loss == pytest.approx(value.item())


def test_the_factor_is_beta_distributed() -> None:
    rng = torch.Generator().manual_seed(0)
    factors = torch.tensor([Mixup(alpha=0.5).draw_blend(1, rng)[0] for _ in range(4_000)])
    # mean 1/2, variance 1 / (4 (2 alpha + 1)) = 1/8
    assert float(factors.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(factors.var()) == pytest.approx(0.125, abs=0.01)


def test_an_attack_on_a_single_image_reads_the_blend_and_not_the_image(model: nn.Module) -> None:
    inputs = torch.rand(2, *SHAPE)
    blends = blend(inputs, 0.6, torch.tensor([1, 0]))
    soft = torch.eye(10)[[3, 4]]
    loss = functional.cross_entropy(model(blends[:1]), blend(soft, 0.6, torch.tensor([1, 0]))[:1])
    found = torch.autograd.grad(loss, list(model.parameters()))
    names = [name for name, _ in model.named_parameters()]
    seen = Observation(
        round=1,
        sender="client-1",
        receiver="server",
        kind=Kind.GRADIENT,
        update=dict(zip(names, found, strict=True)),
        num_examples=1,
    )
    known = Knowledge(model=model, input_shape=SHAPE, num_classes=10, batch_size=1)

    guess = LinearInversion()(*Mixup().read(seen, known), rng=torch.Generator())

    assert guess.inputs is not None
    torch.testing.assert_close(guess.inputs, blends[:1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("factor", [0.1, 0.8])
def test_a_whole_batch_of_blends_gives_its_images_away(factor: float) -> None:
    images, partners = torch.rand(5, *SHAPE), torch.tensor([2, 0, 1, 4, 3])
    torch.testing.assert_close(unmix(blend(images, factor, partners), factor, partners), images)


def test_batches_of_one_are_refused(model: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"training\.batch_size is 1"):
        Mixup().check(parse_experiment('name = "x"'), model)


def test_a_distribution_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha must be above 0"):
        Mixup(alpha=0.0)
