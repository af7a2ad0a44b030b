"""Signs: what is sent, what feedback makes up for, and what is left of a message."""

import pytest
import torch

from attacks.observation import Kind, Knowledge, Observation
from clients.defenses.sign import Sign

from .conftest import MakeSituation

UPDATE = {"w": torch.tensor([[3.0, -1.0], [0.0, 2.0]]), "b": torch.tensor([-0.5])}


def test_each_coordinate_is_its_sign_times_the_mean_magnitude(situation: MakeSituation) -> None:
    found = Sign().apply(UPDATE, situation())
    assert found["w"].tolist() == [[1.5, -1.5], [0.0, 1.5]]
    assert found["b"].tolist() == [-0.5]
    assert Sign(scale="one").apply(UPDATE, situation())["w"].tolist() == [[1, -1], [0, 1]]


def test_feedback_lets_small_coordinates_have_their_way(situation: MakeSituation) -> None:
    # plain signs give both the same step; over time each must move by its own size
    update = {"w": torch.tensor([1.0, 0.1])}
    memory: dict[str, torch.Tensor] = {}
    total = torch.zeros(2)
    for _ in range(200):
        total += Sign(error_feedback=True).apply(update, situation(memory=memory))["w"]
    assert float(total[1] / total[0]) == pytest.approx(0.1, abs=0.02)


def test_who_knows_it_takes_signs_alone() -> None:
    seen = Observation(
        round=1,
        sender="a",
        receiver="b",
        kind=Kind.GRADIENT,
        update={"w": torch.full((100,), 0.2)},
    )
    found, known = Sign().read(seen, Knowledge())
    assert known.signs_only
    assert not known.length_known
    assert found.visible is None
    assert known.noise is not None


def test_the_deviation_is_that_of_normal_magnitudes(situation: MakeSituation) -> None:
    update = {"w": torch.randn(50_000, generator=torch.Generator().manual_seed(0))}
    sent = Sign().apply(update, situation())
    seen = Observation(round=1, sender="a", receiver="b", kind=Kind.GRADIENT, update=sent)
    _, known = Sign().read(seen, Knowledge())
    assert known.noise is not None
    error = float((sent["w"] - update["w"]).square().mean().sqrt())
    assert known.noise.deviation["w"] == pytest.approx(error, rel=0.02)


def test_feedback_of_plain_ones_is_refused() -> None:
    with pytest.raises(ValueError, match="error_feedback must be false for scale 'one'"):
        Sign(scale="one", error_feedback=True)
