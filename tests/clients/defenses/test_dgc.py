"""Deep Gradient Compression against its own equations."""

import pytest
import torch

from attacks.defense import length_of
from attacks.observation import Knowledge
from clients.defenses.dgc import DGC

from .conftest import MakeSituation
from .hearing import heard


def draw(seed: int, count: int = 1000) -> dict[str, torch.Tensor]:
    return {"w": torch.randn(count, generator=torch.Generator().manual_seed(seed))}


def test_the_share_that_is_sent_falls_as_published() -> None:
    shares = [1 - DGC().share_in(server_round) for server_round in range(1, 8)]
    assert shares == pytest.approx(
        [0.2512, 0.0631, 0.01585, 0.00398, 0.001, 0.001, 0.001], rel=0.01
    )
    assert DGC(share=0.9, warmup_rounds=0).share_in(1) == pytest.approx(0.9)


def test_three_rounds_are_those_of_the_paper_s_algorithm(situation: MakeSituation) -> None:
    defense = DGC(share=0.9, momentum=0.8, warmup_rounds=0)
    memory: dict[str, torch.Tensor] = {}
    u, v = torch.zeros(1000), torch.zeros(1000)
    for server_round in (1, 2, 3):
        update = draw(server_round)
        found = defense.apply(update, situation(memory=memory, server_round=server_round))["w"]
        u = 0.8 * u + update["w"]
        v = v + u
        large = v.abs() >= v.abs().topk(100).values[-1]
        torch.testing.assert_close(found, torch.where(large, v, 0.0))
        u, v = torch.where(large, 0.0, u), torch.where(large, 0.0, v)
        assert torch.equal(found != 0, large)


def test_without_momentum_everything_is_sent_in_the_end(situation: MakeSituation) -> None:
    defense = DGC(share=0.98, momentum=0.0)
    memory: dict[str, torch.Tensor] = {}
    update, total = draw(0), torch.zeros(1000)
    for server_round in range(1, 301):
        total += defense.apply(update, situation(memory=memory, server_round=server_round))["w"]
    torch.testing.assert_close(total + memory["waiting/w"], 300 * update["w"], atol=0.01, rtol=1e-4)
    assert float((total / 300 - update["w"]).norm()) < 0.2 * float(update["w"].norm())


def test_updates_are_clipped_before_they_enter_the_sum(situation: MakeSituation) -> None:
    found = DGC(share=0.0, warmup_rounds=0, clip=0.5).apply(draw(0), situation())
    assert length_of(found) == pytest.approx(0.5)
    short = {"w": torch.full((4,), 0.01)}
    assert torch.equal(DGC(share=0.0, clip=0.5).apply(short, situation())["w"], short["w"])


def test_who_knows_it_has_exact_coordinates_of_the_first_round_and_sums_later(
    situation: MakeSituation,
) -> None:
    defense = DGC(share=0.99, momentum=0.0, warmup_rounds=0)
    memory: dict[str, torch.Tensor] = {}
    sent = defense.apply(draw(1, 20_000), situation(memory=memory))
    seen, known = defense.read(heard(sent, 1), Knowledge())
    assert known.noise is None
    assert seen.visible is not None
    assert torch.equal(seen.update["w"][seen.visible["w"]], draw(1, 20_000)["w"][sent["w"] != 0])
    for server_round in range(2, 60):
        last = draw(server_round, 20_000)
        at = situation(memory=memory, server_round=server_round)
        sent = defense.apply(last, at)
    seen, known = defense.read(heard(sent, 59), Knowledge())
    assert known.noise is not None
    mask = sent["w"] != 0
    error = float((sent["w"] - last["w"])[mask].square().mean().sqrt())
    # the largest of all sums are chosen, so rounds are not quite independent
    assert known.noise.deviation["w"] == pytest.approx(error, rel=0.2)


def test_after_clipping_the_length_means_nothing(situation: MakeSituation) -> None:
    sent = DGC(clip=1.0).apply(draw(0), situation())
    assert not DGC(clip=1.0).read(heard(sent, 1), Knowledge())[1].length_known


def test_the_share_of_a_round_is_read_off_the_zeros(situation: MakeSituation) -> None:
    sent = DGC(share=0.97, warmup_rounds=0).apply(draw(0), situation())
    assert DGC().estimated(heard(sent, 3), Knowledge()).share_in(3) == pytest.approx(0.97)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"share": 1.0}, "share must be from 0 to below 1, got 1"),
        ({"momentum": 1.0}, "momentum must be from 0 to below 1, got 1"),
        ({"warmup_rounds": -1}, "warmup_rounds must be 0 or more, got -1"),
        ({"clip": 0.0}, "clip must be above 0, got 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DGC(**settings)  # type: ignore[arg-type]
