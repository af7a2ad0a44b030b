from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from attacks import spear
from attacks.observation import AttackFailed, Budget
from attacks.spear import Spear
from fedsim.models.mlp import mlp

from .overhearing import overhear

SHAPE = (3, 16, 16)


def build(width: int) -> nn.Module:
    return mlp(SHAPE, 5, rng=torch.Generator().manual_seed(0), hidden=(width,)).double()


@pytest.mark.parametrize("batch_size", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_batch_is_recovered_with_its_labels(
    photos: tuple[Tensor, Tensor], batch_size: int, dtype: torch.dtype, rng: torch.Generator
) -> None:
    images, labels = photos[0][:batch_size], photos[1][:batch_size]
    seen, known = overhear(build(200), images, labels, sent_as=dtype)

    found = Spear()(seen, known, rng=rng)

    assert found.inputs is not None
    assert found.labels is not None
    distance = torch.cdist(found.inputs.flatten(1), images.flatten(1)) / images[0].numel() ** 0.5
    error, match = distance.min(1)
    assert sorted(match.tolist()) == list(range(batch_size))
    assert error.max() < (1e-9 if dtype == torch.float64 else 1e-3)
    assert torch.equal(found.labels, labels[match])
    assert found.certified is not None
    assert found.certified.all()


def test_zeros_are_what_tells_a_column(
    photos: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    seen, known = overhear(build(200), photos[0][:4], photos[1][:4])
    monkeypatch.setattr(
        spear._Space,
        "zeros",
        lambda space, q: (
            torch.rand(len(q), len(space.basis), generator=torch.Generator().manual_seed(0)) < 0.3
        ),
    )

    with pytest.raises(AttackFailed, match="of 4 sparse directions"):
        Spear(samples=2_000)(seen, known, rng=rng)


def test_the_last_column_follows_from_the_others(
    photos: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    seen, known = overhear(build(200), photos[0][:3], photos[1][:3])
    keep = Spear._keep
    monkeypatch.setattr(Spear, "_keep", lambda *arguments: keep(*arguments)[:2])

    found = Spear(samples=2_000)(seen, known, rng=rng)

    assert found.certified is not None
    assert found.certified.tolist() == [True] * 3


def test_a_mixture_of_two_columns_is_not_taken_for_one() -> None:
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    columns[:40, 0] = 0
    columns[20:55, 1] = 0  # so both are inactive in 20 rows, in which every mixture is zero
    columns[:10, 2] = columns[45:, 2] = 0
    basis, turn = torch.linalg.qr(columns)
    space = spear._Space(
        basis=basis, right=turn, noise=torch.zeros(60, 3).double(), rows=torch.arange(60)
    )
    true = turn.T / turn.T.norm(dim=1, keepdim=True)
    mixed = true[0] + 0.7 * true[1]

    kept = Spear()._keep(space, torch.cat([true, (mixed / mixed.norm())[None]]))

    assert len(kept) == 3
    assert (kept @ true.T).abs().max(1).values.min() > 1 - 1e-9


def test_a_random_gradient_is_not_inverted(
    photos: tuple[Tensor, Tensor], rng: torch.Generator
) -> None:
    seen, known = overhear(build(200), photos[0][:4], photos[1][:4])
    update = {
        name: torch.randn(t.shape, generator=rng, dtype=t.dtype) for name, t in seen.update.items()
    }

    with pytest.raises(AttackFailed):
        Spear(samples=4_096)(replace(seen, update=update), known, rng=rng)


def test_a_budget_ends_the_search(photos: tuple[Tensor, Tensor], rng: torch.Generator) -> None:
    seen, known = overhear(build(200), photos[0][:4], photos[1][:4])

    with pytest.raises(AttackFailed, match="the time allowed ended it"):
        Spear()(seen, known, rng=rng, budget=Budget(0.0))


def test_a_layer_too_narrow_for_the_batch_is_refused(
    photos: tuple[Tensor, Tensor], rng: torch.Generator
) -> None:
    seen, known = overhear(build(12), photos[0][:8], photos[1][:8])

    with pytest.raises(AttackFailed, match="live rows are too few"):
        Spear()(seen, known, rng=rng)


def test_the_same_seed_gives_the_same_bits(photos: tuple[Tensor, Tensor]) -> None:
    seen, known = overhear(build(200), photos[0][:3], photos[1][:3], sent_as=torch.float32)

    one, two = (Spear()(seen, known, rng=torch.Generator().manual_seed(3)).inputs for _ in range(2))

    assert one is not None
    assert two is not None
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    "settings", [{"samples": 0}, {"at_once": 0}, {"preference": -1.0}, {"least_zeros": 1.0}]
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Spear(**settings)  # type: ignore[arg-type]  # the point of the test
