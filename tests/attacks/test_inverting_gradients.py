from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.inverting_gradients import InvertingGradients
from attacks.observation import Attack, AttackFailed, Budget, Kind, Knowledge, Observation
from attacks.threats import Capability

NUM_CLASSES = 10
QUICK = InvertingGradients(steps=150, schedule="cosine", tv_weight=1e-6)


@pytest.fixture
def model(rng: torch.Generator) -> nn.Module:
    """A sigmoid network for 8x8 grey images, weights U(-0.5, 0.5)."""
    net = nn.Sequential(
        nn.Conv2d(1, 12, 5, padding=2, stride=2),
        nn.Sigmoid(),
        nn.Conv2d(12, 12, 5, padding=2),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(192, NUM_CLASSES),
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=rng) - 0.5)
    return net


@pytest.fixture
def image(rng: torch.Generator) -> Tensor:
    """One image of blurred noise, (1, 1, 8, 8)."""
    return functional.avg_pool2d(torch.rand(1, 1, 10, 10, generator=rng), 3, stride=1)


def overheard(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Observation, Knowledge]:
    named = dict(model.named_parameters())
    loss = functional.cross_entropy(model(images), labels)
    gradient = torch.autograd.grad(loss, list(named.values()))
    seen = Observation(
        round=1,
        sender="client-0",
        receiver="server",
        kind=Kind.GRADIENT,
        update=dict(zip(named, gradient, strict=True)),
        weights={name: p.detach().clone() for name, p in named.items()},
    )
    return seen, Knowledge(
        model=model, input_shape=(1, 8, 8), num_classes=NUM_CLASSES, batch_size=len(images)
    )


def error(found: Tensor | None, truth: Tensor) -> float:
    assert found is not None
    return float((found - truth).square().mean())


def test_it_is_an_attack_and_needs_labels_only_as_an_oracle() -> None:
    attack: Attack = InvertingGradients()

    assert isinstance(attack, Attack)
    assert Capability.LABELS not in attack.needs
    assert InvertingGradients(labels="oracle").needs == attack.needs | {Capability.LABELS}


def test_an_image_is_found_by_the_direction_of_its_gradient(
    model: nn.Module, image: Tensor, rng: torch.Generator
) -> None:
    seen, known = overheard(model, image, torch.tensor([4]))
    scaled = {name: 50 * tensor for name, tensor in seen.update.items()}

    found = QUICK(replace(seen, update=scaled), known, rng=rng)

    assert found.labels is not None
    assert found.labels.tolist() == [4]
    assert error(found.inputs, image) < 1e-3  # about 1e-5 here; mid-grey has an error of 0.01


def test_restarts_run_together_and_the_lowest_objective_wins(
    model: nn.Module, image: Tensor
) -> None:
    seen, known = overheard(model, image, torch.tensor([4]))
    attack = InvertingGradients(steps=20)

    one = attack(seen, known, rng=torch.Generator().manual_seed(1))
    four = replace(attack, restarts=4)(seen, known, rng=torch.Generator().manual_seed(1))

    assert four.steps == one.steps == 20
    assert four.matching_loss is not None
    assert one.matching_loss is not None
    assert four.matching_loss <= one.matching_loss


def test_guess_and_snapshots_stay_inside_the_range(
    model: nn.Module, image: Tensor, rng: torch.Generator
) -> None:
    seen, known = overheard(model, image, torch.tensor([4]))

    found = InvertingGradients(steps=30)(seen, replace(known, input_range=(-0.2, 0.4)), rng=rng)

    assert found.inputs is not None
    for guess in (found.inputs, *(one.inputs for one in found.snapshots)):
        assert guess.min() >= -0.2
        assert guess.max() <= 0.4
    assert found.snapshots[0].step == 0
    assert found.snapshots[-1].step == found.steps == 30
    assert torch.equal(found.snapshots[-1].inputs, found.inputs)


def test_total_variation_smooths_the_guess(model: nn.Module, image: Tensor) -> None:
    seen, known = overheard(model, image, torch.tensor([4]))

    def roughness(tv_weight: float) -> float:
        attack = InvertingGradients(steps=100, tv_weight=tv_weight)
        found = attack(seen, known, rng=torch.Generator().manual_seed(1))
        assert found.inputs is not None
        return float(found.inputs.diff(dim=-1).abs().mean())

    assert roughness(10.0) < roughness(0.0) / 2


def test_labels_are_read_only_as_an_oracle(model: nn.Module, image: Tensor) -> None:
    seen, known = overheard(model, image, torch.tensor([4]))
    garbage = replace(known, labels=torch.tensor([9]))

    def run(attack: InvertingGradients, known: Knowledge) -> tuple[Tensor, list[int]]:
        found = attack(seen, known, rng=torch.Generator().manual_seed(1))
        assert found.inputs is not None
        assert found.labels is not None
        return found.inputs, found.labels.tolist()

    honest, oracle = InvertingGradients(steps=5), InvertingGradients(steps=5, labels="oracle")

    assert torch.equal(run(honest, known)[0], run(honest, garbage)[0])
    assert run(honest, garbage)[1] == [4]
    assert run(oracle, garbage)[1] == [9]


@pytest.mark.parametrize("labels", [None, torch.tensor([1, 2])])
def test_an_oracle_without_the_right_labels_is_a_failure(
    labels: Tensor | None, model: nn.Module, image: Tensor, rng: torch.Generator
) -> None:
    seen, known = overheard(model, image, torch.tensor([4]))

    with pytest.raises(AttackFailed, match="labels"):
        InvertingGradients(labels="oracle")(seen, replace(known, labels=labels), rng=rng)


def test_the_same_seed_gives_the_same_bits(model: nn.Module, image: Tensor) -> None:
    seen, known = overheard(model, image, torch.tensor([4]))

    def run(seed: int) -> Tensor:
        attack = InvertingGradients(steps=5, restarts=2)
        found = attack(seen, known, rng=torch.Generator().manual_seed(seed))
        assert found.inputs is not None
        return found.inputs

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_a_spent_budget_ends_it_with_a_guess(
    model: nn.Module, image: Tensor, rng: torch.Generator
) -> None:
    seen, known = overheard(model, image, torch.tensor([4]))

    found = InvertingGradients()(seen, known, rng=rng, budget=Budget(0.0))

    assert not found.finished
    assert found.inputs is not None
    assert found.inputs.shape == (1, 1, 8, 8)


def test_two_images_with_different_labels_are_found(
    model: nn.Module, image: Tensor, rng: torch.Generator
) -> None:
    images = torch.cat((image, 1 - image))
    seen, known = overheard(model, images, torch.tensor([4, 7]))

    found = replace(QUICK, steps=300)(seen, known, rng=rng)

    assert found.labels is not None
    assert found.labels.tolist() == [4, 7]
    assert error(found.inputs, images) < 3e-3  # in order of the labels; mid-grey has 0.01
