from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from attacks.closed_form import ClosedForm
from attacks.observation import (
    AttackFailed,
    Budget,
    Kind,
    Knowledge,
    LocalRecipe,
    Observation,
    Reconstruction,
)
from fedsim.data.cifar import cifar100
from tests.attacks.chains import DIGIT, attack, heard, known_of, lenet, mse
from tests.attacks.overhearing import gradient_of_batch

pytestmark = pytest.mark.usefixtures("seeded")


class Normalise(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.5]).view(1, 1, 1))
        self.register_buffer("std", torch.tensor([0.25]).view(1, 1, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs - self.mean) / self.std


@pytest.mark.parametrize(
    "activation",
    [
        nn.Sigmoid,
        nn.Tanh,
        lambda: nn.LeakyReLU(0.2),
        nn.Softplus,
        lambda: nn.Softplus(beta=2),
        nn.Identity,
    ],
    ids=["sigmoid", "tanh", "leaky", "softplus", "sharp softplus", "identity"],
)
def test_one_image_is_solved_for_exactly(
    activation: Callable[[], nn.Module], image: Tensor, rng: torch.Generator
) -> None:
    model = lenet(activation)
    # Unbounded activations: the published weights would saturate the softmax.
    shrink = 1.0 if activation in (nn.Sigmoid, nn.Tanh) else 0.3
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(shrink)

    found = attack(model, image, 3, rng)

    assert mse(found, image) < 1e-8  # float32 rounding, amplified a hundredfold
    assert found.labels is not None
    assert found.labels.tolist() == [3]
    assert found.inputs is not None
    assert found.inputs.dtype == torch.float32
    assert found.matching_loss is not None
    assert found.matching_loss < 1e-6
    assert str(found.notes["0"]).startswith("64 of 64 unknowns determined")


def rectangular() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 9, (3, 2), stride=(2, 1), padding=(1, 0), bias=False),
        nn.LeakyReLU(0.5),
        nn.Flatten(),
        nn.Linear(9 * 4 * 7, 30, bias=False),
        nn.Sigmoid(),
        nn.Linear(30, 10),
    )


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 15), nn.Tanh(), nn.Linear(15, 10)
    )


@pytest.mark.parametrize(
    "build",
    [lambda: nn.Sequential(Normalise(), *lenet(seed=1)), mlp, rectangular],
    ids=["normalised", "mlp", "rectangular"],
)
def test_any_chain_of_invertible_layers_is_solved(
    build: Callable[[], nn.Module], image: Tensor, rng: torch.Generator
) -> None:
    found = attack(build(), image, 7, rng)

    assert mse(found, image) < 1e-6
    assert found.labels is not None
    assert found.labels.tolist() == [7]


def relu_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 10)
    )


def relu_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def dilated_and_grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding="same", dilation=2),
        nn.Tanh(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=2),
        nn.Softsign(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def bent() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 40),
        nn.ELU(0.5),
        nn.Linear(40, 30),
        nn.CELU(2.0),
        nn.Linear(30, 20),
        nn.SELU(),
        nn.Linear(20, 15),
        nn.PReLU(),
        nn.Linear(15, 10),
    )


def without_bias() -> nn.Module:
    return nn.Sequential(*lenet()[:-1], nn.Linear(48, 10, bias=False))


@pytest.mark.parametrize("build", [relu_mlp, relu_network, dilated_and_grouped, bent, without_bias])
def test_more_kinds_of_layers_are_solved(
    build: Callable[[], nn.Module], image: Tensor, rng: torch.Generator
) -> None:
    found = attack(build(), image, 3, rng)

    assert mse(found, image) < 1e-6
    assert found.labels is not None
    assert found.labels.tolist() == [3]


def test_the_forward_pass_of_a_relu_counts_where_it_is_positive(rng: torch.Generator) -> None:
    model = nn.Sequential(  # 45 gradient equations for 256 pixels of a channel
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 10)
    )
    image = torch.rand(1, 3, 16, 16, generator=rng)

    found = attack(model, image, 3, rng)

    assert mse(found, image) < 1e-5  # half of the outputs are clipped; without them 0.06
    assert str(found.notes["0"]).startswith("768 of 768 unknowns determined, 216 by")


def test_a_client_in_evaluation_mode_gives_away_what_batch_normalisation_sees(
    image: Tensor, rng: torch.Generator
) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(512, 10),
    ).eval()
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    nn.init.uniform_(norm.weight, -1, 1)
    gradient = gradient_of_batch(model, image, torch.tensor([3]))
    known = replace(known_of(model), recipe=LocalRecipe(train_mode=False))
    seen = heard(model, gradient)

    found = ClosedForm()(replace(seen, buffers=dict(model.named_buffers())), known, rng=rng)

    assert mse(found, image) < 1e-8
    with pytest.raises(AttackFailed, match="needs the running statistics"):
        ClosedForm()(seen, known, rng=rng)


def test_pooling_below_no_activation_keeps_the_weight_gradient(
    image: Tensor, rng: torch.Generator
) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.AvgPool2d(2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(192, 10),
    )

    found = attack(model, image, 3, rng)

    assert mse(found, image) < 1e-3
    assert found.notes["1"] == "only averages of its windows are known"


