"""Random masks: fresh or fixed, of the right mean, and what an adversary leaves out."""

import pytest
import torch

from attacks.defense import Untold
from attacks.observation import Knowledge
from clients.defenses.random_mask import RandomMask

from .conftest import MakeSituation
from .hearing import heard

UPDATE = {"w": torch.linspace(1, 2, 4000).reshape(40, 100), "b": torch.ones(7)}


def test_the_share_asked_for_is_left_out_and_the_rest_sent_as_it_is(
    situation: MakeSituation,
) -> None:
    found = RandomMask(share=0.3).apply(UPDATE, situation())["w"]
    assert float((found == 0).float().mean()) == pytest.approx(0.3, abs=0.03)
    assert torch.equal(found[found != 0], UPDATE["w"][found != 0])


def test_survivors_made_larger_have_the_right_mean(situation: MakeSituation) -> None:
    at = situation()
    draws = [RandomMask(share=0.8, rescale=True).apply(UPDATE, at)["w"] for _ in range(300)]
    mean = torch.stack(draws).mean(dim=0)
    assert float((mean / UPDATE["w"]).mean()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("fixed", [True, False])
def test_a_fixed_mask_is_that_of_the_first_round_and_others_are_fresh(
    fixed: bool, situation: MakeSituation
) -> None:
    memory: dict[str, torch.Tensor] = {}
    defense = RandomMask(fixed=fixed)
    masks = [defense.apply(UPDATE, situation(seed, memory=memory))["w"] != 0 for seed in (1, 2, 3)]
    assert torch.equal(masks[0], masks[1]) is fixed
    assert torch.equal(masks[1], masks[2]) is fixed
    other = defense.apply(UPDATE, situation(9))["w"] != 0  # another client
    assert not torch.equal(other, masks[0])


def test_who_knows_it_leaves_out_zeros_and_makes_the_rest_small_again(
    situation: MakeSituation,
) -> None:
    defense = RandomMask(share=0.75, rescale=True)
    seen, known = defense.read(heard(defense.apply(UPDATE, situation())), Knowledge())
    assert seen.visible is not None
    mask = seen.visible["w"]
    assert float(mask.float().mean()) == pytest.approx(0.25, abs=0.03)
    torch.testing.assert_close(seen.update["w"][mask], UPDATE["w"][mask])
    assert known.length_known


def test_told_the_name_alone_the_share_is_read_off_but_not_the_length(
    situation: MakeSituation,
) -> None:
    sent = RandomMask(share=0.75, rescale=True).apply(UPDATE, situation())
    assert RandomMask().estimated(heard(sent), Knowledge()).share == pytest.approx(0.75, abs=0.03)
    seen, known = Untold(defense=RandomMask()).read(heard(sent), Knowledge())
    assert seen.visible is not None
    assert not known.length_known


def test_shares_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="share must be from 0 to 1, got -1"):
        RandomMask(share=-1)
    with pytest.raises(ValueError, match="share must be below 1 where survivors are made larger"):
        RandomMask(share=1, rescale=True)
