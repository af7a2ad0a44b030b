import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from attacks.labels import LabelRule
from attacks.observation import (
    Attack,
    AttackFailed,
    Budget,
    Kind,
    Knowledge,
    LocalRecipe,
    Observation,
    Tensors,
    gradient_of,
    only,
    pseudo_gradient_of,
    require_one_step,
)

SGD = LocalRecipe(learning_rate=0.05)


def heard(kind: Kind, update: Tensors, weights: Tensors | None = None) -> Observation:
    return Observation(
        round=1, sender="client-0", receiver="server", kind=kind, update=update, weights=weights
    )


def one_step_of_sgd(momentum: float = 0.0) -> tuple[Tensors, Tensors, Tensors]:
    """Return the weights before, the gradient there, and the weights after."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(4, 3).double()
        inputs, labels = torch.rand(2, 4).double(), torch.tensor([0, 2])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=momentum)
    loss = functional.cross_entropy(model(inputs), labels)
    gradient = dict(zip(before, torch.autograd.grad(loss, list(model.parameters())), strict=True))
    for name, parameter in model.named_parameters():
        parameter.grad = gradient[name].clone()
    optimizer.step()
    return before, gradient, {name: p.detach() for name, p in model.named_parameters()}


def test_a_gradient_is_what_it_is() -> None:
    _, gradient, _ = one_step_of_sgd()

    assert gradient_of(heard(Kind.GRADIENT, gradient), None) == gradient


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_delta_after_one_step_is_minus_the_learning_rate_times_the_gradient(
    momentum: float,
) -> None:
    before, gradient, after = one_step_of_sgd(momentum)
    delta = {name: after[name] - before[name] for name in before}

    torch.testing.assert_close(gradient_of(heard(Kind.DELTA, delta), SGD), dict(gradient))


def test_new_weights_carry_the_gradient_to_those_who_heard_the_old_ones() -> None:
    before, gradient, after = one_step_of_sgd()
    after = {**after, "running_mean": torch.ones(3)}  # not a parameter, so no gradient

    found = gradient_of(heard(Kind.WEIGHTS, after, before), SGD)

    torch.testing.assert_close(found, dict(gradient))


def test_reading_does_not_change_what_was_heard() -> None:
    update = {"w": torch.ones(3)}

    gradient_of(heard(Kind.DELTA, update), SGD)["w"].zero_()

    assert update["w"].tolist() == [1.0, 1.0, 1.0]


def test_new_weights_alone_carry_no_gradient() -> None:
    with pytest.raises(AttackFailed, match="needs the old ones"):
        gradient_of(heard(Kind.WEIGHTS, {"w": torch.ones(3)}), SGD)


@pytest.mark.parametrize("kind", [Kind.DELTA, Kind.WEIGHTS])
def test_several_local_steps_are_not_one_gradient(kind: Kind) -> None:
    recipe = LocalRecipe(num_steps=3, learning_rate=0.05)

    with pytest.raises(AttackFailed, match="sum of up to 3 local steps"):
        gradient_of(heard(kind, {"w": torch.ones(3)}, {"w": torch.zeros(3)}), recipe)


@pytest.mark.parametrize("recipe", [None, LocalRecipe()])
def test_a_delta_needs_the_learning_rate(recipe: LocalRecipe | None) -> None:
    with pytest.raises(AttackFailed, match="grant 'local-recipe'"):
        gradient_of(heard(Kind.DELTA, {"w": torch.ones(3)}), recipe)


@pytest.mark.parametrize("kind", [Kind.MASKED_SHARE, Kind.SIZES_ONLY])
def test_other_messages_carry_no_gradient(kind: Kind) -> None:
    with pytest.raises(AttackFailed, match=f"kind '{kind}'"):
        gradient_of(heard(kind, {"w": torch.ones(3)}), SGD)


@pytest.mark.parametrize("kind", [Kind.AGGREGATE, Kind.CHUNK])
def test_a_mean_and_a_part_of_a_gradient_are_what_they_are(kind: Kind) -> None:
    _, gradient, _ = one_step_of_sgd()

    assert gradient_of(heard(kind, gradient), None) == gradient


def test_the_refusal_of_several_steps_says_what_to_do() -> None:
    with pytest.raises(AttackFailed, match=r"replays the steps .* training.max_local_steps = 1"):
        require_one_step(LocalRecipe(num_steps=3, learning_rate=0.05))


def test_what_was_taken_off_the_weights_is_read_after_any_number_of_steps() -> None:
    recipe = LocalRecipe(num_steps=3, learning_rate=0.05, num_epochs=3)
    seen = heard(Kind.WEIGHTS, {"w": torch.ones(3)}, {"w": torch.full((3,), 1.5)})

    torch.testing.assert_close(pseudo_gradient_of(seen, recipe)["w"], torch.full((3,), 10.0))


def test_a_recipe_tells_the_steps_of_a_client_by_its_examples() -> None:
    recipe = LocalRecipe(num_steps=99, learning_rate=0.1, num_epochs=3, batch_size=4)

    assert recipe.for_examples(9).num_steps == 9
    assert replace(recipe, max_steps=5).for_examples(9).num_steps == 5
    assert LocalRecipe().for_examples(9).num_steps == 1


def test_only_is_the_one_observation_there_is() -> None:
    seen = heard(Kind.GRADIENT, {})

    assert only(seen) is seen
    assert only([seen]) is seen


@pytest.mark.parametrize("count", [0, 2])
def test_only_refuses_none_and_several(count: int) -> None:
    with pytest.raises(AttackFailed, match=f"got {count}"):
        only([heard(Kind.GRADIENT, {})] * count)


@pytest.mark.parametrize(
    ("update", "visible", "reason"),
    [
        ({}, None, "names no parameter"),
        ({"w": torch.ones(3)}, None, r"'w' has shape \(3,\), its weights in force \(2,\)"),
        ({"w": torch.ones(2)}, {"w": torch.ones(4).bool()}, r"its mask \(4,\)"),
    ],
)
@pytest.mark.parametrize("kind", [Kind.GRADIENT, Kind.DELTA, Kind.WEIGHTS])
def test_a_message_whose_parts_do_not_fit_carries_no_gradient(
    kind: Kind, update: Tensors, visible: Tensors | None, reason: str
) -> None:
    seen = replace(heard(kind, update, {"w": torch.zeros(2)}), visible=visible)

    with pytest.raises(AttackFailed, match=reason):
        gradient_of(seen, SGD)


def test_no_gradient_is_read_off_weights_that_a_rate_of_zero_left_alone() -> None:
    seen = heard(Kind.DELTA, {"w": torch.zeros(2)})

    with pytest.raises(AttackFailed, match="rate of 0"):
        gradient_of(seen, LocalRecipe(learning_rate=0.0))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": -3}, "batch_size must be at least 1, got -3"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"input_shape": ()}, "input_shape must be positive sizes"),
        ({"input_shape": (1, 0, 8)}, "input_shape must be positive sizes"),
        ({"input_range": (1.0, 0.0)}, "input_range must be"),
        (
            {"input_shape": (1, 8, 8), "public_sample": torch.rand(4, 3, 8, 8)},
            r"inputs of shape \(1, 8, 8\), got \(3, 8, 8\)",
        ),
    ],
)
def test_nobody_knows_what_cannot_be(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Knowledge(**wrong)


def test_a_budget_without_a_limit_is_never_spent() -> None:
    assert not Budget().spent


def test_a_budget_is_spent_when_its_seconds_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 10.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    budget = Budget(2.0)

    assert not budget.spent
    clock = 12.0
    assert budget.spent
    assert budget.elapsed == 2.0


def test_an_attack_is_recognised_by_its_shape() -> None:
    assert isinstance(LabelRule(), Attack)
    assert not isinstance(object(), Attack)
