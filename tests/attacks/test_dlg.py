import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.dlg import DLG
from attacks.observation import (
    Attack,
    AttackFailed,
    Budget,
    Kind,
    Knowledge,
    LocalRecipe,
    ManyAtOnce,
    Reconstruction,
)
from attacks.threats import Capability

from .overhearing import overhear

NUM_CLASSES = 10


@pytest.fixture
def model(rng: torch.Generator) -> nn.Module:
    """The LeNet of the paper for 8x8 grey images."""
    net = nn.Sequential(
        nn.Conv2d(1, 12, 5, padding=2, stride=2),
        nn.Sigmoid(),
        nn.Conv2d(12, 12, 5, padding=2, stride=2),
        nn.Sigmoid(),
        nn.Conv2d(12, 12, 5, padding=2),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(48, NUM_CLASSES),
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=rng) - 0.5)
    return net


@pytest.fixture
def images(rng: torch.Generator) -> Tensor:
    """Two images of blurred noise, (2, 1, 8, 8)."""
    return functional.avg_pool2d(torch.rand(2, 1, 10, 10, generator=rng), 3, stride=1)


def worst_error(guess: Tensor, truth: Tensor) -> float:
    """Mean squared error of the worst of two images, in the better of both orders."""
    return min(
        float((guess[order] - truth).square().flatten(1).mean(dim=1).max())
        for order in ([0, 1], [1, 0])
    )


def test_it_is_an_attack_that_needs_no_labels() -> None:
    attack: Attack = DLG()

    assert isinstance(attack, Attack)
    assert Capability.LABELS not in attack.needs
    assert Capability.WEIGHTS in attack.needs


def test_one_image_and_its_label_come_out_of_one_gradient(
    model: nn.Module, images: Tensor, rng: torch.Generator
) -> None:
    seen, known = overhear(model, images[:1], torch.tensor([7]))

    found = DLG()(seen, known, rng=rng)

    assert found.labels is not None
    assert found.labels.tolist() == [7]
    assert found.inputs is not None
    # Recovered pixels are off by about 1e-3; a random guess has an error of about 0.1.
    assert float((found.inputs - images[:1]).square().mean()) < 1e-5
    assert found.finished


def test_two_images_come_out_of_one_gradient(
    model: nn.Module, images: Tensor, rng: torch.Generator
) -> None:
    seen, known = overhear(model, images, torch.tensor([7, 1]))

    found = DLG()(seen, known, rng=rng)

    assert found.labels is not None
    assert sorted(found.labels.tolist()) == [1, 7]
    assert found.inputs is not None
    assert worst_error(found.inputs, images) < 1e-4  # about 1e-6 here; the images differ by 0.02


def test_single_precision_and_one_local_step_are_enough(
    model: nn.Module, images: Tensor, rng: torch.Generator
) -> None:
    seen, known = overhear(
        model, images[:1], torch.tensor([3]), recipe=LocalRecipe(learning_rate=0.1)
    )
    delta = {name: -0.1 * tensor for name, tensor in seen.update.items()}

    found = DLG(double=False)(replace(seen, kind=Kind.DELTA, update=delta), known, rng=rng)

    assert found.inputs is not None
    assert float((found.inputs - images[:1]).square().mean()) < 1e-4


@pytest.mark.parametrize("told", [None, torch.tensor([5]), torch.tensor([-99, 4])])
def test_labels_it_may_know_are_never_read(
    told: Tensor | None, model: nn.Module, images: Tensor
) -> None:
    seen, known = overhear(model, images[:1], torch.tensor([7]))
    attack = DLG(steps=5, restarts=1)

    plain = attack(seen, known, rng=torch.Generator().manual_seed(1))
    other = attack(seen, replace(known, labels=told), rng=torch.Generator().manual_seed(1))

    assert plain.inputs is not None
    assert other.inputs is not None
    assert torch.equal(plain.inputs, other.inputs)


