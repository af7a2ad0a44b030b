from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from attacks.inverting_gradients import PUBLISHED, InvertingGradients
from attacks.matching.objectives import cosine_distance
from attacks.matching.priors import total_variation
from attacks.observation import (
    Attack,
    AttackFailed,
    Budget,
    Knowledge,
    ManyAtOnce,
    Reconstruction,
)
from attacks.threats import Capability
from fedsim.data.digits import digits
from fedsim.data.photos import photos
from fedsim.models.lenet import dlg_lenet

from .overhearing import overhear

NUM_CLASSES = 10
QUICK = InvertingGradients(steps=150, tv_weight=1e-6)


def error(found: Tensor | None, truth: Tensor) -> float:
    assert found is not None
    return float((found - truth).square().mean())


def test_it_is_an_attack_and_needs_labels_only_as_an_oracle() -> None:
    attack: Attack = InvertingGradients()

    assert isinstance(attack, Attack)
    assert Capability.LABELS not in attack.needs
    assert InvertingGradients(labels="oracle").needs == attack.needs | {Capability.LABELS}


def test_an_image_is_found_by_the_direction_of_its_gradient(
    model: nn.Module, blurred: Tensor, rng: torch.Generator
) -> None:
    seen, known = overhear(model, blurred, torch.tensor([4]))
    scaled = {name: 50 * tensor for name, tensor in seen.update.items()}

    found = QUICK(replace(seen, update=scaled), known, rng=rng)

    assert found.labels is not None
    assert found.labels.tolist() == [4]
    assert error(found.inputs, blurred) < 1e-3  # about 1e-5 here; mid-grey has an error of 0.01


def test_restarts_run_together_and_the_lowest_objective_wins(
    model: nn.Module, blurred: Tensor
) -> None:
    seen, known = overhear(model, blurred, torch.tensor([4]))
    attack = InvertingGradients(steps=20)

    one = attack(seen, known, rng=torch.Generator().manual_seed(1))
    four = replace(attack, restarts=4)(seen, known, rng=torch.Generator().manual_seed(1))

    assert four.steps == one.steps == 20
    assert four.matching_loss is not None
    assert one.matching_loss is not None
    assert four.matching_loss <= one.matching_loss * 1.001  # the first row, and rounding


def test_guess_and_snapshots_stay_inside_the_range(
    model: nn.Module, blurred: Tensor, rng: torch.Generator
) -> None:
    seen, known = overhear(model, blurred, torch.tensor([4]))

    found = InvertingGradients(steps=30)(seen, replace(known, input_range=(-0.2, 0.4)), rng=rng)

    assert found.inputs is not None
    for guess in (found.inputs, *(one.inputs for one in found.snapshots)):
        assert guess.min() >= -0.2
        assert guess.max() <= 0.4
    assert found.snapshots[0].step == 0
    assert found.snapshots[-1].step == found.steps == 30
    assert torch.equal(found.snapshots[-1].inputs, found.inputs)


def test_total_variation_smooths_the_guess(model: nn.Module, blurred: Tensor) -> None:
    seen, known = overhear(model, blurred, torch.tensor([4]))

    def roughness(tv_weight: float) -> float:
        attack = InvertingGradients(steps=100, tv_weight=tv_weight)
        found = attack(seen, known, rng=torch.Generator().manual_seed(1))
        assert found.inputs is not None
        return float(found.inputs.diff(dim=-1).abs().mean())

    assert roughness(10.0) < roughness(0.0) / 2


def test_labels_are_read_only_as_an_oracle(model: nn.Module, blurred: Tensor) -> None:
    seen, known = overhear(model, blurred, torch.tensor([4]))
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
    labels: Tensor | None, model: nn.Module, blurred: Tensor, rng: torch.Generator
) -> None:
    seen, known = overhear(model, blurred, torch.tensor([4]))

    with pytest.raises(AttackFailed, match="labels"):
        InvertingGradients(labels="oracle")(seen, replace(known, labels=labels), rng=rng)


