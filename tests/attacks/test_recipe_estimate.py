import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from attacks.inverting_gradients import InvertingGradients
from attacks.matching.objectives import chord
from attacks.matching.priors import total_variation
from attacks.matching.victim import rebuild
from attacks.observation import Attack, AttackFailed, Kind, LocalRecipe
from attacks.recipe_estimate import EstimatedRecipe, examples_by_rank, labels_and_scale
from attacks.surrogate import line_through
from attacks.threats import Capability

from .local_client import hear, images

INPUTS, LABELS = images(4), torch.tensor([1, 4, 4, 9])
QUICK = EstimatedRecipe(
    epochs=(1, 5), batches=(1,), probe_steps=40, options={"steps": 5, "tv_weight": 1e-6}
)


def test_it_is_an_attack_that_needs_no_recipe() -> None:
    assert isinstance(EstimatedRecipe(), Attack)
    assert Capability.LOCAL_RECIPE not in EstimatedRecipe().needs


@pytest.mark.parametrize(
    ("steps", "momentum", "share"), [(1, 0.0, 1.0), (4, 0.0, 4.0), (2, 0.5, 2.5)]
)
def test_rate_times_steps_and_labels_are_read_off_the_bias(
    steps: int, momentum: float, share: float
) -> None:
    rate = 0.02 / share
    seen, known = hear(
        INPUTS, LABELS, [[[0, 1, 2, 3]]] * steps, learning_rate=rate, momentum=momentum
    )
    line = line_through(seen, replace(known, recipe=None), dtype=torch.float64)

    labels, scale = labels_and_scale(line.at_start, line.move, known)

    assert labels.tolist() == LABELS.tolist()
    assert scale == pytest.approx(0.02, rel=0.1)


def test_the_rank_of_the_first_layer_counts_the_different_examples() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Sigmoid(), nn.Linear(20, 10))
    seen, known = hear(INPUTS, LABELS, [[[0, 1], [2, 3]]] * 3, learning_rate=0.1, model=model)

    assert examples_by_rank(seen, replace(known, model=model)) == 4
    assert examples_by_rank(seen, known) is None  # a convolution sees the input


def test_more_steps_are_told_from_fewer_where_the_weights_move() -> None:
    seen, known = hear(INPUTS[:2], LABELS[:2], [[[0, 1]]] * 5, learning_rate=0.05)
    one, _ = hear(INPUTS[:2], LABELS[:2], [[[0, 1]]], learning_rate=0.25)
    rng = torch.Generator()

    many = QUICK.estimate(seen, replace(known, recipe=None), rng=rng.manual_seed(1))
    few = QUICK.estimate(one, replace(known, recipe=None), rng=rng.manual_seed(1))

    assert many.recipe.num_steps == 5
    assert few.recipe.num_steps == 1
    assert many.margin > 1
    assert many.recipe.learning_rate is not None
    assert many.rate_times_steps == pytest.approx(5 * many.recipe.learning_rate)


def test_total_variation_weighs_the_same_in_every_hypothesis(rng: torch.Generator) -> None:
    seen, known = hear(INPUTS[:2], LABELS[:2], [[[0, 1]]] * 5, learning_rate=0.05)
    attack = EstimatedRecipe(epochs=(1, 5), batches=(1, 2), probe_steps=3)

    estimate = attack.estimate(seen, replace(known, recipe=None), rng=rng)

    shares = []
    for recipe, distance in estimate.hypotheses:
        about = replace(known, recipe=recipe)
        found = InvertingGradients(steps=3)(seen, about, rng=rng)  # grey: no chance in it
        assert found.inputs is not None
        assert found.labels is not None
        assert found.matching_loss == pytest.approx(distance)
        victim = rebuild(seen, about, dtype=torch.float32)
        alone = float(chord(victim.gradient(found.inputs, found.labels), victim.target).detach())
        varying = float(total_variation(found.inputs, smoothing=0.01))
        shares.append(math.log(distance / alone) / varying)
    assert len(shares) == 4
    assert shares == pytest.approx(shares[:1] * 4, rel=0.02)  # rounding


def test_the_attack_runs_with_the_estimate_and_says_what_it_is(rng: torch.Generator) -> None:
    seen, known = hear(INPUTS[:2], LABELS[:2], [[[0, 1]]] * 5, learning_rate=0.01)
    wrong = replace(known, recipe=LocalRecipe(num_steps=7, learning_rate=9.0, num_epochs=7))
    attack = replace(QUICK, probe_steps=2)

    found = attack(seen, wrong, rng=rng)

    assert found.inputs is not None
    assert found.inputs.shape == (2, 1, 8, 8)
    assert found.notes["estimated_steps"] in (1.0, 5.0)
    assert found.notes["rate_times_steps"] == pytest.approx(0.05, rel=0.2)


def test_a_gradient_has_no_recipe_to_estimate(rng: torch.Generator) -> None:
    seen, known = hear(INPUTS, LABELS, [[[0, 1, 2, 3]]], learning_rate=0.1)

    with pytest.raises(AttackFailed, match="choose inverting-gradients"):
        QUICK(replace(seen, kind=Kind.GRADIENT), known, rng=rng)


@pytest.mark.parametrize("wrong", [{"epochs": ()}, {"batches": (0,)}, {"probe_steps": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="got"):
        EstimatedRecipe(**wrong)  # type: ignore[arg-type]


def test_settings_of_the_attack_itself_are_checked_at_once() -> None:
    with pytest.raises(TypeError, match="no_such"):
        EstimatedRecipe(options={"no_such": 1})
