from dataclasses import dataclass, replace

import pytest
import torch

from attacks.defense import (
    Family,
    Noise,
    Untold,
    add_noise,
    hide,
    length_of,
    noise_deviation,
    read_defenses,
    strike,
    surviving,
)
from attacks.observation import Kind, Knowledge, Observation

from .defended import KnownClip, KnownNoise, gradient_heard, noisy
from .local_client import images


@dataclass(frozen=True, kw_only=True)
class Noted:
    """A defense that appends its name to the sender, to show the order of reading."""

    name: str = "usual"

    def read(self, seen: Observation, known: Knowledge) -> tuple[Observation, Knowledge]:
        return replace(seen, sender=f"{seen.sender} {self.name}"), known

    def estimated(self, seen: Observation, known: Knowledge) -> "Noted":
        return Noted(name=f"estimated-{len(seen.update) if known else 0}")


@pytest.fixture
def seen() -> Observation:
    return Observation(
        round=1,
        sender="client-0",
        receiver="server",
        kind=Kind.GRADIENT,
        update={"a": torch.tensor([3.0, 0.0, 4.0]), "b": torch.tensor([[0.0]])},
    )


def test_defenses_are_read_from_the_last_to_the_first(seen: Observation) -> None:
    known = Knowledge(defenses=(Noted(name="first"), Noted(name="last")))

    found, told = read_defenses(seen, known)

    assert found.sender == "client-0 last first"
    assert told.defenses == ()


def test_a_defense_known_by_name_alone_is_estimated_if_that_can_be_done(seen: Observation) -> None:
    known = Knowledge()

    found, _ = Untold(defense=Noted()).read(seen, known)
    _, told = Untold(defense=KnownClip()).read(seen, known)

    assert found.sender == "client-0 estimated-2"
    assert not told.length_known


def test_coordinates_once_hidden_stay_hidden(seen: Observation) -> None:
    once = hide(seen, {"a": torch.tensor([True, True, False]), "c": torch.tensor([False])})
    twice = hide(once, {"a": torch.tensor([False, True, True])})

    assert twice.visible is not None
    assert twice.visible["a"].tolist() == [False, True, False]
    assert set(twice.visible) == {"a"}
    assert seen.visible is None


def test_what_is_struck_was_never_heard(seen: Observation) -> None:
    masked = hide(seen, {"a": surviving(seen.update)["a"], "b": surviving(seen.update)["b"]})

    found = strike(masked, ["b"])

    assert found.kind is Kind.CHUNK
    assert set(found.update) == {"a"}
    assert found.visible is not None
    assert set(found.visible) == {"a"}


def test_variances_of_independent_noise_add_and_the_larger_gives_its_family() -> None:
    known = add_noise(Knowledge(), {"a": 3.0}, Family.LAPLACIAN)

    smaller = add_noise(known, {"a": 1.0, "b": 1.0}, Family.GAUSSIAN)
    larger = add_noise(known, {"a": 4.0}, Family.GAUSSIAN)

    assert larger.noise == Noise(deviation={"a": 5.0}, family=Family.GAUSSIAN)
    assert smaller.noise is not None
    assert smaller.noise.family is Family.LAPLACIAN
    assert smaller.noise.deviation == pytest.approx({"a": 10**0.5, "b": 1.0})


def test_the_length_is_that_of_all_tensors_together(seen: Observation) -> None:
    assert length_of(seen.update) == 5.0


@pytest.mark.parametrize("deviation", [1e-4, 1e-2])
def test_noise_shows_in_what_columns_of_the_classifier_s_gradient_sum_to(deviation: float) -> None:
    heard, _ = gradient_heard(images(1), 3)

    found = noise_deviation(noisy(heard, deviation), "5.weight")

    assert found == pytest.approx(deviation, rel=0.15)
    assert noise_deviation(heard, "5.weight") == pytest.approx(0, abs=1e-6)


def test_noise_is_not_estimated_from_a_part_of_the_classifier(seen: Observation) -> None:
    heard, known = gradient_heard(images(1), 3)
    mask = torch.ones_like(heard.update["5.weight"], dtype=torch.bool)
    mask[0, 0] = False

    assert noise_deviation(hide(heard, {"5.weight": mask}), "5.weight") is None
    assert noise_deviation(seen, "5.weight") is None
    assert KnownNoise(deviation=1.0).read(heard, known)[1].noise is not None
