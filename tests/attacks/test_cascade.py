from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from attacks import lone_rows
from attacks.cascade import Cascade
from attacks.observation import (
    AttackFailed,
    Budget,
    Kind,
    LocalRecipe,
    Observation,
    Reconstruction,
)
from fedsim.data.load import load_data
from fedsim.models.mlp import mlp

from .overhearing import overhear

SHAPE = (3, 16, 16)
NUM_CLASSES = 5


def build(*hidden: int) -> nn.Module:
    return mlp(SHAPE, NUM_CLASSES, rng=torch.Generator().manual_seed(0), hidden=hidden).double()


def rmse(found: Reconstruction, images: Tensor, labels: Tensor) -> Tensor:
    """Match every guess to its closest image, each at most once; check its label."""
    assert found.inputs is not None
    assert found.labels is not None
    distance = torch.cdist(found.inputs.flatten(1), images.flatten(1))
    distance = distance / images[0].numel() ** 0.5
    error, match = (distance + (found.labels[:, None] != labels)).min(1)
    assert len(set(match.tolist())) == len(match)
    return torch.as_tensor(error)


def test_a_batch_is_recovered_with_its_labels(
    photos: tuple[Tensor, Tensor], rng: torch.Generator
) -> None:
    images, labels = photos[0][:24], photos[1][:24]
    seen, known = overhear(build(300), images, labels)

    found = Cascade()(seen, known, rng=rng)

    assert len(rmse(found, images, labels)) == 24
    assert rmse(found, images, labels).max() < 1e-9
    assert found.certified is not None
    assert found.certified.all()
    assert found.notes["residual"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("dtype", "worst"), [(torch.float32, 1e-5), (torch.float16, 1e-2), (torch.bfloat16, 5e-2)]
)
def test_rounding_in_transport_costs_precision_and_never_proves_what_is_false(
    photos: tuple[Tensor, Tensor], dtype: torch.dtype, worst: float, rng: torch.Generator
) -> None:
    images, labels = photos[0][:24], photos[1][:24]
    seen, known = overhear(build(300), images, labels, sent_as=dtype)

    found = Cascade()(seen, known, rng=rng)

    error = rmse(found, images, labels)
    assert len(error) >= 12  # all 24 in single precision
    assert error.max() < worst
    assert dtype != torch.float32 or len(error) == 24


