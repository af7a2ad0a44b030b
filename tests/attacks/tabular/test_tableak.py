"""TabLeak on a small table."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from attacks.matching.victim import rebuild
from attacks.metrics.tables import match_rows, right
from attacks.observation import Attack, AttackFailed, Budget, Kind, LocalRecipe, Reconstruction
from attacks.tabular.tableak import PUBLISHED, TabLeak, absent_categories
from attacks.threats import Capability

from .people import COLUMNS, overhear, people, perceptron

FAST = TabLeak(steps=400, ensemble=6, pooled=3)


def share_right(found: Reconstruction, rows: Tensor) -> float:
    assert found.inputs is not None
    pairs = match_rows(found.inputs, rows, COLUMNS)
    guesses = found.inputs[[guess for _, guess in pairs]]
    return float(right(guesses, rows[[truth for truth, _ in pairs]], COLUMNS).double().mean())


def test_it_is_an_attack_that_needs_no_labels_unless_asked() -> None:
    attack: Attack = TabLeak()

    assert isinstance(attack, Attack)
    assert Capability.LABELS not in attack.needs
    assert Capability.LABELS in TabLeak(labels="oracle").needs
    assert TabLeak(**PUBLISHED).whitening == 0


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU])  # by formulas, and by two passes back
def test_a_batch_of_rows_is_found_with_its_labels(
    activation: type[nn.Module], rng: torch.Generator
) -> None:
    rows, labels = people(4), torch.tensor([0, 1, 1, 0])
    seen, known = overhear(rows, labels, perceptron(activation=activation))

    found = FAST(seen, known, rng=rng)

    assert share_right(found, rows) >= 15 / 16  # of four features of four rows; by chance about 0.3
    assert found.labels is not None
    assert sorted(found.labels.tolist()) == [0, 0, 1, 1]
    assert found.inputs is not None
    for column, place in COLUMNS.places():
        if column.categories:
            assert found.inputs[:, place].sum(dim=1).eq(1).all()
    assert found.confidence is not None
    assert found.confidence.shape == (4, 4)
    assert found.snapshots[0].step == 0
    assert found.snapshots[-1].step == found.steps == 400
    assert found.snapshots[-1].inputs is found.inputs


def test_labels_can_be_searched_for_or_told(rng: torch.Generator) -> None:
    rows, labels = people(3), torch.tensor([0, 1, 1])
    seen, known = overhear(rows, labels)
    blind = {name: t for name, t in seen.update.items() if not name.startswith("4.")}

    told = replace(FAST, labels="oracle")(seen, replace(known, labels=labels), rng=rng)
    searched = replace(FAST, labels="search")(replace(seen, update=blind), known, rng=rng)

    assert share_right(told, rows) >= 11 / 12
    assert told.labels is not None
    assert told.labels.tolist() == labels.tolist()
    assert share_right(searched, rows) >= 10 / 12
    assert searched.labels is not None
    assert sorted(searched.labels.tolist()) == [0, 1, 1]


def test_the_weights_after_one_step_are_as_good_as_the_gradient(rng: torch.Generator) -> None:
    rows = people(3)
    seen, known = overhear(rows, torch.tensor([0, 1, 1]))
    weights = seen.weights or {}
    after = {name: weights[name] - 0.1 * step for name, step in seen.update.items()}
    recipe = LocalRecipe(num_steps=1, learning_rate=0.1, batch_size=3)

    found = FAST(
        replace(seen, kind=Kind.WEIGHTS, update=after), replace(known, recipe=recipe), rng=rng
    )

    assert share_right(found, rows) >= 11 / 12


def test_several_local_steps_are_replayed(rng: torch.Generator) -> None:
    rows, labels = people(4), torch.tensor([0, 1, 1, 0])
    model = perceptron()
    seen, known = overhear(rows, labels, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in ([0, 1], [2, 3]):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(rows[batch]), labels[batch])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    after = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    recipe = LocalRecipe(num_steps=2, learning_rate=0.1, batch_size=2)

    found = replace(FAST, steps=150, ensemble=3, pooled=2)(
        replace(seen, kind=Kind.WEIGHTS, update=after), replace(known, recipe=recipe), rng=rng
    )

    assert share_right(found, rows) >= 14 / 16


def test_a_category_that_nobody_has_is_known_from_its_column() -> None:
    rows = people(6, cities=2)
    seen, known = overhear(rows, torch.tensor([0, 1, 1, 0, 0, 1]))
    victim = rebuild(seen, known, dtype=torch.float32)

    absent = absent_categories(victim, COLUMNS)

    assert torch.equal(absent[1:6], ~rows[:, 1:6].any(dim=0))
    assert not absent[[0, 6]].any()  # numbers are never ruled out


def test_a_column_that_was_not_heard_rules_nothing_out(rng: torch.Generator) -> None:
    rows = people(6, cities=2)
    seen, known = overhear(rows, torch.tensor([0, 1, 1, 0, 0, 1]))
    mask = torch.ones(40, COLUMNS.width, dtype=torch.bool)
    mask[0, 4] = False
    victim = rebuild(replace(seen, visible={"0.weight": mask}), known, dtype=torch.float32)

    absent = absent_categories(victim, COLUMNS)

    assert not absent[4]
    assert absent[[3, 5]].all()


def test_confidence_is_higher_where_the_guess_is_right(rng: torch.Generator) -> None:
    rows = people(24)
    seen, known = overhear(rows, torch.arange(24) % 2)

    found = FAST(seen, known, rng=rng)

    assert found.inputs is not None
    assert found.confidence is not None
    pairs = match_rows(found.inputs, rows, COLUMNS)
    guesses = [guess for _, guess in pairs]
    correct = right(found.inputs[guesses], rows[[truth for truth, _ in pairs]], COLUMNS)
    sure = found.confidence[guesses]
    assert 0.1 < float(correct.double().mean()) < 0.99  # else there is nothing to compare
    assert float(sure[correct].mean()) > float(sure[~correct].mean())


def test_the_same_generator_gives_the_same_guess() -> None:
    seen, known = overhear(people(3), torch.tensor([0, 1, 1]))
    short = replace(FAST, steps=20)

    once, again = (short(seen, known, rng=torch.Generator().manual_seed(7)) for _ in range(2))

    assert once.inputs is not None
    assert again.inputs is not None
    assert torch.equal(once.inputs, again.inputs)


def test_a_spent_budget_ends_it_with_the_best_so_far(rng: torch.Generator) -> None:
    seen, known = overhear(people(3), torch.tensor([0, 1, 1]))

    found = FAST(seen, known, rng=rng, budget=Budget(0))

    assert not found.finished
    assert found.steps == 0
    assert found.inputs is not None


def test_what_is_no_table_is_refused_before_anything_is_heard(rng: torch.Generator) -> None:
    _, known = overhear(people(3), torch.tensor([0, 1, 1]))

    with pytest.raises(AttackFailed, match=r"on tables, and needs to know their columns"):
        TabLeak().check(replace(known, columns=None))
    with pytest.raises(AttackFailed, match=r"10 coordinates, the inputs known have shape \(9,\)"):
        TabLeak().check(replace(known, input_shape=(9,)))
    TabLeak().check(known)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("steps", -1), ("ensemble", 0), ("pooled", 0), ("step_size", 0.0), ("whitening", -1.0)],
)
def test_settings_without_meaning_are_refused(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=setting):
        TabLeak(**{setting: value})  # type: ignore[arg-type]
