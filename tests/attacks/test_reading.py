from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from attacks.defense import Noise, Untold
from attacks.observation import Kind, LocalRecipe
from attacks.reading import found_noise, read, restored, with_isolation_error
from clients.defenses.noise import GaussianNoise, LaplacianNoise
from clients.defenses.prune import Prune

from .defended import KnownClip, KnownNoise, gradient_heard, noisy, pruned, shortened
from .local_client import images


@pytest.fixture
def image() -> Tensor:
    return images(1)


def test_without_defenses_a_message_stays_as_it_is(image: Tensor) -> None:
    seen, known = gradient_heard(image, 3)

    found = read(seen, known)

    assert found.seen is seen
    assert not found.damaged
    assert not found.notes


def test_the_length_of_one_clipped_gradient_is_restored_exactly(image: Tensor) -> None:
    seen, known = gradient_heard(image, 3)
    clipped = shortened(seen, 0.01)

    found = read(clipped, replace(known, defenses=(KnownClip(),)))

    assert found.known.length_known
    for name, tensor in seen.update.items():
        torch.testing.assert_close(found.seen.update[name].float(), tensor, rtol=1e-4, atol=1e-6)


def test_a_length_is_restored_from_a_change_of_weights_too(image: Tensor) -> None:
    seen, known = gradient_heard(image, 3)
    delta = replace(shortened(seen, -0.5 * 0.01), kind=Kind.DELTA)
    known = replace(known, length_known=False, recipe=LocalRecipe(learning_rate=0.5))

    found, told, _ = restored(delta, known)

    assert told.length_known
    for name, tensor in seen.update.items():
        torch.testing.assert_close(found.update[name], -0.5 * tensor, rtol=1e-4, atol=1e-6)


def test_noise_grows_with_the_length_that_is_restored(image: Tensor) -> None:
    seen, known = gradient_heard(image, 3)
    sent = noisy(shortened(seen, 0.01), 1e-6)
    known = replace(known, defenses=(KnownClip(), KnownNoise(deviation=1e-6)))

    found = read(sent, known).known

    assert found.noise is not None
    assert set(found.noise.deviation) == set(seen.update)
    for deviation in found.noise.deviation.values():
        assert deviation == pytest.approx(1e-4, rel=0.01)


def test_the_length_of_a_batch_is_not_restored_and_the_notes_say_so() -> None:
    seen, known = gradient_heard(images(1), 3)
    known = replace(known, batch_size=2, defenses=(KnownClip(),))

    found = read(seen, known)

    assert not found.known.length_known
    assert found.damaged
    assert "one example only" in str(found.notes["length"])


def test_the_length_of_what_fits_no_prediction_is_not_restored(image: Tensor) -> None:
    seen, known = gradient_heard(image, 3)
    wrong = {**seen.update, "5.bias": seen.update["5.bias"].flip(0)}

    _, told, why = restored(replace(seen, update=wrong), replace(known, length_known=False))

    assert not told.length_known
    assert "do not fit" in why


def test_no_length_is_made_up_where_inputs_of_the_classifier_do_not_show(image: Tensor) -> None:
    seen, known = gradient_heard(image, 3)
    masks = {"5.weight": torch.ones_like(seen.update["5.weight"], dtype=torch.bool)}
    masks["5.weight"][:, ::16] = False
    sent = replace(seen, visible=masks)

    _, told, why = restored(sent, replace(known, length_known=False))

    assert not told.length_known
    assert "12 of 192 inputs of the classifier" in why


def test_what_survives_is_counted(image: Tensor) -> None:
    seen, known = gradient_heard(image, 3)
    sent, defense = pruned(seen, 0.5)

    found = read(sent, replace(known, defenses=(defense,)))

    assert found.damaged
    assert found.notes["read"] == "KnownMask"
    assert float(str(found.notes["survive"]).split("%")[0]) == pytest.approx(50, abs=2)


