from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from attacks.closed_form import ClosedForm
from attacks.observation import AttackFailed, LocalRecipe, Reconstruction
from tests.attacks.chains import DIGIT, attack, heard, known_of, lenet, mse, two_linear
from tests.attacks.overhearing import gradient_of_batch

pytestmark = pytest.mark.usefixtures("seeded")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.head = nn.Linear(64, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head((inputs + self.conv(inputs)).flatten(1))
        return logits


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Residual(), "not a chain of layers: layer 'head'"),
        (
            nn.Sequential(nn.Flatten(), nn.GELU(), nn.Linear(64, 10)),
            r"layer '1' \(GELU\) cannot be undone: two different inputs give the same output",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10)),
            "layer '1' drops entries at random in training mode",
        ),
        (
            nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10)),
            "layer '0' normalises by the statistics of the image itself",
        ),
        (
            nn.Sequential(nn.GroupNorm(1, 1), nn.Flatten(), nn.Linear(64, 10)),
            r"layer '0' \(GroupNorm\) cannot be undone: it normalises by statistics",
        ),
        (
            nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 10)),
            "which pixel of a window was the largest is not known",
        ),
        (
            nn.Sequential(
                nn.Conv2d(1, 2, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(18, 10)
            ),
            r"layer '2' \(AvgPool2d\) cannot be undone: it tells averages of what '1' \(Tanh\)",
        ),
        (
            nn.Sequential(
                nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"),
                nn.Flatten(),
                nn.Linear(128, 10),
            ),
            "padding must be zeros, not 'reflect'",
        ),
        (nn.Sequential(nn.Flatten(), nn.LeakyReLU(0.0), nn.Linear(64, 10)), "negative slope"),
        (nn.Sequential(nn.Linear(8, 8), nn.Flatten(), nn.Linear(64, 10)), "not on a vector"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False), nn.Sigmoid()),
            "must be linear",
        ),
    ],
    ids=[
        "residual",
        "gelu",
        "dropout",
        "batch statistics",
        "own statistics",
        "max pooling",
        "averages of an activation",
        "reflection",
        "flat leaky",
        "rows",
        "no head",
    ],
)
def test_what_cannot_be_undone_is_refused_by_name(
    model: nn.Module, reason: str, image: Tensor, rng: torch.Generator
) -> None:
    with pytest.raises(AttackFailed, match=reason):
        attack(model, image, 3, rng)