def test_what_is_taken_off_shows_what_was_hidden(
    photos: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    images, labels = photos[0][:32], photos[1][:32]
    seen, known = overhear(build(300), images, labels)
    whole = Cascade()(seen, known, rng=rng)
    nothing_taken_off = lone_rows.RowSearch.left

    def left(search: lone_rows.RowSearch, found: lone_rows.Found) -> lone_rows.Left:
        known = nothing_taken_off(search, found)
        return replace(known, gradient=search.gradient)

    monkeypatch.setattr(lone_rows.RowSearch, "left", left)
    monkeypatch.setattr(lone_rows.RowSearch, "polish", lambda _, found: found)
    first_round = Cascade()(seen, known, rng=rng)

    assert first_round.labels is not None
    assert whole.labels is not None
    assert 0 < len(first_round.labels) < len(whole.labels)


def random_gradient(seen: Observation, rng: torch.Generator) -> Observation:
    update = {
        name: torch.randn(t.shape, generator=rng, dtype=t.dtype) * t.std()
        for name, t in seen.update.items()
    }
    return replace(seen, update=update)


def low_rank_gradient(seen: Observation, rng: torch.Generator) -> Observation:
    """Rows that are true images, scaled by numbers that no network gave."""
    weight, bias = seen.update["linear1.weight"], seen.update["linear1.bias"]
    factor = torch.exp(0.05 * torch.randn(bias.shape, generator=rng, dtype=bias.dtype))
    return replace(
        seen,
        update={
            **seen.update,
            "linear1.weight": weight * factor[:, None],
            "linear1.bias": bias * factor,
        },
    )


def wrong_weights(seen: Observation, rng: torch.Generator) -> Observation:
    assert seen.weights is not None
    weights = {
        name: w + 0.05 * w.std() * torch.randn(w.shape, generator=rng, dtype=w.dtype)
        for name, w in seen.weights.items()
    }
    return replace(seen, weights=weights)


@pytest.mark.parametrize("spoil", [random_gradient, low_rank_gradient, wrong_weights])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_nothing_is_proved_that_is_not_true(
    photos: tuple[Tensor, Tensor],
    spoil: Callable[[Observation, torch.Generator], Observation],
    dtype: torch.dtype,
    rng: torch.Generator,
) -> None:
    seen, known = overhear(build(300), photos[0][:16], photos[1][:16], sent_as=dtype)

    with pytest.raises(AttackFailed, match="could be proved"):
        Cascade()(spoil(seen, rng), known, rng=rng)


def test_the_column_space_is_what_proves(
    photos: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    seen, known = overhear(build(300), photos[0][:16], photos[1][:16], sent_as=torch.bfloat16)
    monkeypatch.setattr(
        lone_rows, "distance_without", lambda _, beyond, __: torch.zeros_like(beyond[:, 0])
    )

    found = Cascade()(low_rank_gradient(seen, rng), known, rng=rng)

    # One equation at one row, and noise: some row agrees with some label by chance.
    assert found.notes["proved"] == len(found.inputs if found.inputs is not None else ()) > 0


@pytest.mark.parametrize("hidden", [(300, 40), (300, 40, 30)])
def test_any_network_may_follow_the_first_layer(
    photos: tuple[Tensor, Tensor], hidden: tuple[int, ...], rng: torch.Generator
) -> None:
    images, labels = photos[0][:16], photos[1][:16]
    seen, known = overhear(build(*hidden), images, labels)

    found = Cascade()(seen, known, rng=rng)

    assert len(rmse(found, images, labels)) == 16
    assert rmse(found, images, labels).max() < 1e-8


def test_an_image_that_is_there_twice_is_found_with_both_labels(
    photos: tuple[Tensor, Tensor], rng: torch.Generator
) -> None:
    images, labels = photos[0][:12].clone(), photos[1][:12].clone()
    images[5], labels[5] = images[4], labels[4]  # the same example twice
    images[7], labels[7] = images[6], (labels[6] + 1) % NUM_CLASSES  # two labels for one image
    seen, known = overhear(build(300), images, labels)

    found = Cascade()(seen, known, rng=rng)

    assert found.labels is not None
    assert sorted(found.labels.tolist()) == sorted(labels.tolist())
    assert found.notes["residual"] == pytest.approx(0, abs=1e-12)
    once = Cascade(copies=1)(seen, known, rng=rng)
    assert once.labels is not None
    assert len(once.labels) <= 8


def test_noise_is_followed_by_fewer_proofs_not_by_false_ones(
    photos: tuple[Tensor, Tensor], rng: torch.Generator
) -> None:
    images, labels = photos[0][:16], photos[1][:16]
    seen, known = overhear(build(300), images, labels)
    counts = []
    for std in (0.0, 1e-7, 1e-5, 1e-3):
        noisy = {
            name: t + std * torch.randn(t.shape, generator=rng, dtype=t.dtype)
            for name, t in seen.update.items()
        }
        try:
            found = Cascade()(replace(seen, update=noisy), known, rng=rng)
        except AttackFailed:
            counts.append(0)
            continue
        assert rmse(found, images, labels).max() < 0.1
        counts.append(len(rmse(found, images, labels)))

    assert counts == sorted(counts, reverse=True)
    assert counts[:2] == [16, 16]
    assert counts[-1] == 0


def test_rows_that_were_not_heard_are_missed_by_nobody(
    photos: tuple[Tensor, Tensor], rng: torch.Generator
) -> None:
    images, labels = photos[0][:12], photos[1][:12]
    seen, known = overhear(build(300), images, labels)
    visible = {name: torch.ones_like(t).bool() for name, t in seen.update.items()}
    visible["linear1.weight"][:60, 7] = False
    visible["linear1.bias"][60:100] = False
    update = {name: torch.where(visible[name], t, torch.nan) for name, t in seen.update.items()}

    found = Cascade()(replace(seen, update=update, visible=visible), known, rng=rng)

    assert len(rmse(found, images, labels)) == 12
    assert rmse(found, images, labels).max() < 1e-9


def test_a_step_of_sgd_is_as_good_as_its_gradient(
    photos: tuple[Tensor, Tensor], rng: torch.Generator
) -> None:
    images, labels = photos[0][:8], photos[1][:8]
    seen, known = overhear(build(200), images, labels)
    delta = {name: -0.1 * t for name, t in seen.update.items()}
    known = replace(known, recipe=LocalRecipe(learning_rate=0.1))

    found = Cascade()(replace(seen, kind=Kind.DELTA, update=delta), known, rng=rng)

    assert len(rmse(found, images, labels)) == 8


def test_the_same_seed_gives_the_same_bits(photos: tuple[Tensor, Tensor]) -> None:
    seen, known = overhear(build(200), photos[0][:12], photos[1][:12], sent_as=torch.float32)

    one, two = (
        Cascade()(seen, known, rng=torch.Generator().manual_seed(3)).inputs for _ in range(2)
    )

    assert one is not None
    assert two is not None
    assert torch.equal(one, two)


def test_a_spent_budget_ends_it_with_a_reason(
    photos: tuple[Tensor, Tensor], rng: torch.Generator
) -> None:
    seen, known = overhear(build(200), photos[0][:8], photos[1][:8])

    with pytest.raises(AttackFailed, match="the time allowed ended it"):
        Cascade()(seen, known, rng=rng, budget=Budget(0.0))


def test_what_it_needs_is_asked_for(photos: tuple[Tensor, Tensor], rng: torch.Generator) -> None:
    seen, known = overhear(build(100), photos[0][:4], photos[1][:4])

    with pytest.raises(AttackFailed, match="batch-size"):
        Cascade()(seen, replace(known, batch_size=None), rng=rng)
    with pytest.raises(AttackFailed, match="weights in force"):
        Cascade()(replace(seen, weights=None), known, rng=rng)
    with pytest.raises(AttackFailed, match="local steps"):
        Cascade().check(replace(known, recipe=LocalRecipe(num_steps=2, learning_rate=0.1)))
    with pytest.raises(AttackFailed, match="not followed by a ReLU"):
        Cascade().check(
            replace(
                known,
                model=mlp(SHAPE, 5, rng=rng, hidden=(20,), activation="sigmoid"),
            )
        )
    with pytest.raises(ValueError, match="copies must be at least 1, got 0"):
        Cascade(copies=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "at_least"), [(torch.float64, 63), (torch.float32, 60), (torch.bfloat16, 50)]
)
def test_64_images_of_cifar_are_recovered_from_one_gradient(
    real_data: Path, dtype: torch.dtype, at_least: int, rng: torch.Generator
) -> None:
    data = load_data("cifar10", root=str(real_data), options={"limit": 500})
    order = torch.randperm(500, generator=rng)[:64]
    images, labels = data.train_inputs[order].double(), data.train_labels[order]
    model = mlp((3, 32, 32), 10, rng=rng, hidden=(1000,)).double()
    seen, known = overhear(model, images, labels, sent_as=dtype)

    found = Cascade()(seen, known, rng=rng)

    error = rmse(found, images, labels)
    assert len(error) >= at_least
    assert error.max() < 0.03
