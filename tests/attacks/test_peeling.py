import pytest
import torch
from torch import Tensor, nn

from attacks.closed_form import ClosedForm
from attacks.observation import AttackFailed, Tensors
from attacks.peeling import peel
from tests.attacks.chains import DIGIT, attack, heard, known_of, lenet, mse, two_linear
from tests.attacks.overhearing import gradient_of_batch

pytestmark = pytest.mark.usefixtures("seeded")


def test_the_error_is_foretold_under_noise(rng: torch.Generator) -> None:
    ratios = []
    for seed in range(6):
        model = lenet(seed=seed)
        image = 0.2 + 0.6 * torch.rand(1, *DIGIT, generator=rng)
        gradient = {
            name: tensor + 1e-4 * torch.randn(tensor.shape, generator=rng)
            for name, tensor in gradient_of_batch(model, image, torch.tensor([3])).items()
        }

        found = ClosedForm()(heard(model, gradient), known_of(model), rng=rng)

        foretold = found.notes["expected_rmse"]
        assert isinstance(foretold, float)
        ratios.append(foretold / mse(found, image) ** 0.5)
    # Errors of delta are not followed, and 64 pixels are few: within a factor of three.
    assert 1 / 3 < torch.tensor(ratios).median() < 3


def test_a_noisy_gradient_still_gives_a_start_for_optimisers(
    image: Tensor, rng: torch.Generator
) -> None:
    model = lenet()
    gradient = {
        name: tensor + 1e-4 * torch.randn(tensor.shape, generator=rng)
        for name, tensor in gradient_of_batch(model, image, torch.tensor([3])).items()
    }

    start = peel(model, gradient, input_shape=DIGIT, rng=rng)

    assert (start.inputs - image).square().mean() < 0.01  # mid-grey has 0.083
    assert start.labels is not None
    assert start.labels.tolist() == [3]


def test_an_image_that_is_determined_in_part_is_returned_with_a_note(
    image: Tensor, rng: torch.Generator
) -> None:
    model = nn.Sequential(  # 2 x 16 kernel entries and 8 outputs cannot tell 64 pixels
        nn.Conv2d(1, 2, 4, stride=4), nn.Sigmoid(), nn.Flatten(), nn.Linear(8, 10)
    )

    found = attack(model, image, 3, rng)

    assert 0.0 < mse(found, image) < 0.083  # better than mid-grey
    assert "of 64 unknowns determined, 32 by the weight gradient" in str(found.notes["0"])


def test_a_hidden_layer_that_is_not_determined_is_named(
    image: Tensor, rng: torch.Generator
) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.Sigmoid(),
        nn.Conv2d(16, 1, 2, stride=8),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(1, 10),
    )

    with pytest.raises(AttackFailed, match=r"input of layer '2': \d+ of 1024 unknowns"):
        attack(model, image, 3, rng)


def test_a_layer_that_no_error_reaches_is_named(image: Tensor, rng: torch.Generator) -> None:
    head = nn.Linear(9, 10)
    nn.init.zeros_(head.weight)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Tanh(), head)

    with pytest.raises(AttackFailed, match="no error reaches layer '1'"):
        attack(model, image, 3, rng)


def test_columns_that_were_put_to_zero_say_nothing(image: Tensor, rng: torch.Generator) -> None:
    model = two_linear()
    gradient = gradient_of_batch(model, image, torch.tensor([3]))
    # what Soteria does to the layer after the features
    gradient["7.weight"] = gradient["7.weight"] * (torch.arange(48) % 4 > 0)

    found = ClosedForm()(heard(model, gradient), known_of(model), rng=rng)

    assert mse(found, image) < 1e-6  # taken for zeros, they give 0.1


def pruned(gradient: Tensors, kept: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Keep the largest entries; return them, zeros elsewhere, and where they are."""
    sizes = torch.cat([tensor.abs().flatten() for tensor in gradient.values()])
    least = sizes.quantile(1 - kept)
    visible = {name: tensor.abs() >= least for name, tensor in gradient.items()}
    return {name: torch.where(visible[name], t, 0.0) for name, t in gradient.items()}, visible


@pytest.mark.parametrize(("kept", "most"), [(0.5, 1e-12), (0.2, 1e-3)])
def test_a_pruned_gradient_is_solved_by_the_coordinates_that_were_heard(
    kept: float, most: float, image: Tensor, rng: torch.Generator
) -> None:
    model = lenet()
    update, visible = pruned(gradient_of_batch(model, image, torch.tensor([3])), kept)

    found = ClosedForm()(heard(model, update, visible=visible), known_of(model), rng=rng)

    assert mse(found, image) < most
    assert found.labels is not None
    assert found.labels.tolist() == [3]


def test_few_coordinates_of_a_wide_layer_still_give_a_guess(rng: torch.Generator) -> None:
    shape = (3, 16, 16)
    model, image = lenet(shape=shape), torch.rand(1, *shape, generator=rng)
    gradient = gradient_of_batch(model, image, torch.tensor([3]))
    visible = {name: torch.rand(t.shape, generator=rng) < 0.2 for name, t in gradient.items()}
    visible["7.bias"][:] = True

    found = peel(model, gradient, input_shape=shape, rng=rng, visible=visible)

    assert bool(found.inputs.isfinite().all())
    assert isinstance(found.notes["expected_rmse"], float)
    assert found.notes["expected_rmse"] > 0.01


def test_taking_unheard_coordinates_for_zero_would_be_far_off(
    image: Tensor, rng: torch.Generator
) -> None:
    model = lenet()
    update, _ = pruned(gradient_of_batch(model, image, torch.tensor([3])), 0.5)

    found = ClosedForm()(heard(model, update), known_of(model), rng=rng)

    assert mse(found, image) > 1e-6  # the test above: 1e-14


@pytest.mark.parametrize("missing", ["0.weight", "2.weight", "7.bias"])
def test_a_layer_that_was_not_heard_is_solved_for_by_the_others(
    missing: str, rng: torch.Generator
) -> None:
    errors = []
    for seed in range(3):
        model, image = lenet(seed=seed), torch.rand(1, *DIGIT, generator=rng)
        gradient = gradient_of_batch(model, image, torch.tensor([3]))
        del gradient[missing]

        found = ClosedForm()(heard(model, gradient), known_of(model), rng=rng)

        foretold = found.notes["expected_rmse"]
        assert isinstance(foretold, float)
        assert mse(found, image) ** 0.5 < 10 * foretold
        errors.append(mse(found, image))
    # Two thirds of the middle layer stay open, and the image with them; the others are told twice.
    assert sorted(errors)[1] < (0.08 if missing == "2.weight" else 1e-7)
