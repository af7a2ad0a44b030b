from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from attacks.adaptive import Adaptive
from attacks.auto import Auto
from attacks.cascade import Cascade
from attacks.choosing import Choice, choices
from attacks.contest import _within
from attacks.judging import relative_distance, rest_of
from attacks.matching.victim import rebuild
from attacks.observation import (
    Attack,
    AttackFailed,
    Budget,
    Kind,
    Knowledge,
    LocalRecipe,
    Observation,
    Reconstruction,
    Tensors,
)
from fedsim.models.lenet import dlg_lenet
from fedsim.models.vit import vit

from .local_client import hear, images
from .overhearing import overhear

SHAPE = (1, 8, 8)


@pytest.fixture
def lenet(rng: torch.Generator) -> nn.Module:
    return dlg_lenet(SHAPE, 10, rng=rng)


@pytest.fixture
def mlp() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 10))


def names(known: Knowledge, *rounds: Observation) -> list[str]:
    return [choice.name for choice in choices(known, rounds)]


def test_what_can_be_solved_is_solved_before_anything_is_searched_for(
    lenet: nn.Module, mlp: nn.Module, image: Tensor, rng: torch.Generator
) -> None:
    for model, attack in (
        (lenet, "closed-form"),
        (mlp, "linear"),
        (vit(SHAPE, 10, rng=rng, width=32, depth=2), "april"),
    ):
        seen, known = overhear(model, image, [4])

        found = Auto()(seen, known, rng=rng)

        assert found.notes["chosen"] == attack
        assert found.inputs is not None
        assert found.labels is not None
        assert (found.inputs - image).abs().max() < 0.02
        assert found.labels.tolist() == [4]
        assert found.steps == 0


def guessed(seen: Observation, off: float, rng: torch.Generator) -> dict[str, Tensor]:
    """Weights in force with a relative error."""
    return {
        name: tensor
        + off * tensor.square().mean().sqrt() * torch.randn(tensor.shape, generator=rng)
        for name, tensor in (seen.weights or {}).items()
    }


def test_layers_solved_at_weights_that_are_a_guess_are_believed_too(
    lenet: nn.Module, rng: torch.Generator
) -> None:
    image = images(1)
    seen, known = overhear(lenet, image, [4])
    weights = guessed(seen, 0.02, rng)
    told = replace(seen, weights=weights, isolated="heard", expected_weights_error=0.02)

    found = Auto(seconds=3.0)(told, known, rng=rng)

    assert found.notes["chosen"] == "closed-form"
    assert found.steps == 0
    assert found.inputs is not None
    assert (found.inputs - image).square().mean().sqrt() < 0.05


@pytest.mark.parametrize("attack", [Auto(seconds=3.0), Adaptive()])
@pytest.mark.parametrize("off", [0.03, None])
def test_a_solution_is_believed_where_weights_are_a_guess(
    mlp: nn.Module, rng: torch.Generator, attack: Attack, off: float | None
) -> None:
    image = images(1)
    seen, known = overhear(mlp, image, [4])
    weights = guessed(seen, 0.03, rng)
    seen = replace(seen, weights=weights, isolated="heard", expected_weights_error=off)

    found = attack(seen, known, rng=rng, budget=Budget(3.0))

    assert float(found.notes["relative_distance"]) > 1e-2
    assert found.notes["chosen"] == "linear"
    assert found.steps == 0
    assert found.inputs is not None
    assert (found.inputs - image).abs().max() < 1e-4


def test_where_weights_are_exact_what_needs_none_is_compared_like_others(
    mlp: nn.Module, image: Tensor, rng: torch.Generator
) -> None:
    seen, known = overhear(mlp, image, [4])
    hidden = {name: 1.5 * tensor for name, tensor in seen.update.items()}  # fits no image
    told = replace(seen, update=hidden, isolated="exact", expected_weights_error=0.0)

    one = Auto(seconds=2.0)(replace(seen, update=hidden), known, rng=rng)
    other = Auto(seconds=2.0)(told, known, rng=rng)

    for found in (one, other):
        assert "believed" not in str(found.notes["tried"])
        assert "closed-form" in str(found.notes["tried"])


@pytest.mark.parametrize(("rows_agree", "error"), [(True, 0.7), (True, None), (False, 0.3)])
def test_a_solution_of_a_poor_estimate_is_compared_like_others(
    mlp: nn.Module, image: Tensor, rng: torch.Generator, rows_agree: bool, error: float | None
) -> None:
    seen, known = overhear(mlp, image, [4])
    seen = replace(seen, isolated="estimated", expected_error=error, expected_weights_error=0.03)
    size = 0.0 if rows_agree else 1.0
    noisy = {
        name: t + size * torch.randn(t.shape, generator=rng) for name, t in seen.update.items()
    }
    told = replace(seen, update=noisy)

    found = Auto(seconds=2.0)(told, known, rng=rng)

    assert "linear" in str(found.notes["tried"])
    assert "believed" not in str(found.notes["tried"])