def test_the_same_seed_gives_the_same_bits(model: nn.Module, blurred: Tensor) -> None:
    seen, known = overhear(model, blurred, torch.tensor([4]))

    def run(seed: int) -> Tensor:
        attack = InvertingGradients(steps=5, restarts=2, start="noise")
        found = attack(seen, known, rng=torch.Generator().manual_seed(seed))
        assert found.inputs is not None
        return found.inputs

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_a_spent_budget_ends_it_with_a_guess(
    model: nn.Module, blurred: Tensor, rng: torch.Generator
) -> None:
    seen, known = overhear(model, blurred, torch.tensor([4]))

    found = InvertingGradients()(seen, known, rng=rng, budget=Budget(0.0))

    assert not found.finished
    assert found.inputs is not None
    assert found.inputs.shape == (1, 1, 8, 8)


def test_two_images_with_different_labels_are_found(
    model: nn.Module, blurred: Tensor, rng: torch.Generator
) -> None:
    images = torch.cat((blurred, 1 - blurred))
    seen, known = overhear(model, images, torch.tensor([4, 7]))

    found = replace(QUICK, steps=300)(seen, known, rng=rng)

    assert found.labels is not None
    assert found.labels.tolist() == [4, 7]
    assert error(found.inputs, images) < 3e-3  # in order of the labels; mid-grey has 0.01


def test_victims_together_are_found_as_if_alone(model: nn.Module, blurred: Tensor) -> None:
    heard = [
        overhear(model, images, torch.tensor([label]))
        for label, images in ((4, blurred), (7, 1 - blurred))
    ]
    seen, known = [one for one, _ in heard], [what for _, what in heard]
    attack = InvertingGradients(steps=20, restarts=3, start="noise")
    assert isinstance(attack, ManyAtOnce)

    def rngs() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(k) for k in range(2)]

    together = attack.many(seen, known, rngs=rngs())

    for found, one, what, rng in zip(together, seen, known, rngs(), strict=True):
        alone = attack(one, what, rng=rng)
        assert isinstance(found, Reconstruction)
        assert found.labels is not None
        assert alone.labels is not None
        assert found.labels.tolist() == alone.labels.tolist()
        # Rounding differs with the number of rows, and a sign may turn: far below a step of 0.05.
        torch.testing.assert_close(found.inputs, alone.inputs, atol=5e-3, rtol=0)
        assert [s.step for s in found.snapshots] == [s.step for s in alone.snapshots]


def test_a_victim_that_cannot_be_inverted_does_not_stop_the_others(
    model: nn.Module, blurred: Tensor, rng: torch.Generator
) -> None:
    seen, known = overhear(model, blurred, torch.tensor([4]))
    blind = replace(seen, weights=None)

    found = InvertingGradients(steps=3).many([blind, seen], [known] * 2, rngs=[rng, rng])

    assert isinstance(found[0], AttackFailed)
    assert isinstance(found[1], Reconstruction)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": -1},
        {"restarts": 0},
        {"step_size": 0.0},
        {"tv_weight": -1.0},
        {"gradient_penalty": 2.0},
        {"matched_share": 0.0},
    ],
)
def test_meaningless_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)).partition("_")[2] or "must"):
        InvertingGradients(**wrong)  # type: ignore[arg-type]


def test_the_published_settings_are_settings() -> None:
    published = InvertingGradients(**PUBLISHED)

    assert published.signed
    assert published.schedule == "step"
    assert published.steps == 4_800


@pytest.mark.parametrize("tv_weight", [None, 1e-3])
def test_the_value_is_a_product_unless_a_weight_makes_it_a_sum(
    tv_weight: float | None, model: nn.Module, blurred: Tensor, rng: torch.Generator
) -> None:
    seen, known = overhear(model, blurred, torch.tensor([4]))
    attack = InvertingGradients(steps=3, tv_weight=tv_weight)

    found = attack(seen, known, rng=rng)

    assert found.inputs is not None
    guessed, _ = overhear(model, found.inputs, torch.tensor([4]))
    distance = cosine_distance(guessed.update, seen.update)
    variation = total_variation(found.inputs, smoothing=0.01)
    expected = (
        distance.sqrt() * (8 / 64 * variation).exp()  # 1/64 for each of the 8 pixels of a side
        if tv_weight is None
        else distance + tv_weight * variation
    )
    assert found.matching_loss == pytest.approx(float(expected), rel=1e-3)


