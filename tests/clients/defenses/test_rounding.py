"""int8 and QSGD: the right mean, few levels, and errors of the size that adversaries assume."""

import math

import pytest
import torch

from attacks.observation import Knowledge
from clients.defenses.int8 import Int8
from clients.defenses.qsgd import QSGD
from fedsim.defenses import UpdateDefense

from .conftest import MakeSituation
from .hearing import heard


def normal(*shape: int, seed: int = 10**6) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def deviation(defense: Int8 | QSGD, sent: dict[str, torch.Tensor], server_round: int = 1) -> float:
    _, known = defense.read(heard(sent, server_round), Knowledge())
    assert known.noise is not None
    return known.noise.deviation["w"]


@pytest.mark.parametrize(
    "defense", [Int8(), QSGD(levels=4, bucket=8), QSGD(levels=1, bucket=None), QSGD(levels=100)]
)
def test_stochastic_rounding_has_the_right_mean(
    defense: UpdateDefense, situation: MakeSituation
) -> None:
    tensor = torch.tensor([0.7, -0.3, 0.01, 0.0, -2.0, 1e-4])
    at = situation()
    draws = torch.stack([defense.apply({"w": tensor}, at)["w"] for _ in range(4000)])
    # five standard errors: v becomes a unit with chance v / unit, and a unit is at most the norm
    allowed = 5 * (tensor.abs() * tensor.norm() / len(draws)).sqrt() + 1e-6
    assert bool(((draws.mean(dim=0) - tensor).abs() <= allowed).all())


def test_int8_has_255_levels_and_keeps_the_largest_magnitude(situation: MakeSituation) -> None:
    tensor = normal(50, 1000)
    for defense in (Int8(rounding="nearest"), Int8()):
        found = defense.apply({"w": tensor}, situation())["w"]
        assert 100 < len(torch.unique(found)) <= 255
        assert float(found.abs().max()) == pytest.approx(float(tensor.abs().max()), rel=1e-6)


def test_int8_to_the_nearest_level_is_off_by_half_a_unit_at_most(situation: MakeSituation) -> None:
    tensor = normal(1000)
    found = Int8(rounding="nearest").apply({"w": tensor}, situation())["w"]
    unit = float(tensor.abs().max()) / 127
    assert float((found - tensor).abs().max()) <= 0.5001 * unit


def test_a_largest_magnitude_of_all_tensors_loses_what_is_small_and_cuts_what_is_large(
    situation: MakeSituation,
) -> None:
    update = {"small": torch.tensor([0.003, -0.003]), "large": torch.tensor([0.5, -9.0])}
    found = Int8(largest=1.0, rounding="nearest").apply(update, situation())
    assert not found["small"].any()  # below half of 1 / 127
    torch.testing.assert_close(found["large"], torch.tensor([64 / 127, -1.0]))
    with pytest.raises(ValueError, match=r"largest must be .* above 0, got 0"):
        Int8(largest=0.0)


def test_qsgd_sends_whole_levels_of_the_norm_of_each_bucket(situation: MakeSituation) -> None:
    tensor = normal(10, 60) * torch.logspace(-3, 3, 10)[:, None]
    found = QSGD(levels=5, bucket=60).apply({"w": tensor}, situation())["w"]
    unit = tensor.norm(dim=1, keepdim=True) / 5
    levels = found / unit
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    assert bool((levels - tensor / unit).abs().le(1 + 1e-4).all())


def test_a_last_bucket_that_is_not_full_and_no_values_at_all_are_sent_too(
    situation: MakeSituation,
) -> None:
    update = {"w": normal(7, 3), "none": torch.zeros(0, 2), "one": torch.tensor(3.0)}
    for defense in (QSGD(levels=200, bucket=8), Int8()):
        found = defense.apply(update, situation())
        assert [tensor.shape for tensor in found.values()] == [(7, 3), (0, 2), ()]
        assert float(found["one"]) == pytest.approx(3.0)
        defense.read(heard(found), Knowledge())