def test_a_batch_behind_a_first_linear_layer_is_proved(
    mlp: nn.Module, rng: torch.Generator
) -> None:
    inputs = torch.rand(4, *SHAPE, generator=rng)
    seen, known = overhear(mlp, inputs, [4, 1, 1, 9])

    found = Auto()(seen, known, rng=rng)

    assert found.notes["chosen"] == "cascade"
    assert found.certified is not None
    assert found.certified.all()


def proved_some(inputs: Tensor, labels: list[int], number: int) -> Reconstruction:
    return Reconstruction(
        inputs=inputs[:number],
        labels=torch.tensor(labels[:number]),
        certified=torch.ones(number, dtype=torch.bool),
    )


def test_what_is_proved_is_taken_off_and_leaves_the_gradient_of_the_others(
    lenet: nn.Module, rng: torch.Generator
) -> None:
    inputs, labels = torch.rand(5, *SHAPE, generator=rng), [4, 1, 1, 9, 0]
    seen, known = overhear(lenet, inputs, labels)
    victim = rebuild(seen, known, dtype=torch.float64)
    told = replace(known, labels=torch.tensor([1, 9, 0, 4, 1]))

    rest = rest_of(seen, told, victim, proved_some(inputs, labels, 3))

    assert rest is not None
    others, _ = overhear(lenet, inputs[3:], labels[3:])
    for name, tensor in others.update.items():
        torch.testing.assert_close(rest[0].update[name], tensor, rtol=1e-4, atol=1e-6)
    assert rest[1].batch_size == rest[0].num_examples == 2
    assert rest[1].labels is not None
    assert rest[1].labels.tolist() == [9, 0]


def test_nothing_is_taken_off_where_examples_share_a_normalisation(rng: torch.Generator) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sigmoid(), nn.Flatten(), nn.Linear(72, 10)
    )
    inputs, labels = torch.rand(5, *SHAPE, generator=rng), [4, 1, 1, 9, 0]
    seen, known = overhear(model, inputs, labels)
    victim = rebuild(seen, known, dtype=torch.float64)

    assert rest_of(seen, known, victim, proved_some(inputs, labels, 3)) is None


@pytest.mark.parametrize("step", [False, True])
def test_what_the_cascade_cannot_prove_is_attacked_as_a_batch_of_its_own(
    step: bool, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(64, 60), nn.ReLU(), nn.Linear(60, 10))
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.copy_((torch.rand(parameter.shape, generator=rng) - 0.5) / 4)
    inputs, labels = torch.rand(5, *SHAPE, generator=rng), [4, 1, 1, 9, 0]
    seen, known = overhear(mlp, inputs, labels)
    if step:
        moved: Tensors = {name: -0.1 * tensor for name, tensor in seen.update.items()}
        seen = replace(seen, kind=Kind.DELTA, update=moved)
        known = replace(known, recipe=LocalRecipe(learning_rate=0.1))
    monkeypatch.setattr(Cascade, "__call__", lambda *_, **__: proved_some(inputs, labels, 4))

    found = Auto()(seen, known, rng=rng)

    assert found.notes["chosen"] == "cascade + linear"
    assert found.inputs is not None
    assert found.labels is not None
    assert found.certified is not None
    assert found.certified.tolist() == [True] * 4 + [False]
    assert found.labels.tolist() == labels
    assert (found.inputs - inputs).abs().max() < 1e-3
    assert float(found.notes["relative_distance"]) < 1e-3


def test_when_the_exact_attack_cannot_read_the_view_it_searches(
    lenet: nn.Module, image: Tensor, rng: torch.Generator
) -> None:
    seen, known = overhear(lenet, image, [4])
    hidden = {n: g for n, g in seen.update.items() if not n.startswith("conv1")}

    found = Auto()(replace(seen, update=hidden), known, rng=rng, budget=Budget(60))

    assert found.notes["chosen"] in ("idlg", "dlg", "closed-form")
    assert "closed-form" in str(found.notes["tried"])
    assert float(found.notes["relative_distance"]) < 0.05


def test_the_guess_that_explains_the_update_best_is_returned_not_the_last(
    lenet: nn.Module, image: Tensor, rng: torch.Generator
) -> None:
    seen, known = overhear(lenet, image, [4])

    found = Auto(enough=0.0)(seen, known, rng=rng, budget=Budget(20))

    assert found.inputs is not None
    assert (found.inputs - image).abs().max() < 1e-3
    assert "inverting-gradients" in str(found.notes["tried"])


def test_without_weights_it_takes_what_needs_none(
    mlp: nn.Module, image: Tensor, rng: torch.Generator
) -> None:
    seen, known = overhear(mlp, image, [4])

    found = Auto()(replace(seen, weights=None), known, rng=rng)

    assert found.notes["chosen"] == "linear"
    assert "weights" in str(found.notes["not_compared"])


def test_without_weights_a_batch_is_unmixed_and_its_labels_are_still_read(
    lenet: nn.Module, mlp: nn.Module, rng: torch.Generator
) -> None:
    seen, known = overhear(lenet, torch.rand(3, *SHAPE, generator=rng), [4, 1, 9])
    blind = replace(seen, weights=None)

    found = Auto()(blind, known, rng=rng)

    assert names(known, blind) == ["label"]
    assert names(replace(known, model=mlp), blind)[-2:] == ["cocktail-party", "label"]
    assert found.inputs is None
    assert found.labels is not None
    assert found.labels.tolist() == [1, 4, 9]