def test_where_the_gradient_gives_a_digit_away_total_variation_does_not_draw_it_aside() -> None:
    data = digits()
    digit, label = data.train_inputs[3:4], data.train_labels[3:4]
    lenet = dlg_lenet(data.input_shape, data.num_classes, rng=torch.Generator().manual_seed(0))
    seen, known = overhear(lenet, digit, label)

    def mean_square(tv_weight: float | None) -> float:
        attack = InvertingGradients(steps=150, tv_weight=tv_weight)
        return error(attack(seen, known, rng=torch.Generator().manual_seed(0)).inputs, digit)

    assert mean_square(None) < 1e-9  # 1e-11 here; 2e-3 where a tenth of mid-grey's distance is
    assert mean_square(1e-3) > 1e-5  # added up, whatever is left of it


@pytest.mark.parametrize(
    ("activation", "normalised", "sees"),
    [
        (nn.ReLU, True, "signs"),
        (nn.ReLU, False, "slopes"),
        (nn.Sigmoid, True, "slopes"),
        (nn.Sigmoid, False, "slopes"),
    ],
)
def test_adam_sees_signs_only_at_kinks_behind_a_normalisation(
    activation: type[nn.Module],
    normalised: bool,
    sees: str,
    blurred: Tensor,
    rng: torch.Generator,
) -> None:
    norm = nn.BatchNorm2d(4) if normalised else nn.Identity()
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), norm, activation(), nn.Flatten(), nn.Linear(144, NUM_CLASSES)
    )
    images = torch.cat((blurred, 1 - blurred))
    seen, known = overhear(net, images, torch.tensor([4, 7]))

    def notes(signed: bool | None) -> object:
        return InvertingGradients(steps=1, signed=signed)(seen, known, rng=rng).notes["adam_sees"]

    assert notes(None) == sees
    assert notes(True) == "signs"
    assert notes(False) == "slopes"


@pytest.mark.slow
def test_a_photograph_is_approached_by_slopes_and_not_by_their_signs() -> None:
    data = photos()
    blurred, label = data.train_inputs[1:2], data.train_labels[1:2]
    lenet = dlg_lenet(data.input_shape, data.num_classes, rng=torch.Generator().manual_seed(0))
    seen, known = overhear(lenet, blurred, label)
    known = replace(known, input_shape=data.input_shape, num_classes=data.num_classes)

    def distance(signed: bool) -> float:
        attack = InvertingGradients(steps=500, signed=signed)
        return error(attack(seen, known, rng=torch.Generator().manual_seed(0)).inputs, blurred)

    assert distance(signed=False) < distance(signed=True) / 1.4  # 1.85 times closer here


def test_a_deep_image_prior_gives_the_start(
    model: nn.Module, blurred: Tensor, rng: torch.Generator
) -> None:
    seen, known = overhear(model, blurred, torch.tensor([4]))
    attack = InvertingGradients(steps=0, prior_steps=80, start="deep-image-prior", restarts=2)

    found = attack(seen, known, rng=rng)

    assert found.steps == 80
    # Mid-grey, where other searches start, is further away by a distance known in advance.
    assert error(found.inputs, blurred) < error(torch.full_like(blurred, 0.5), blurred) / 2


def test_half_of_the_entries_on_flat_ground_suffice(
    model: nn.Module, blurred: Tensor, rng: torch.Generator
) -> None:
    seen, known = overhear(model, blurred, torch.tensor([4]))
    attack = replace(QUICK, matched_share=0.5, matched_choice="random", gradient_penalty=0.5)

    found = attack(seen, known, rng=rng)

    assert error(found.inputs, blurred) < 1e-3  # mid-grey has an error of 0.01
