from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attacks.defense import Noise, Untold
from attacks.observation import Kind, LocalRecipe
from attacks.reading import found_noise, read, restored
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
