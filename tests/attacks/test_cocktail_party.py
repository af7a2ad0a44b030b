from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.cocktail_party import CocktailParty
from attacks.observation import AttackFailed, Budget, Kind, Knowledge, LocalRecipe, Observation
from attacks.threats import Capability
from fedsim.data.load import load_data
from fedsim.models.mlp import mlp

from .overhearing import overhear

SHAPE = (3, 32, 32)
QUICK = CocktailParty(steps=400, step_size=0.01, tv_weight=30.0)


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Eight patches of photographs."""
    inputs = load_data("photos", options={}).train_inputs
    return inputs[torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))[:8]]


def hear(images: Tensor) -> tuple[Observation, Knowledge]:
    model: nn.Module = mlp(SHAPE, 5, rng=torch.Generator().manual_seed(0), hidden=(100,))
    model = model.to(images.dtype)
    seen, known = overhear(model, images, torch.arange(len(images)) % 5)
    return replace(seen, weights=None), known


def best_correlations(found: Tensor | None, images: Tensor) -> Tensor:
    """Return the correlation of each image with the guess most like it, without its sign."""
    assert found is not None
    one, other = (
        functional.normalize(some.flatten(1) - some.flatten(1).mean(1, keepdim=True), dim=1)
        for some in (found, images)
    )
    return torch.as_tensor((one @ other.T).abs().amax(0))


def test_images_are_unmixed(images: Tensor, rng: torch.Generator) -> None:
    seen, known = hear(images)

    found = QUICK(seen, known, rng=rng)

    mixtures = seen.update["linear1.weight"][:8].view(8, *SHAPE)
    assert best_correlations(found.inputs, images).mean() > 0.8  # one, without noise
    assert best_correlations(mixtures, images).mean() < 0.7


def test_what_images_have_in_common_is_what_unmixes_them(
    images: Tensor, rng: torch.Generator
) -> None:
    seen, known = hear(images)
    blind = replace(QUICK, tv_weight=0.0, gaussianity_weight=0.0)

    unmixed = best_correlations(QUICK(seen, known, rng=rng).inputs, images).mean()
    turned = best_correlations(blind(seen, known, rng=rng).inputs, images).mean()

    assert unmixed > turned + 0.1


def test_one_image_is_exact_in_sign_and_scale(images: Tensor, rng: torch.Generator) -> None:
    seen, known = hear(images[:1])

    found = replace(QUICK, steps=1)(seen, known, rng=rng)

    torch.testing.assert_close(found.inputs, images[:1], rtol=0, atol=1e-4)


def test_a_budget_returns_what_there_is(images: Tensor, rng: torch.Generator) -> None:
    seen, known = hear(images)

    found = CocktailParty()(seen, known, rng=rng, budget=Budget(0.0))

    assert not found.finished
    assert found.inputs is not None
    assert found.inputs.shape == (8, *SHAPE)


def test_the_same_seed_gives_the_same_bits(images: Tensor) -> None:
    seen, known = hear(images)
    short = replace(QUICK, steps=20)

    one, two = (short(seen, known, rng=torch.Generator().manual_seed(1)).inputs for _ in range(2))

    assert one is not None
    assert two is not None
    assert torch.equal(one, two)


def test_what_cannot_be_unmixed_is_refused(images: Tensor, rng: torch.Generator) -> None:
    seen, known = hear(torch.cat([images[:3], images[:1]]).double())

    with pytest.raises(AttackFailed, match="mixes 3 images"):
        QUICK(seen, known, rng=rng)
    with pytest.raises(AttackFailed, match="batch-size"):
        QUICK(seen, replace(known, batch_size=None), rng=rng)
    with pytest.raises(AttackFailed, match="local steps"):
        QUICK.check(replace(known, recipe=LocalRecipe(num_steps=2, learning_rate=0.1)))
    with pytest.raises(ValueError, match="steps must be at least 1"):
        CocktailParty(steps=0)


def test_no_weights_are_needed() -> None:
    assert Capability.WEIGHTS not in CocktailParty().needs


@pytest.mark.parametrize(
    "options",
    [{"tv_weight": -1.0}, {"gaussianity_weight": float("nan")}, {"decorrelation_slope": 0.0}],
)
def test_weights_that_mean_nothing_are_refused(options: dict[str, float]) -> None:
    (name,) = options

    with pytest.raises(ValueError, match=name):
        CocktailParty(**options)  # type: ignore[arg-type]


def test_images_of_one_pixel_fail_with_a_reason(rng: torch.Generator) -> None:
    dots = torch.rand(2, 1, 1, 1, generator=rng)
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 2))
    loss = functional.cross_entropy(model(dots), torch.tensor([0, 1]))
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradient = torch.autograd.grad(loss, parameters)
    seen = Observation(
        round=1,
        sender="client-0",
        receiver="server",
        kind=Kind.GRADIENT,
        update=dict(zip(names, gradient, strict=True)),
    )
    known = Knowledge(model=model, input_shape=(1, 1, 1), batch_size=2)

    with pytest.raises(AttackFailed, match=r"mixes|told from each other"):
        CocktailParty(steps=5)(seen, known, rng=rng)