def test_the_same_seed_gives_the_same_bits_and_the_model_stays_as_it_was(
    model: nn.Module, images: Tensor
) -> None:
    seen, known = overhear(model, images[:1], torch.tensor([7]))
    before = copy.deepcopy(model.state_dict())

    def run(seed: int) -> Tensor:
        found = DLG(steps=5, restarts=1)(seen, known, rng=torch.Generator().manual_seed(seed))
        assert found.inputs is not None
        return found.inputs

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_spent_budget_ends_it_with_a_guess(
    model: nn.Module, images: Tensor, rng: torch.Generator
) -> None:
    seen, known = overhear(model, images[:1], torch.tensor([7]))

    found = DLG()(seen, known, rng=rng, budget=Budget(0.0))

    assert not found.finished
    assert found.inputs is not None
    assert found.inputs.shape == (1, 1, 8, 8)


def dropping_out() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, NUM_CLASSES))


@pytest.mark.parametrize(
    ("build", "recipe", "reason"),
    [
        (dropping_out, None, "random numbers in training mode"),
        (None, LocalRecipe(num_steps=3, learning_rate=0.1), "how many examples each step"),
    ],
)
def test_hopeless_experiments_are_refused_before_they_run(
    build: Callable[[], nn.Module] | None,
    recipe: LocalRecipe | None,
    reason: str,
    model: nn.Module,
) -> None:
    known = Knowledge(
        model=build() if build else model, input_shape=(1, 8, 8), batch_size=1, recipe=recipe
    )

    with pytest.raises(AttackFailed, match=reason):
        DLG().check(known)


def test_a_possible_experiment_passes_the_check(model: nn.Module) -> None:
    DLG().check(Knowledge(model=model, input_shape=(1, 8, 8), batch_size=4))


def test_clients_of_one_round_are_attacked_together_each_as_if_alone(
    model: nn.Module, images: Tensor
) -> None:
    cases = [overhear(model, images[k : k + 1], torch.tensor([3 * k])) for k in (0, 1)]
    hopeless = replace(cases[1][1], batch_size=None)
    rngs = [torch.Generator().manual_seed(k) for k in range(3)]
    attack = DLG()

    found = attack.many(
        [cases[0][0], cases[1][0], cases[1][0]],
        [cases[0][1], hopeless, cases[1][1]],
        rngs=rngs,
    )

    assert isinstance(attack, ManyAtOnce)
    assert isinstance(found[1], AttackFailed)
    assert "batch size" in str(found[1])
    for place, case, image in ((0, cases[0], images[:1]), (2, cases[1], images[1:])):
        one = found[place]
        alone = attack(*case, rng=torch.Generator().manual_seed(place))
        assert isinstance(one, Reconstruction)
        assert one.inputs is not None
        assert alone.inputs is not None
        assert float((one.inputs - image).square().mean()) < 1e-5
        # Both have matched the gradient to 1e-4, on paths that rounding may part.
        torch.testing.assert_close(one.inputs, alone.inputs, atol=0.02, rtol=0)


def test_examples_may_take_turns_as_in_the_paper(
    model: nn.Module, images: Tensor, rng: torch.Generator
) -> None:
    seen, known = overhear(model, images, torch.tensor([7, 1]))

    once = DLG(turns=1, steps=2, restarts=1)(seen, known, rng=torch.Generator().manual_seed(1))
    start = DLG(turns=1, steps=0, restarts=1)(seen, known, rng=torch.Generator().manual_seed(1))
    half = DLG(turns=1, steps=1, restarts=1)(seen, known, rng=torch.Generator().manual_seed(1))

    assert once.inputs is not None
    assert start.inputs is not None
    assert half.inputs is not None
    assert not torch.equal(half.inputs[0], start.inputs[0])  # the first one's turn
    assert torch.equal(half.inputs[1], start.inputs[1])
    assert torch.equal(once.inputs[0], half.inputs[0])
    assert not torch.equal(once.inputs[1], half.inputs[1])


def test_settings_without_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match="turns must be at least 0"):
        DLG(turns=-1)
