"""Outpost: what it prunes, where its noise goes, how it fades, and how it is read."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attacks.observation import Kind, Knowledge, LocalRecipe, Observation
from clients.defenses.outpost import Outpost, risk

from .conftest import MakeSituation


def weights() -> dict[str, Tensor]:
    """A tensor spread wide, whose gradient is large, and a narrow one, whose gradient is small."""
    rng = torch.Generator().manual_seed(0)
    return {
        "wide": 0.5 * torch.randn(40, 100, generator=rng),
        "narrow": 0.1 * torch.randn(60, 100, generator=rng),
    }


def gradient() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return {
        "wide": 1 + torch.rand(40, 100, generator=rng),
        "narrow": 0.1 * torch.rand(60, 100, generator=rng),
    }


def test_the_risk_of_a_layer_is_the_variance_of_its_weights_at_most_one() -> None:
    assert risk(torch.tensor([1.0, -1.0]) / 2) == pytest.approx(0.5)
    assert risk(torch.tensor([9.0, -9.0])) == 1
    assert risk(torch.tensor([7.0])) == 0


def test_the_smallest_entries_of_each_tensor_are_pruned(situation: MakeSituation) -> None:
    sent = Outpost(noise=0, prune_share=0.75).apply(gradient(), situation(before=weights()))

    for name, tensor in gradient().items():
        kept = sent[name] != 0
        assert int(kept.sum()) == tensor.numel() // 4
        assert tensor[kept].min() >= tensor[~kept].max()
        assert torch.equal(sent[name][kept], tensor[kept])


def test_noise_goes_where_the_fisher_information_is_and_as_wide_as_the_weights(
    situation: MakeSituation,
) -> None:
    defense = Outpost(noise=0.8, noisy_share=0.4, prune_share=0)
    added = {
        name: tensor - gradient()[name]
        for name, tensor in defense.apply(gradient(), situation(before=weights())).items()
    }
    # the wide tensor has the 40 % of all coordinates with the largest gradients
    assert float(added["wide"].std()) == pytest.approx(0.8 * 0.25, rel=0.05)
    assert not added["narrow"].any()


def test_after_local_steps_the_noise_is_that_of_a_gradient_times_the_learning_rate(
    situation: MakeSituation,
) -> None:
    at = situation(before=weights(), kind="delta", learning_rate=0.01)
    added = Outpost(prune_share=0).apply(gradient(), at)["wide"] - gradient()["wide"]
    assert float(added.std()) == pytest.approx(0.01 * 0.8 * 0.25, rel=0.05)


@pytest.mark.parametrize(("server_round", "chance"), [(1, 1.0), (9, 0.5), (25, 0.25)])
def test_it_acts_the_less_often_the_later_it_is(
    server_round: int, chance: float, situation: MakeSituation
) -> None:
    update = {"w": torch.ones(4)}
    before = {"w": torch.tensor([1.0, -1.0, 1.0, -1.0])}
    acted = 0
    for seed in range(400):
        at = situation(seed, before=before, server_round=server_round)
        acted += not torch.equal(Outpost().apply(update, at)["w"], update["w"])
    assert acted / 400 == pytest.approx(chance, abs=0.08)  # three standard errors


def test_equal_draws_give_equal_messages(situation: MakeSituation) -> None:
    one, again, other = (
        Outpost().apply(gradient(), situation(seed, before=weights()))["wide"] for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def seen_in(update: dict[str, Tensor], kind: Kind = Kind.GRADIENT) -> Observation:
    return Observation(
        round=1, sender="a", receiver="b", kind=kind, update=update, weights=weights()
    )


def test_who_knows_it_knows_the_noise_of_each_tensor(
    situation: MakeSituation,
) -> None:
    sent = Outpost().apply(gradient(), situation(before=weights()))
    seen, known = Outpost().read(seen_in(sent), Knowledge())
    assert seen.visible is None
    assert known.noise is not None
    assert known.noise.deviation["wide"] == pytest.approx(0.8 * 0.25, rel=0.05)

    recipe = Knowledge(recipe=LocalRecipe(learning_rate=0.01))
    _, known = Outpost().read(seen_in(sent, Kind.DELTA), recipe)
    assert known.noise is not None
    assert known.noise.deviation["wide"] == pytest.approx(0.01 * 0.8 * 0.25, rel=0.05)


def test_an_update_that_was_sent_as_it_was_is_taken_as_it_is() -> None:
    seen = seen_in(gradient())
    assert Outpost().read(seen, Knowledge()) == (seen, Knowledge())


@pytest.mark.parametrize("noise", [20.0, 5.0])
def test_noise_that_outweighs_the_gradient_is_estimated(
    noise: float, situation: MakeSituation
) -> None:
    sent = Outpost(noise=noise).apply(gradient(), situation(before=weights()))
    found = Outpost(decay=0.5).estimated(seen_in(sent), Knowledge())
    assert found.noise == pytest.approx(noise, rel=0.25)
    assert found == replace(Outpost(decay=0.5), noise=found.noise)


def test_without_the_weights_nothing_is_estimated() -> None:
    seen = replace(seen_in(gradient()), weights=None)
    assert Outpost().estimated(seen, Knowledge()) == Outpost()
    assert Outpost().read(seen, Knowledge())[1].noise is None


@pytest.mark.parametrize("wrong", ["noise", "noisy_share", "prune_share", "decay"])
def test_settings_below_zero_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=f"{wrong} must be .*, got -1"):
        Outpost(**{wrong: -1.0})