@pytest.mark.parametrize("kind", [Kind.DELTA, Kind.WEIGHTS])
def test_new_weights_of_unknown_training_are_not_taken_for_one_gradient(
    kind: Kind, lenet: nn.Module, image: Tensor
) -> None:
    seen, known = overhear(lenet, image, [4])

    assert names(known, replace(seen, kind=kind)) == ["estimated-recipe", "surrogate"]
    Auto().check(known)


def test_the_order_follows_architecture_and_view(
    lenet: nn.Module, mlp: nn.Module, image: Tensor
) -> None:
    seen, one = overhear(lenet, image, [4])
    many = replace(one, batch_size=4)

    assert names(one)[:2] == ["closed-form", "idlg"]
    assert names(many)[0] == "dlg"
    assert names(replace(one, model=mlp))[0] == "linear"
    assert names(replace(many, model=mlp))[:2] == ["cascade", "spear"]
    assert "gradinversion" in names(many, replace(seen, buffers_after={"mean": torch.zeros(1)}))
    assert "temporal" in names(one, seen, seen)


def test_local_steps_are_replayed_by_what_knows_least_of_their_order(
    lenet: nn.Module, image: Tensor
) -> None:
    seen, one = overhear(lenet, image, [4])
    recipe = LocalRecipe(num_steps=4, learning_rate=0.1, num_epochs=2, batch_size=2)
    seen = replace(seen, kind=Kind.WEIGHTS)
    four = replace(one, batch_size=4, recipe=recipe)
    whole = replace(four, recipe=replace(recipe, num_steps=2, batch_size=4))

    assert names(four, seen) == ["fedavg-epochs", "inverting-gradients", "surrogate"]
    assert names(whole, seen) == ["dlg", "inverting-gradients", "surrogate"]


def test_a_guess_over_several_batches_is_judged_in_the_best_of_some_orders(
    rng: torch.Generator,
) -> None:
    inputs, labels = images(4), torch.tensor([4, 1, 1, 9])
    orders = [[[0, 1], [2, 3]], [[2, 0], [1, 3]]]
    seen, known = hear(inputs, labels, orders, learning_rate=0.1)
    recipe = LocalRecipe(num_steps=4, learning_rate=0.1, num_epochs=2, batch_size=2)
    victim = rebuild(seen, replace(known, recipe=recipe), dtype=torch.float64)
    mixed = torch.tensor([1, 0, 3, 2])  # the first epoch's batches

    right, wrong = (
        relative_distance(victim, Reconstruction(inputs=guess[mixed], labels=labels[mixed]))
        for guess in (inputs, torch.rand(inputs.shape, generator=rng))
    )

    assert right is not None
    assert wrong is not None
    assert right < 1e-5  # float32, and the order of the client among those tried
    assert wrong > 0.1


@pytest.mark.parametrize(("seconds", "shortened"), [(4.0, True), (600.0, False)])
def test_a_search_without_time_for_all_its_steps_is_given_fewer(
    seconds: float, shortened: bool, lenet: nn.Module, rng: torch.Generator
) -> None:
    seen, known = overhear(lenet, torch.rand(1, *SHAPE, generator=rng), [4])
    search = Choice(name="fedleak", why="")

    within = _within(search, seen, known, Budget(seconds))

    assert ("steps" in within.options) == shortened


def test_the_same_seed_gives_the_same_bits(lenet: nn.Module, image: Tensor) -> None:
    seen, known = overhear(lenet, image, [4])

    first, second = (
        Auto()(seen, known, rng=torch.Generator().manual_seed(5)).inputs for _ in range(2)
    )

    assert first is not None
    assert second is not None
    assert torch.equal(first, second)


def test_a_spent_budget_ends_it_with_a_reason(
    lenet: nn.Module, image: Tensor, rng: torch.Generator
) -> None:
    seen, known = overhear(lenet, image, [4])

    with pytest.raises(AttackFailed, match="no time left"):
        Auto()(seen, known, rng=rng, budget=Budget(0.0))


@pytest.mark.parametrize(
    ("options", "said"), [({"seconds": 0.0}, "seconds"), ({"enough": 1.0}, "enough")]
)
def test_settings_out_of_range_are_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Auto(**options)


def test_one_attack_that_crashes_does_not_end_the_others(
    lenet: nn.Module, image: Tensor, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise IndexError("off by one")

    monkeypatch.setattr("attacks.closed_form.ClosedForm.__call__", crash)
    seen, known = overhear(lenet, image, [4])

    found = Auto()(seen, known, rng=rng, budget=Budget(60))

    assert found.notes["chosen"] in ("idlg", "dlg")
    assert "closed-form: crashed, IndexError: off by one" in str(found.notes["tried"])
    assert found.notes["crashed"] == "closed-form"
