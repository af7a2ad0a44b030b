"""Clipping, and what it leaves."""

from dataclasses import replace

import pytest
import torch

from attacks.defense import Untold, length_of
from attacks.observation import Kind, Knowledge, LocalRecipe, Observation
from clients.defenses.clip import Clip

from .conftest import MakeSituation

LONG = {"w": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}
SEEN = Observation(round=1, sender="a", receiver="b", kind=Kind.GRADIENT, update=LONG)


def test_a_long_update_gets_the_length_of_the_bound_and_keeps_its_direction(
    situation: MakeSituation,
) -> None:
    found = Clip(norm=1).apply(LONG, situation())
    assert length_of(found) == pytest.approx(1)
    assert torch.allclose(found["w"], LONG["w"] / 5)
    assert torch.allclose(found["b"], LONG["b"] / 5)


def test_a_short_update_is_sent_as_it_is(situation: MakeSituation) -> None:
    assert torch.equal(Clip(norm=5.1).apply(LONG, situation())["w"], LONG["w"])


def test_who_knows_it_takes_the_direction_alone_of_what_was_clipped() -> None:
    assert not Clip(norm=5).read(SEEN, Knowledge())[1].length_known
    short = replace(SEEN, update={"w": torch.tensor([1.0])})
    assert Clip(norm=5).read(short, Knowledge())[1].length_known


def test_a_bound_that_was_not_told_leaves_the_direction() -> None:
    short = replace(SEEN, update={"w": torch.tensor([1.0])})

    _, known = Untold(defense=Clip(norm=5)).read(short, Knowledge())

    assert not known.length_known


def test_what_was_heard_in_part_may_have_been_clipped() -> None:
    part = replace(SEEN, visible={"b": torch.tensor([False])}, update={**LONG, "b": LONG["b"] * 0})

    assert not Clip(norm=5).read(part, Knowledge())[1].length_known


@pytest.mark.parametrize(("rate", "bound"), [(None, 21.0), (0.1, 2.1)])
def test_a_mean_of_clipped_updates_may_be_shorter_than_the_bound(
    rate: float | None, bound: float
) -> None:
    known = Knowledge(recipe=LocalRecipe(batch_size=2, learning_rate=rate))
    mean = replace(SEEN, kind=Kind.AGGREGATE, num_examples=8)  # 4 clients; it is 5 long

    assert Clip(norm=bound).read(mean, known)[1].length_known
    assert not Clip(norm=0.9 * bound).read(mean, known)[1].length_known


def test_a_bound_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="norm must be above 0, got 0"):
        Clip(norm=0)