def test_noise_that_nobody_told_of_shows_by_itself(image: Tensor) -> None:
    seen, known = gradient_heard(image, 3)

    found = found_noise(noisy(seen, 1e-2), known)

    assert found is not None
    assert found.deviation["0.weight"] == pytest.approx(1e-2, rel=0.15)
    assert found_noise(seen, known) is None


def test_what_is_granted_about_noise_is_not_estimated_again(image: Tensor) -> None:
    seen, known = gradient_heard(image, 3)
    told = replace(known, noise=Noise(deviation={"0.weight": 0.5}))

    assert read(noisy(seen, 1e-2), told).known.noise == told.noise


@pytest.mark.parametrize("kind", [GaussianNoise, LaplacianNoise])
@pytest.mark.parametrize("deviation", [1e-4, 1e-2])
def test_a_scale_that_was_not_told_is_estimated(
    kind: type[GaussianNoise], deviation: float, image: Tensor
) -> None:
    seen, known = gradient_heard(image, 3)

    found = read(noisy(seen, deviation), replace(known, defenses=(Untold(defense=kind()),)))

    assert found.notes["noise_read"] == pytest.approx(deviation, rel=0.15)
    assert found.notes["read"] == f"{kind.__name__} (estimated)"


def test_a_pruned_share_that_was_not_told_is_estimated(image: Tensor) -> None:
    seen, known = gradient_heard(image, 3)
    sent, _ = pruned(seen, 0.4)

    found = read(sent, replace(known, defenses=(Untold(defense=Prune(share=0.9)),)))

    assert float(str(found.notes["survive"]).split("%")[0]) == pytest.approx(60, abs=2)


def test_the_error_of_an_estimated_update_is_noise_of_the_size_that_it_has(
    image: Tensor, rng: torch.Generator
) -> None:
    seen, known = gradient_heard(image, 3)
    # two independent vectors of a known size each, their sum heard: half of it is the best guess
    size = {name: 1.0 + place for place, name in enumerate(seen.update)}
    one, two = (
        {n: size[n] * torch.randn(t.shape, generator=rng) for n, t in seen.update.items()}
        for _ in range(2)
    )
    guess = {name: (one[name] + two[name]) / 2 for name in one}
    told = replace(seen, update=guess, isolated="estimated", expected_error=0.5**0.5)

    noise = with_isolation_error(told, known).noise

    assert read(told, known).damaged
    assert noise is not None
    for name, deviation in noise.deviation.items():
        if one[name].numel() > 500:
            error = (guess[name] - one[name]).square().mean().sqrt()
            assert deviation == pytest.approx(float(error), rel=0.1)


def test_rounding_of_an_update_that_follows_is_noise_where_it_is_large(image: Tensor) -> None:
    seen, known = gradient_heard(image, 3)
    (fine, rough) = (
        read(replace(seen, isolated="exact", expected_error=error), known) for error in (1e-6, 1e-3)
    )

    assert fine.known.noise is None
    assert rough.known.noise is not None
    whole = torch.cat([tensor.flatten() for tensor in seen.update.values()])
    usual = float(whole.square().mean().sqrt())
    assert set(rough.known.noise.deviation) == set(seen.update)
    assert max(rough.known.noise.deviation.values()) == pytest.approx(1e-3 * usual)


@pytest.mark.parametrize(
    ("isolated", "error", "guessed"),
    [
        (None, None, False),  # a server sends its weights
        ("heard", 0.0, False),
        ("exact", 1e-7, False),
        ("heard", 0.02, True),
        ("exact", None, True),  # no rule tells it
    ],
)
def test_weights_are_a_guess_where_isolation_says_so(
    image: Tensor,
    isolated: Literal["heard", "exact"] | None,
    error: float | None,
    guessed: bool,
) -> None:
    seen, known = gradient_heard(image, 3)
    told = replace(seen, isolated=isolated, expected_weights_error=error)

    assert read(told, known).weights_estimated is guessed
    assert not read(replace(told, weights=None), known).weights_estimated
    assert ("weights" in read(told, known).notes) is guessed
