"""Rows read from the span of the first layer's gradient."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.auto import Auto
from attacks.choosing import choices
from attacks.metrics.tables import match_rows, right
from attacks.observation import Attack, AttackFailed, Kind, Knowledge, LocalRecipe, Observation
from attacks.tabular.columns import Column, Columns
from attacks.tabular.span_rows import SpanRows

CENSUS = Columns(
    columns=[
        Column(name="age", low=0, high=73, whole=True),
        *(Column(name=f"answer {n}", categories=tuple("abcdef")) for n in range(4)),
        Column(name="pay", low=0, high=1),
        Column(name="hours", low=0, high=98, whole=True),
    ]
)
NUM_CLASSES = 3

Hear = Callable[..., tuple[Observation, Knowledge]]


def rows_of(num: int, rng: torch.Generator) -> Tensor:
    """Return random rows of the census, (num, 27)."""
    parts = []
    for column in CENSUS.columns:
        if column.categories:
            drawn = torch.randint(len(column.categories), (num,), generator=rng)
            parts.append(functional.one_hot(drawn, len(column.categories)).float())
        elif column.whole:
            steps = int(column.high - column.low)
            parts.append(torch.randint(steps + 1, (num, 1), generator=rng) / steps)
        else:
            parts.append(torch.rand(num, 1, generator=rng))
    return torch.cat(parts, dim=1)


def perceptron(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(CENSUS.width, 60), activation(), nn.Linear(60, 40), activation(),
            nn.Linear(40, NUM_CLASSES),
        )  # fmt: skip


def overhear(
    rows: Tensor, labels: Tensor, model: nn.Module | None = None
) -> tuple[Observation, Knowledge]:
    model = perceptron() if model is None else model
    named = dict(model.named_parameters())
    loss = functional.cross_entropy(model(rows), labels)
    update = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    seen = Observation(
        round=1, sender="client-0", receiver="server", kind=Kind.GRADIENT, update=update,
        weights={name: parameter.detach().clone() for name, parameter in named.items()},
    )  # fmt: skip
    known = Knowledge(
        model=model, input_shape=(CENSUS.width,), num_classes=NUM_CLASSES,
        batch_size=len(rows), columns=CENSUS,
    )  # fmt: skip
    return seen, known


def order(guesses: Tensor, truths: Tensor) -> list[int]:
    return [guess for _, guess in match_rows(guesses, truths, CENSUS)]


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid])  # it needs no zeros
@pytest.mark.parametrize("num", [1, 4, 12])
def test_rows_and_labels_are_read_exactly_and_proved(
    num: int, activation: type[nn.Module], rng: torch.Generator
) -> None:
    rows = rows_of(num, rng)
    labels = torch.randint(NUM_CLASSES, (num,), generator=rng)
    seen, known = overhear(rows, labels, perceptron(activation))

    attack: Attack = SpanRows()
    attack.check(known)
    found = attack(seen, known, rng=rng)

    assert found.inputs is not None
    assert found.labels is not None
    assert found.certified is not None
    assert len(found.inputs) == num
    there = order(found.inputs, rows)
    torch.testing.assert_close(found.inputs[there], rows, atol=2e-4, rtol=0)
    assert torch.equal(found.labels[there], labels)
    assert bool(found.certified.all())


def test_a_row_that_is_there_twice_is_read_twice(rng: torch.Generator) -> None:
    rows = rows_of(4, rng)[[0, 1, 2, 3, 3]]
    labels = torch.tensor([0, 1, 2, 1, 1])
    seen, known = overhear(rows, labels)

    found = SpanRows()(seen, known, rng=rng)

    assert found.inputs is not None
    assert found.certified is not None
    torch.testing.assert_close(found.inputs[order(found.inputs, rows)], rows, atol=2e-4, rtol=0)
    assert bool(found.certified.all())


def test_a_category_that_is_said_by_nobody_is_not_guessed(rng: torch.Generator) -> None:
    rows = rows_of(5, rng)
    seen, known = overhear(rows, torch.tensor([0, 1, 2, 1, 0]))

    found = SpanRows()(seen, known, rng=rng)

    assert found.inputs is not None
    assert torch.equal(found.inputs.sum(dim=0) == 0, rows.sum(dim=0) == 0)


def test_what_it_read_is_not_proved_where_it_does_not_explain_the_gradient(
    rng: torch.Generator,
) -> None:
    rows = rows_of(6, rng)
    seen, known = overhear(rows, torch.tensor([0, 1, 2, 1, 0, 2]))
    noisy = {
        name: tensor + 2e-3 * tensor.std() * torch.randn(tensor.shape, generator=rng)
        for name, tensor in seen.update.items()
    }

    found = SpanRows()(replace(seen, update=noisy), known, rng=rng)

    assert found.inputs is not None
    assert found.certified is not None
    assert not bool(found.certified.any())
    pairs = match_rows(found.inputs, rows, CENSUS)
    guesses, truths = found.inputs[[g for _, g in pairs]], rows[[t for t, _ in pairs]]
    # a sixth of categories and a tenth of numbers are right by chance
    assert float(right(guesses, truths, CENSUS).double().mean()) > 0.7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": None}, "is on tables"),
        ({"recipe": LocalRecipe(num_steps=3, learning_rate=0.1)}, "step"),
        (
            {"columns": Columns(columns=[Column(name=f"n{n}") for n in range(27)])},
            "numbers alone has nothing that is one-hot",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_before_the_run(
    change: dict[str, object], message: str, rng: torch.Generator
) -> None:
    _, known = overhear(rows_of(2, rng), torch.tensor([0, 1]))

    with pytest.raises(AttackFailed, match=message):
        SpanRows().check(replace(known, **change))  # type: ignore[arg-type]


def test_a_batch_that_spans_all_that_rows_can_be_is_refused(rng: torch.Generator) -> None:
    rows = rows_of(30, rng)
    seen, known = overhear(rows, torch.randint(NUM_CLASSES, (30,), generator=rng))

    with pytest.raises(AttackFailed, match="no more than 21: any of them lies in the span"):
        SpanRows()(seen, known, rng=rng)


def test_auto_tries_it_first_on_rows_with_categories(rng: torch.Generator) -> None:
    rows, labels = rows_of(6, rng), torch.tensor([0, 1, 2, 1, 0, 2])
    seen, known = overhear(rows, labels)

    found = Auto()(seen, known, rng=rng)

    assert found.notes["chosen"] == "span-rows"
    assert found.inputs is not None
    torch.testing.assert_close(found.inputs[order(found.inputs, rows)], rows, atol=2e-4, rtol=0)
    numbers = Columns(columns=[Column(name=f"n{n}") for n in range(CENSUS.width)])
    assert next(choices(replace(known, columns=numbers))).name != "span-rows"