class Noisy(nn.Module):
    """A variational bottleneck, as PRECODE puts it between features and classifier."""

    def __init__(self, *, always: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(*lenet()[:-1])
        self.encoder = nn.Linear(48, 24)
        self.decoder = nn.Linear(12, 20)
        self.head = nn.Linear(20, 10)
        self.always = always

    def forward(self, inputs: Tensor) -> Tensor:
        mean, log_std = self.encoder(self.features(inputs)).chunk(2, dim=1)
        if self.training or self.always:
            mean = mean + log_std.exp() * torch.randn_like(mean)
        logits: Tensor = self.head(torch.relu(self.decoder(mean)))
        return logits


@pytest.mark.parametrize("always", [False, True])
def test_random_numbers_below_the_classifier_do_not_hide_the_image(
    always: bool, image: Tensor, rng: torch.Generator
) -> None:
    model = Noisy(always=always).train()
    gradient = gradient_of_batch(model, image, torch.tensor([3]))
    known = known_of(model)

    ClosedForm().check(known)
    found = ClosedForm()(heard(model, gradient), known, rng=rng)

    assert mse(found, image) < 1e-8
    assert found.notes["entrance"] == "encoder"
    assert found.labels is not None
    assert found.labels.tolist() == [3]
    assert found.matching_loss is None  # the noise is not known


class NoiseInTraining(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + 0.5 * torch.randn_like(inputs) if self.training else inputs


@pytest.mark.parametrize(
    "above",
    [
        nn.Dropout(0.5),
        NoiseInTraining(),
        nn.GELU(),
        nn.BatchNorm1d(20).eval(),
        nn.MaxPool1d(2),
        nn.LayerNorm(20),
    ],
    ids=["dropout", "noise", "gelu", "batch statistics", "max pooling", "own statistics"],
)
def test_what_comes_above_a_linear_layer_need_not_be_undone(
    above: nn.Module, image: Tensor, rng: torch.Generator
) -> None:
    width = 10 if isinstance(above, nn.MaxPool1d) else 20
    model = nn.Sequential(*lenet()[:-1], nn.Linear(48, 20), nn.Tanh(), above, nn.Linear(width, 10))
    gradient = gradient_of_batch(model, image, torch.tensor([3]))

    found = ClosedForm()(heard(model, gradient), known_of(model), rng=rng)

    assert mse(found, image) < 1e-8
    assert found.notes["entrance"] == "7"
    assert found.labels is not None
    assert found.labels.tolist() == [3]


def test_random_numbers_below_every_linear_layer_are_named(
    image: Tensor, rng: torch.Generator
) -> None:
    model = nn.Sequential(nn.Conv2d(1, 12, 3), NoiseInTraining(), nn.Flatten(), nn.Linear(432, 10))

    with pytest.raises(AttackFailed, match=r"layer '1' \(NoiseInTraining\) cannot be undone"):
        ClosedForm().check(known_of(model))


class NoisyFeatures(nn.Module):
    """A chain of layers in evaluation mode, and in training mode noise between two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.above = nn.Sequential(*lenet()[:-1]), nn.Linear(48, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.below(inputs)
        if self.training:
            features = features + 0.1 * torch.randn_like(features)
        logits: Tensor = self.above(features)
        return logits


def test_noise_that_only_training_adds_is_noticed(image: Tensor, rng: torch.Generator) -> None:
    model = NoisyFeatures().train()
    gradient = gradient_of_batch(model, image, torch.tensor([3]))
    known = known_of(model)

    with pytest.raises(AttackFailed, match=r"layer 'above' \(Linear\) receives random numbers"):
        ClosedForm()(heard(model, gradient), known, rng=rng)
    with pytest.raises(AttackFailed, match=r"layer 'above' \(Linear\) receives random numbers"):
        ClosedForm().check(known)
    ClosedForm().check(replace(known, recipe=LocalRecipe(train_mode=False)))


class Around(nn.Module):
    """Two branches of the same features; only together do they tell the derivative there."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 12, 5, stride=2, padding=2)
        self.one, self.other = nn.Linear(192, 10), nn.Linear(192, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        features = torch.sigmoid(self.conv(inputs)).flatten(1)
        logits: Tensor = self.one(features) * self.other(features)
        return logits


class AroundTraced(Around):
    def __init__(self) -> None:
        super().__init__()
        self.sigmoid, self.flat = nn.Sigmoid(), nn.Flatten()

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.flat(self.sigmoid(self.conv(inputs)))
        logits: Tensor = self.one(features) * self.other(features)
        return logits


@pytest.mark.parametrize("model", [Around(), AroundTraced()])
def test_a_linear_layer_that_a_way_leads_around_is_not_entered(
    model: nn.Module, image: Tensor, rng: torch.Generator
) -> None:
    with pytest.raises(AttackFailed, match="not a chain of layers"):
        attack(model, image, 3, rng)


@pytest.mark.parametrize("missing", [["9.weight"], ["9.weight", "9.bias"]])
def test_a_classifier_that_was_not_heard_is_not_needed(
    missing: list[str], image: Tensor, rng: torch.Generator
) -> None:
    model = two_linear()
    gradient = gradient_of_batch(model, image, torch.tensor([3]))
    for name in missing:
        del gradient[name]

    found = ClosedForm()(heard(model, gradient), known_of(model), rng=rng)

    assert mse(found, image) < 1e-8
    if "9.bias" in missing:
        assert found.labels is None
        assert found.notes["labels"] == "the classifier does not tell"
    else:
        assert found.labels is not None
        assert found.labels.tolist() == [3]


def test_nothing_of_the_classifier_is_too_little(image: Tensor, rng: torch.Generator) -> None:
    model = lenet()
    gradient = gradient_of_batch(model, image, torch.tensor([3]))
    del gradient["7.weight"]

    with pytest.raises(AttackFailed, match=r"nothing was heard of the gradient of '7\.weight'"):
        ClosedForm()(heard(model, gradient), known_of(model), rng=rng)


def test_half_of_a_bias_gradient_is_filled_in_by_the_rank_of_the_weights(
    image: Tensor, rng: torch.Generator
) -> None:
    model = two_linear()
    gradient = gradient_of_batch(model, image, torch.tensor([3]))
    del gradient["9.weight"], gradient["9.bias"]
    visible = {"7.bias": torch.arange(20) < 10}

    found = ClosedForm()(heard(model, gradient, visible=visible), known_of(model), rng=rng)

    assert mse(found, image) < 1e-8


def test_a_perturbed_classifier_is_found_out_below(image: Tensor, rng: torch.Generator) -> None:
    model = two_linear()
    gradient = gradient_of_batch(model, image, torch.tensor([3]))
    # rank one as before: every column is another multiple of what it was
    gradient["9.weight"] = gradient["9.weight"] * torch.linspace(0.5, 1.5, 20)

    found = ClosedForm()(heard(model, gradient), known_of(model), rng=rng)

    assert mse(found, image) < 1e-8
    assert "does not fit its bias gradient" in str(found.notes["7"])


def test_victims_enter_each_where_it_can(rng: torch.Generator) -> None:
    model, images = two_linear(), torch.rand(3, *DIGIT, generator=rng)
    seen = [
        heard(model, gradient_of_batch(model, images[i : i + 1], torch.tensor([3])), visible={})
        for i in range(3)
    ]
    seen[1] = replace(seen[1], visible={"9.weight": torch.zeros(10, 20, dtype=torch.bool)})

    together = ClosedForm().many(
        seen, [known_of(model)] * 3, rngs=[torch.Generator().manual_seed(i) for i in range(3)]
    )

    for place, found in enumerate(together):
        assert isinstance(found, Reconstruction)
        assert mse(found, images[place : place + 1]) < 1e-8
        assert ("entrance" in found.notes) == (place == 1)
