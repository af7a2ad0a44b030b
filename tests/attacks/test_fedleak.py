from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.fedleak import FedLeak
from attacks.inverting_gradients import InvertingGradients
from attacks.observation import Knowledge, ManyAtOnce, Observation
from attacks.threats import Capability

from .overhearing import overhear

NUM_CLASSES = 3


@pytest.fixture
def heard(rng: torch.Generator) -> tuple[Observation, Knowledge, Tensor]:
    """What is heard of one smooth 1x6x6 image, and the image."""
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.Sigmoid(), nn.Flatten(), nn.Linear(216, NUM_CLASSES)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=rng) - 0.5)
    image = functional.avg_pool2d(torch.rand(1, 1, 8, 8, generator=rng), 3, stride=1)
    seen, known = overhear(model, image, [2])
    return seen, known, image


def run(attack: FedLeak | InvertingGradients, seen: Observation, known: Knowledge) -> Tensor:
    found = attack(seen, known, rng=torch.Generator().manual_seed(0))
    assert found.inputs is not None
    return found.inputs


def test_it_is_an_attack_on_many_and_needs_labels_only_as_an_oracle() -> None:
    assert isinstance(FedLeak(), ManyAtOnce)
    assert FedLeak(labels="oracle").needs == FedLeak().needs | {Capability.LABELS}


def test_without_its_two_parts_it_is_inverting_gradients(
    heard: tuple[Observation, Knowledge, Tensor],
) -> None:
    seen, known, _ = heard
    plain = FedLeak(matched_share=1.0, gradient_penalty=0.0, steps=20)

    expected = run(InvertingGradients(steps=20), seen, known)

    assert torch.equal(run(plain, seen, known), expected)
    assert not torch.equal(run(replace(plain, matched_share=0.5), seen, known), expected)
    assert not torch.equal(run(replace(plain, gradient_penalty=0.5), seen, known), expected)


def test_an_image_is_found_by_parts_of_its_gradient(
    heard: tuple[Observation, Knowledge, Tensor],
) -> None:
    seen, known, image = heard

    found = run(FedLeak(steps=150, tv_weight=1e-6), seen, known)

    assert float((found - image).square().mean()) < 1e-3  # mid-grey has about 0.01


def test_the_same_seed_gives_the_same_choices(
    heard: tuple[Observation, Knowledge, Tensor],
) -> None:
    seen, known, _ = heard
    attack = FedLeak(steps=5)

    assert torch.equal(run(attack, seen, known), run(attack, seen, known))


def test_meaningless_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="share"):
        FedLeak(matched_share=2.0)
