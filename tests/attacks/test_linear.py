import pytest
import torch
from torch import Tensor, nn

from attacks.linear import LinearInversion, _least_squares
from attacks.observation import AttackFailed, Kind, Knowledge, LocalRecipe, Observation, Tensors
from attacks.threats import Capability
from tests.attacks.overhearing import gradient_of_batch

SHAPE = (3, 4, 5)


class Normalise(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.3, 0.1]).view(3, 1, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs - self.mean) / self.std


class Exotic(nn.Module):
    """A linear layer, and after it what no closed form undoes."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 7)
        self.norm = nn.LayerNorm(16)
        self.first = nn.Linear(60, 16)
        self.mix = nn.Conv1d(2, 1, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs.flatten(1))
        hidden = hidden + self.norm(hidden).relu()
        logits: Tensor = self.head(self.mix(hidden.view(-1, 2, 8)).squeeze(1))
        return logits


def build(model: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {
            "mlp": lambda: nn.Sequential(
                nn.Flatten(), nn.Linear(60, 16), nn.ReLU(), nn.Linear(16, 7)
            ),
            "logistic": lambda: nn.Sequential(nn.Flatten(), nn.Linear(60, 7)),
            "normalised": lambda: nn.Sequential(
                Normalise(), nn.Flatten(), nn.Linear(60, 16), nn.Sigmoid(), nn.Linear(16, 7)
            ),
            "exotic": Exotic,
        }[model]()


def heard(
    update: Tensors, kind: Kind = Kind.GRADIENT, visible: Tensors | None = None
) -> Observation:
    return Observation(
        round=1, sender="client-0", receiver="server", kind=kind, update=update, visible=visible
    )


@pytest.fixture
def image(rng: torch.Generator) -> Tensor:
    return torch.rand(1, *SHAPE, generator=rng)


def known_of(model: nn.Module) -> Knowledge:
    return Knowledge(model=model, input_shape=SHAPE, batch_size=1)


@pytest.mark.parametrize("name", ["mlp", "logistic", "normalised", "exotic"])
def test_one_image_is_read_off_a_linear_layer_exactly(
    name: str, image: Tensor, rng: torch.Generator
) -> None:
    model = build(name)
    gradient = gradient_of_batch(model, image, torch.tensor([3]))

    found = LinearInversion()(heard(gradient), known_of(model), rng=rng)

    # float32 gradients leave nothing but their rounding
    torch.testing.assert_close(found.inputs, image, rtol=0, atol=1e-5)
    assert found.labels is not None
    assert found.labels.tolist() == [3]
    assert found.matching_loss is None


def test_one_local_step_of_sgd_is_as_good_as_its_gradient(
    image: Tensor, rng: torch.Generator
) -> None:
    model = build("mlp")
    gradient = gradient_of_batch(model, image, torch.tensor([3]))
    delta = {name: -0.1 * tensor for name, tensor in gradient.items()}
    known = Knowledge(
        model=model, input_shape=SHAPE, batch_size=1, recipe=LocalRecipe(learning_rate=0.1)
    )

    found = LinearInversion()(heard(delta, Kind.DELTA), known, rng=rng)

    torch.testing.assert_close(found.inputs, image, rtol=0, atol=1e-5)


def test_no_weights_are_needed() -> None:
    assert Capability.WEIGHTS not in LinearInversion().needs


@pytest.mark.parametrize("std", [1e-6, 1e-5, 1e-4, 1e-3])
def test_noise_costs_what_the_law_says(std: float, rng: torch.Generator) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 64), nn.Sigmoid(), nn.Linear(64, 10))
    image = 0.2 + 0.6 * torch.rand(1, 3, 32, 32, generator=rng)  # no pixel gains from clamping
    gradient = gradient_of_batch(model.double(), image.double(), torch.tensor([3]))
    noised = {
        name: tensor + std * torch.randn(tensor.shape, generator=rng)
        for name, tensor in gradient.items()
    }
    known = Knowledge(model=model, input_shape=(3, 32, 32), batch_size=1)

    found = LinearInversion()(heard(noised), known, rng=rng)

    assert found.inputs is not None
    rmse = (found.inputs - image).square().mean().sqrt()
    law = std / gradient["1.bias"].norm()
    # The law holds within 2 dB while |db| is well above the noise; here it is above 0.05.
    assert abs(20 * torch.log10(rmse / law)) < 2
    # Noise on db scales the whole image by one random factor, which rows cannot tell: up to 30 %.
    assert found.notes["expected_rmse"] == pytest.approx(float(rmse), rel=0.3)


def test_rows_together_are_better_than_the_best_row(image: Tensor, rng: torch.Generator) -> None:
    model = build("mlp")
    gradient = gradient_of_batch(model, image, torch.tensor([3]))
    noised = {
        name: tensor + 1e-4 * torch.randn(tensor.shape, generator=rng)
        for name, tensor in gradient.items()
    }

    found = LinearInversion()(heard(noised), known_of(model), rng=rng)

    row = noised["1.bias"].abs().argmax()
    of_one_row = (noised["1.weight"][row] / noised["1.bias"][row]).view(1, *SHAPE)
    assert found.inputs is not None
    assert (found.inputs - image).norm() < (of_one_row - image).norm()


def test_what_was_not_heard_is_not_used(image: Tensor, rng: torch.Generator) -> None:
    model = build("normalised")
    gradient = gradient_of_batch(model, image, torch.tensor([3]))
    visible = {name: torch.ones_like(tensor).bool() for name, tensor in gradient.items()}
    visible["2.bias"][:9] = False
    visible["2.weight"][12:] = False
    visible["2.weight"][:, 7] = False  # one pixel is in no row
    hidden = {
        name: torch.where(visible[name], tensor, torch.nan) for name, tensor in gradient.items()
    }

    found = LinearInversion()(heard(hidden, visible=visible), known_of(model), rng=rng)

    expected = image.clone()
    expected.view(-1)[7] = 0.5
    torch.testing.assert_close(found.inputs, expected, rtol=0, atol=1e-5)
    assert found.notes["unseen"] == 1
    assert found.labels is not None


def test_a_label_that_was_not_heard_is_not_guessed(image: Tensor, rng: torch.Generator) -> None:
    model = build("mlp")
    gradient = gradient_of_batch(model, image, torch.tensor([3]))
    first_layer = {name: gradient[name] for name in ("1.weight", "1.bias")}

    found = LinearInversion()(heard(first_layer), known_of(model), rng=rng)

    torch.testing.assert_close(found.inputs, image, rtol=0, atol=1e-5)
    assert found.labels is None


def test_the_image_stays_in_the_range_it_was_told(rng: torch.Generator) -> None:
    model = build("mlp")
    image = torch.full((1, *SHAPE), 0.9)
    gradient = gradient_of_batch(model, image, torch.tensor([3]))
    known = Knowledge(model=model, input_shape=SHAPE, batch_size=1, input_range=(0.0, 0.5))

    found = LinearInversion()(heard(gradient), known, rng=rng)

    assert found.inputs is not None
    assert found.inputs.max() == 0.5
    assert found.notes["excursion"] == pytest.approx(0.4, abs=1e-5)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten(), nn.Linear(20, 7)),
            r"the first layer is '0' \(Conv2d\)",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(60, 7, bias=False)),
            "'1' sees the input but has no",
        ),
        (nn.Sequential(nn.Flatten(2), nn.Linear(20, 7), nn.Flatten()), "no linear layer sees"),
    ],
    ids=["convolution", "no bias", "part of the input"],
)
def test_other_first_layers_are_refused(
    model: nn.Module, reason: str, rng: torch.Generator
) -> None:
    with pytest.raises(AttackFailed, match=reason):
        LinearInversion()(heard({}), known_of(model), rng=rng)


def test_a_batch_is_refused_because_its_rows_are_mixtures(
    image: Tensor, rng: torch.Generator
) -> None:
    known = Knowledge(model=build("mlp"), input_shape=SHAPE, batch_size=2)

    with pytest.raises(AttackFailed, match="mixes the 2 examples"):
        LinearInversion()(heard({}), known, rng=rng)


def test_a_zero_bias_gradient_is_refused(image: Tensor, rng: torch.Generator) -> None:
    model = build("mlp")
    gradient = gradient_of_batch(model, image, torch.tensor([3]))
    gradient["1.bias"] = torch.zeros(16)

    with pytest.raises(AttackFailed, match="bias gradient of layer '1' is zero"):
        LinearInversion()(heard(gradient), known_of(model), rng=rng)


def test_a_layer_that_was_not_heard_is_named(image: Tensor, rng: torch.Generator) -> None:
    with pytest.raises(AttackFailed, match=r"'1\.weight' was not heard"):
        LinearInversion()(heard({"3.bias": torch.ones(7)}), known_of(build("mlp")), rng=rng)


def test_a_gradient_that_is_not_finite_is_refused(image: Tensor, rng: torch.Generator) -> None:
    model = build("mlp")
    gradient = gradient_of_batch(model, image, torch.tensor([3]))
    gradient["1.weight"][0, 0] = torch.inf

    with pytest.raises(AttackFailed, match=r"'1\.weight' is not finite"):
        LinearInversion()(heard(gradient), known_of(model), rng=rng)


def test_noise_in_the_bias_gradient_does_not_pull_the_image_towards_black() -> None:
    rng = torch.Generator().manual_seed(3)
    image = torch.rand(64, generator=rng, dtype=torch.float64)
    bias = 0.03 * torch.randn(400, generator=rng, dtype=torch.float64)
    heard = torch.ones(400, 64, dtype=torch.bool), torch.ones(400, dtype=torch.bool)
    scale = []
    for _ in range(20):
        weight = torch.outer(bias, image)
        weight = weight + 0.01 * torch.randn(weight.shape, generator=rng, dtype=torch.float64)
        noisy = bias + 0.01 * torch.randn(bias.shape, generator=rng, dtype=torch.float64)
        found, _, _ = _least_squares(weight, heard[0], noisy, heard[1], name="first")
        scale.append(float(found @ image / image.square().sum()))

    # plain least squares shrinks by 1 - 0.01^2 / (0.03^2 + 0.01^2) = 0.9
    assert sum(scale) / len(scale) == pytest.approx(1.0, abs=0.02)