def test_natural_images_in_the_setting_of_dlg_are_solved(
    real_data: Path, rng: torch.Generator
) -> None:
    if not (real_data / "cifar100").is_dir():
        pytest.skip("CIFAR-100 is not among the real data sets here")
    data = cifar100(root=real_data, limit=4)
    shape = (3, 32, 32)
    for index in range(4):
        image, label = data.test_inputs[index : index + 1], int(data.test_labels[index])
        model = lenet(shape=shape, num_classes=100, seed=index)

        found = attack(model, image, label, rng)

        # The published criterion of success is 1e-4 or looser; 50 images gave 2e-6 at worst.
        assert mse(found, image) < 1e-5
        assert found.labels is not None
        assert found.labels.tolist() == [label]


def test_a_trained_network_gives_its_images_away_as_well(
    image: Tensor, rng: torch.Generator
) -> None:
    model = lenet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(100):
        inputs = torch.rand(8, *DIGIT, generator=rng)
        gradient = gradient_of_batch(model, inputs, torch.randint(10, (8,), generator=rng))
        for name, parameter in model.named_parameters():
            parameter.grad = gradient[name]
        optimizer.step()

    assert mse(attack(model, image, 3, rng), image) < 1e-6


@pytest.mark.parametrize("kind", [Kind.DELTA, Kind.WEIGHTS])
def test_one_local_step_is_read_as_its_gradient(
    kind: Kind, image: Tensor, rng: torch.Generator
) -> None:
    model = lenet()
    gradient = gradient_of_batch(model, image, torch.tensor([3]))
    update = {name: -0.1 * tensor for name, tensor in gradient.items()}
    if kind is Kind.WEIGHTS:
        update = {name: p.detach() + update[name] for name, p in model.named_parameters()}
    known = Knowledge(
        model=model, input_shape=DIGIT, batch_size=1, recipe=LocalRecipe(learning_rate=0.1)
    )

    found = ClosedForm()(heard(model, update, kind), known, rng=rng)

    # Weights of size 0.5 carry a step of size 0.01 to five digits.
    assert mse(found, image) < (1e-8 if kind is Kind.DELTA else 1e-3)


def test_the_weights_in_force_count_and_not_the_models_own(
    image: Tensor, rng: torch.Generator
) -> None:
    model, other = lenet(seed=0), lenet(seed=1)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    gradient = gradient_of_batch(model, image, torch.tensor([3]))

    found = ClosedForm()(heard(model, gradient), known_of(other), rng=rng)

    assert mse(found, image) < 1e-8
    torch.testing.assert_close(dict(other.state_dict()), before, rtol=0, atol=0)


def test_a_batch_is_refused(image: Tensor, rng: torch.Generator) -> None:
    model = lenet()
    known = Knowledge(model=model, input_shape=DIGIT, batch_size=2)

    with pytest.raises(AttackFailed, match="for one image, not 2"):
        ClosedForm()(heard(model, {}), known, rng=rng)


def test_weights_that_were_not_heard_are_asked_for(rng: torch.Generator) -> None:
    model = lenet()
    blind = Observation(
        round=1, sender="client-0", receiver="server", kind=Kind.GRADIENT, update={}
    )

    with pytest.raises(AttackFailed, match="needs the weights in force"):
        ClosedForm()(blind, known_of(model), rng=rng)


def test_victims_of_one_round_are_solved_together_as_they_are_alone(rng: torch.Generator) -> None:
    model, other = lenet(), lenet(seed=1)
    images = torch.rand(5, 1, *DIGIT, generator=rng)
    seen = [
        heard(owner, gradient_of_batch(owner, image, torch.tensor([label])))
        for label, (image, owner) in enumerate(
            zip(images, [model, other, model, model, model], strict=True)
        )
    ]
    seen[3] = heard(model, {**seen[3].update, "7.weight": seen[3].update["7.weight"] / 0})
    known = [known_of(model)] * 5

    together = ClosedForm().many(
        seen, known, rngs=[torch.Generator().manual_seed(i) for i in range(5)]
    )

    assert isinstance(together[3], AttackFailed)
    for index in (0, 1, 2, 4):
        found = together[index]
        alone = ClosedForm()(seen[index], known[index], rng=torch.Generator().manual_seed(index))
        assert isinstance(found, Reconstruction)
        assert mse(found, images[index]) < 1e-8
        assert found.inputs is not None
        assert alone.inputs is not None
        torch.testing.assert_close(found.inputs, alone.inputs, rtol=0, atol=1e-5)
        assert found.labels is not None
        assert found.labels.tolist() == [index]


def test_victims_beyond_the_budget_are_reported(image: Tensor) -> None:
    model = lenet()
    seen = heard(model, gradient_of_batch(model, image, torch.tensor([3])))

    (found,) = ClosedForm().many(
        [seen], [known_of(model)], rngs=[torch.Generator()], budget=Budget(0.0)
    )

    assert isinstance(found, AttackFailed)


def test_the_same_generator_gives_the_same_image(image: Tensor) -> None:
    model = lenet(shape=DIGIT)

    one, other = (attack(model, image, 3, torch.Generator().manual_seed(5)) for _ in range(2))

    assert one.inputs is not None
    assert other.inputs is not None
    assert torch.equal(one.inputs, other.inputs)
    assert one.notes == other.notes


def test_what_is_not_finite_is_refused(image: Tensor, rng: torch.Generator) -> None:
    model = lenet()
    gradient = gradient_of_batch(model, image, torch.tensor([3]))
    seen = heard(model, {**gradient, "2.weight": gradient["2.weight"] / 0})

    with pytest.raises(AttackFailed, match=r"gradient of '2\.weight' is not finite"):
        ClosedForm()(seen, known_of(model), rng=rng)

    nn.init.constant_(next(model.parameters()), torch.nan)
    with pytest.raises(AttackFailed, match="not finite"):
        ClosedForm()(heard(model, gradient), known_of(model), rng=rng)
