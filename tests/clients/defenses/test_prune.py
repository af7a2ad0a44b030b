"""Pruning: exact numbers, layer by layer or over all, and what an adversary leaves out."""

from dataclasses import replace

import pytest
import torch

from attacks.defense import add_noise
from attacks.observation import Knowledge
from clients.defenses.noise import GaussianNoise
from clients.defenses.prune import Prune

from .conftest import MakeSituation
from .hearing import heard

UPDATE = {
    "small": 1e-3 * torch.randn(20, 25, generator=torch.Generator().manual_seed(0)),
    "large": torch.randn(500, generator=torch.Generator().manual_seed(1)),
}


def zeros(update: dict[str, torch.Tensor]) -> dict[str, int]:
    return {name: int((tensor == 0).sum()) for name, tensor in update.items()}


def test_each_layer_loses_its_share_or_the_small_one_all_of_it(situation: MakeSituation) -> None:
    assert zeros(Prune(share=0.4).apply(UPDATE, situation())) == {"small": 200, "large": 200}
    found = Prune(share=0.4, scope="global").apply(UPDATE, situation())
    assert zeros(found)["small"] > 390
    assert sum(zeros(found).values()) == 400


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_what_is_sent_is_as_it_was_and_no_smaller_than_what_is_not(
    scope: str, situation: MakeSituation
) -> None:
    found = Prune(share=0.3, scope=scope).apply(UPDATE, situation())  # type: ignore[arg-type]
    for name, tensor in found.items():
        assert torch.equal(tensor[tensor != 0], UPDATE[name][tensor != 0])
    gone = UPDATE["large"][found["large"] == 0]
    kept = UPDATE["large"][found["large"] != 0]
    assert not gone.numel() or gone.abs().max() <= kept.abs().min()


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_of_equal_magnitudes_the_first_go_so_that_the_number_is_exact(
    scope: str, situation: MakeSituation
) -> None:
    tied = {"w": torch.tensor([2.0, -1.0, 1.0, 1.0, -1.0, 0.5])}
    found = Prune(share=0.5, scope=scope).apply(tied, situation())  # type: ignore[arg-type]
    assert found["w"].tolist() == [2.0, 0, 0, 1.0, -1.0, 0]


@pytest.mark.parametrize(("share", "left"), [(0.0, 500), (1.0, 0), (0.999, 0), (0.997, 2)])
def test_the_number_is_the_share_rounded(share: float, left: int, situation: MakeSituation) -> None:
    found = Prune(share=share).apply({"w": UPDATE["large"]}, situation())
    assert 500 - zeros(found)["w"] == left


def test_feedback_sends_everything_in_the_end(situation: MakeSituation) -> None:
    defense = Prune(share=0.9, error_feedback=True)
    memory: dict[str, torch.Tensor] = {}
    total = torch.zeros(500)
    for _ in range(100):
        total += defense.apply({"w": UPDATE["large"]}, situation(memory=memory))["w"]
    torch.testing.assert_close(total + memory["w"], 100 * UPDATE["large"], atol=1e-3, rtol=1e-4)
    assert float((total / 100 - UPDATE["large"]).norm()) < 0.15 * float(UPDATE["large"].norm())


def test_who_knows_it_leaves_out_what_is_zero(situation: MakeSituation) -> None:
    sent = Prune().apply(UPDATE, situation())
    seen, known = Prune().read(heard(sent), Knowledge())
    assert seen.visible is not None
    for name, mask in seen.visible.items():
        assert torch.equal(mask, sent[name] != 0)
        assert torch.equal(seen.update[name][mask], UPDATE[name][mask])
    assert known.noise is None
    both, _ = Prune().read(
        replace(seen, visible={"large": torch.zeros(500, dtype=torch.bool)}), known
    )
    assert both.visible is not None
    assert not both.visible["large"].any()


def test_where_later_noise_covers_the_zeros_the_smallest_are_left_out(
    situation: MakeSituation,
) -> None:
    sent = Prune(share=0.5).apply(UPDATE, situation())
    noised = GaussianNoise(scale=0.05).apply({"large": sent["large"]}, situation())
    known = add_noise(Knowledge(), {"large": 0.05})
    seen, _ = Prune(share=0.5).read(heard(noised), known)
    assert seen.visible is not None
    right = (seen.visible["large"] == (sent["large"] != 0)).float().mean()
    assert right > 0.99


def test_with_feedback_what_was_heard_holds_earlier_rounds_too(situation: MakeSituation) -> None:
    sent = Prune(share=0.9).apply(UPDATE, situation())
    defense = Prune(share=0.9, error_feedback=True)
    assert defense.read(heard(sent), Knowledge())[1].noise is None
    noise = defense.read(heard(sent, 9), Knowledge())[1].noise
    assert noise is not None
    assert noise.deviation["large"] > 0.5


@pytest.mark.parametrize("defense", [Prune(share=0.7), Prune(share=0.25, scope="global")], ids=str)
def test_share_and_scope_are_read_off_the_zeros(defense: Prune, situation: MakeSituation) -> None:
    found = Prune().estimated(heard(defense.apply(UPDATE, situation())), Knowledge())
    assert found.scope == defense.scope
    assert found.share == pytest.approx(defense.share, abs=0.01)


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"share must be from 0 to 1, got 1\.5"):
        Prune(share=1.5)
