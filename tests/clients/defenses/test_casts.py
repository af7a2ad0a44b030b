"""Half precision: what it rounds, what does not fit, and what an adversary makes of it."""

import pytest
import torch

from attacks.defense import Family
from attacks.observation import Kind, Knowledge, Observation
from clients.defenses.casts import BFloat16, Float16

from .conftest import MakeSituation
from .hearing import heard

CASTS = pytest.mark.parametrize("cast", [Float16(), BFloat16()])


@CASTS
def test_values_are_rounded_to_the_nearest_that_fits(
    cast: Float16, situation: MakeSituation
) -> None:
    update = {"w": torch.randn(1000, generator=torch.Generator().manual_seed(0))}
    found = cast.apply(update, situation())["w"]
    assert found.dtype == torch.float32
    assert torch.equal(found, found.to(cast.dtype).float())
    ends = torch.finfo(cast.dtype).eps / 2 * update["w"].abs()
    assert bool(((found - update["w"]).abs() <= ends).all())
    assert not torch.equal(found, update["w"])


def test_what_is_too_large_for_half_precision_becomes_its_largest_number(
    situation: MakeSituation,
) -> None:
    update = {"w": torch.tensor([1e6, -1e38, 65504.0, 1e-9])}
    assert Float16().apply(update, situation())["w"].tolist() == [65504.0, -65504.0, 65504.0, 0.0]
    assert bool(BFloat16().apply(update, situation())["w"].isfinite().all())


@CASTS
def test_what_is_no_number_stays_none(cast: Float16, situation: MakeSituation) -> None:
    found = cast.apply({"w": torch.tensor([torch.nan, torch.inf])}, situation())["w"]
    assert found.isnan().tolist() == [True, False]
    assert found.isinf().tolist() == [False, True]


@CASTS
@pytest.mark.parametrize("size", [1.0, 1e-6])
def test_who_knows_it_knows_how_far_values_were_rounded(
    cast: Float16, size: float, situation: MakeSituation
) -> None:
    update = {"w": size * torch.randn(50_000, generator=torch.Generator().manual_seed(0))}
    sent = cast.apply(update, situation())
    error = float((sent["w"] - update["w"]).double().square().mean().sqrt())
    seen, known = cast.read(heard(sent), Knowledge())
    assert known.noise is not None
    assert known.noise.family is Family.UNIFORM
    assert known.noise.deviation["w"] == pytest.approx(error, rel=0.03)
    assert seen.update is sent


def test_new_weights_are_read_as_how_far_they_moved(situation: MakeSituation) -> None:
    before = {"w": torch.tensor([1.0, 2.0])}
    sent = Float16().apply({"w": torch.tensor([0.1, 0.3])}, situation())
    seen = Observation(
        round=1,
        sender="a",
        receiver="b",
        kind=Kind.WEIGHTS,
        update={"w": before["w"] + sent["w"]},
        weights=before,
    )
    found, known = Float16().read(seen, Knowledge())
    assert found.kind is Kind.DELTA
    torch.testing.assert_close(found.update["w"], sent["w"], atol=1e-6, rtol=0)
    assert known.noise is not None
    assert known.noise.deviation["w"] < 1e-3
