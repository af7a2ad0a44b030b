import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from attacks.closed_form import ClosedForm
from attacks.observation import (
    AttackFailed,
    Budget,
    Kind,
    Knowledge,
    Observation,
    Reconstruction,
)
from attacks.r_gap import RGap, margins
from fedsim.data.cifar import cifar10
from fedsim.models.cnn6 import cnn6

from .overhearing import overhear

pytestmark = pytest.mark.usefixtures("seeded")

DIGIT = (1, 8, 8)


def known_of(model: nn.Module, shape: tuple[int, ...] = DIGIT) -> Knowledge:
    return Knowledge(model=model, input_shape=shape, batch_size=1)


def psnr(found: Reconstruction, image: Tensor) -> float:
    assert found.inputs is not None
    return -10 * math.log10(float((found.inputs - image).square().mean()))


@pytest.mark.parametrize("bias", [True, False])
def test_cnn6_gives_a_small_image_away(bias: bool, rng: torch.Generator) -> None:
    model = cnn6(DIGIT, 10, rng=rng, bias=bias)
    image = torch.rand(1, *DIGIT, generator=rng)

    found = RGap()(overhear(model, image, [3])[0], known_of(model), rng=rng)

    assert psnr(found, image) > 60  # dB; mid-grey scores about 11
    assert found.labels is not None
    assert found.labels.tolist() == [3]
    assert found.notes["conv1"] == "rank 64 of 64"


def test_equations_weighed_by_their_precision_hand_down_fewer_errors(rng: torch.Generator) -> None:
    gains = []
    for seed in range(3):
        own = torch.Generator().manual_seed(seed)
        model, image = cnn6(DIGIT, 10, rng=own), torch.rand(1, *DIGIT, generator=own)
        seen, known = overhear(model, image, [3])[0], known_of(model)

        weighed = psnr(RGap()(seen, known, rng=rng), image)
        published = psnr(RGap(gradient_weight=1.0)(seen, known, rng=rng), image)

        assert weighed > 100  # dB; measured: 140 and 62
        gains.append(weighed - published)
    assert min(gains) > 40  # dB


def test_both_solvers_find_the_same_input(
    monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    model, image = cnn6(DIGIT, 10, rng=rng), torch.rand(1, *DIGIT, generator=rng)
    seen, known = overhear(model, image, [3])[0], known_of(model)
    published = RGap(gradient_weight=1.0)

    squared = published(seen, known, rng=rng)
    monkeypatch.setattr("attacks.r_gap._ROUGH", 2.0)  # no pivot exceeds twice the largest
    dense = published(seen, known, rng=rng)

    assert squared.inputs is not None
    assert dense.inputs is not None
    torch.testing.assert_close(squared.inputs, dense.inputs, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_natural_images_exceed_the_published_benchmark(
    real_data: Path, rng: torch.Generator
) -> None:
    if not (real_data / "cifar10").is_dir():
        pytest.skip("CIFAR-10 is not among the real data sets here")
    image = cifar10(root=real_data, limit=1).test_inputs[:1]
    model = cnn6((3, 32, 32), 10, rng=rng)
    seen, known = overhear(model, image, [3])[0], known_of(model, (3, 32, 32))

    assert psnr(RGap()(seen, known, rng=rng), image) > 90  # dB; published: 49
    assert psnr(ClosedForm()(seen, known, rng=rng), image) > 45


def half_blind() -> nn.Module:
    """A network whose forward pass alone leaves its input open, and whose gradient alone does."""
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.Sigmoid(), nn.Flatten(), nn.Linear(48, 10)
    )


def test_the_rank_of_the_stack_is_told_and_least_norm_is_returned(rng: torch.Generator) -> None:
    model, image = half_blind(), torch.rand(1, *DIGIT, generator=rng)

    found = RGap()(overhear(model, image, [3])[0], known_of(model), rng=rng)

    rank, _, unknowns = str(found.notes["0"]).removeprefix("rank ").split(" ")[:3]
    assert int(unknowns) == 64
    # 27 gradient equations and 48 of the forward pass; 27 fewer if one kind were left out
    assert 48 < int(rank) <= 64


@pytest.mark.parametrize("margin", [-30.0, -2.0, -0.1, 0.0, 0.5, 2.0, 5.0])
def test_a_margin_is_found_from_the_last_weight_and_its_gradient(margin: float) -> None:
    product = -margin / (1 + math.exp(margin))

    found = margins(product)

    assert min(abs(u - margin) for u in found) < 1e-6
    assert len(found) == (2 if margin > 0 else 1)  # above zero the paper calls it not unique


def test_no_logistic_loss_gives_too_low_a_product() -> None:
    with pytest.raises(AttackFailed, match=r"no logistic loss gives less than -0\.278"):
        margins(-0.3)


def test_two_classes_without_bias_are_the_papers_logistic_case(rng: torch.Generator) -> None:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 20, bias=False), nn.Sigmoid(), nn.Linear(20, 2, bias=False)
    )
    image = torch.rand(1, *DIGIT, generator=rng)
    label = int(model(image).argmin())  # misclassified: the margin is unique

    found = RGap()(overhear(model, image, [label])[0], known_of(model), rng=rng)

    assert psnr(found, image) > 60
    assert found.labels is not None
    assert found.labels.tolist() == [label]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 10)),
            r"layer '2' \(ReLU\) is none that R-GAP passes",
        ),
        (nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10)), "BatchNorm2d"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.GELU(), nn.Linear(9, 10)), "GELU"),
    ],
    ids=["relu", "norm", "gelu"],
)
def test_what_the_recursion_cannot_pass_is_refused(model: nn.Module, reason: str) -> None:
    with pytest.raises(AttackFailed, match=reason):
        RGap().check(known_of(model))


def test_batches_large_systems_and_parts_of_an_update_are_refused(rng: torch.Generator) -> None:
    model, image = half_blind(), torch.rand(1, *DIGIT, generator=rng)
    seen = overhear(model, image, [3])[0]

    with pytest.raises(AttackFailed, match="for one image, not 2"):
        RGap().check(Knowledge(model=model, input_shape=DIGIT, batch_size=2))
    with pytest.raises(AttackFailed, match="has 64 numbers, more than max_unknowns = 63"):
        RGap(max_unknowns=63).check(known_of(model))
    part = {name: tensor for name, tensor in seen.update.items() if name != "0.weight"}
    blind = Observation(
        round=1, sender="a", receiver="b", kind=Kind.GRADIENT, update=part, weights=seen.weights
    )
    with pytest.raises(AttackFailed, match=r"all of the gradient of '0\.weight'"):
        RGap()(blind, known_of(model), rng=rng)
    with pytest.raises(AttackFailed, match="time allowed was over"):
        RGap()(seen, known_of(model), rng=rng, budget=Budget(0.0))


@pytest.mark.parametrize("settings", [{"gradient_weight": 0.0}, {"max_unknowns": 0}])
def test_settings_that_solve_nothing_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        RGap(**settings)  # type: ignore[arg-type]