def test_a_tensor_of_zeros_stays_zero_and_one_with_nan_does_not_become_numbers(
    situation: MakeSituation,
) -> None:
    for defense in (QSGD(), Int8(), QSGD(error_feedback=True)):
        found = defense.apply({"w": torch.zeros(9), "v": torch.tensor([torch.nan])}, situation())
        assert not found["w"].any()
        assert bool(found["v"].isnan().all())


@pytest.mark.parametrize(
    "defense",
    [
        Int8(rounding="nearest"),
        Int8(),
        Int8(largest=6.0),
        Int8(largest=6.0, rounding="nearest"),
        QSGD(levels=64, bucket=None),
        QSGD(levels=16),
        QSGD(levels=256),
        QSGD(levels=2),
    ],
    ids=str,
)
def test_who_knows_it_knows_the_size_of_the_errors(
    defense: Int8 | QSGD, situation: MakeSituation
) -> None:
    update = {"w": normal(40, 1024)}
    sent = defense.apply(update, situation())
    error = float((sent["w"] - update["w"]).square().mean().sqrt())
    assert deviation(defense, sent) == pytest.approx(error, rel=0.05)


@pytest.mark.parametrize("defense", [Int8(error_feedback=True), QSGD(error_feedback=True)], ids=str)
def test_feedback_sends_late_what_rounding_took_off(
    defense: UpdateDefense, situation: MakeSituation
) -> None:
    update = {"w": normal(600)}
    memory: dict[str, torch.Tensor] = {}
    total = torch.zeros(600)
    for server_round in range(1, 41):
        at = situation(seed=server_round, memory=memory, server_round=server_round)
        total += defense.apply(update, at)["w"]
    missing = 40 * update["w"] - total
    torch.testing.assert_close(missing, memory["w"], atol=1e-3, rtol=0)
    assert float(missing.norm()) < 12 * float(update["w"].norm())  # it does not grow without end


def test_feedback_of_qsgd_would_grow_without_bound_if_it_sent_whole_levels(
    situation: MakeSituation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def left(defense: QSGD) -> float:
        memory: dict[str, torch.Tensor] = {}
        for seed in range(40):
            defense.apply({"w": normal(4096)}, situation(seed=seed, memory=memory))
        return float(memory["w"].norm())

    coarse = QSGD(levels=2, bucket=None, error_feedback=True)
    held = left(coarse)
    monkeypatch.setattr(QSGD, "_shrink", lambda *_: 1.0)
    assert left(coarse) > 1000 * held


def test_feedback_widens_the_error_after_the_first_round(situation: MakeSituation) -> None:
    sent = Int8().apply({"w": normal(600)}, situation())
    defense = Int8(error_feedback=True)
    assert deviation(defense, sent, 2) == pytest.approx(math.sqrt(2) * deviation(defense, sent))


def test_qsgd_with_feedback_is_read_at_its_full_size(situation: MakeSituation) -> None:
    defense = QSGD(levels=8, bucket=64, error_feedback=True)  # sends half
    sent = defense.apply({"w": normal(4000)}, situation())
    seen, _ = defense.read(heard(sent), Knowledge())
    share = float((normal(4000) * sent["w"]).sum() / normal(4000).square().sum())
    assert share == pytest.approx(0.5, abs=0.05)
    torch.testing.assert_close(seen.update["w"], 2 * sent["w"])


@pytest.mark.parametrize("bucket", [None, 2048, 128])
def test_bucket_and_levels_of_qsgd_are_read_off_what_was_heard(
    bucket: int | None, situation: MakeSituation
) -> None:
    sent = QSGD(levels=32, bucket=bucket).apply(
        {"w": normal(80, 100), "b": normal(30)}, situation()
    )
    found = QSGD().estimated(heard(sent), Knowledge())
    assert found.bucket == bucket
    assert found.levels == pytest.approx(32, rel=0.15)


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="levels must be at least 1, got 0"):
        QSGD(levels=0)
    with pytest.raises(ValueError, match="bucket must be at least 1, got 0"):
        QSGD(bucket=0)
