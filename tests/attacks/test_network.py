import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.network import (
    all_visible,
    known_architecture,
    normalisation,
    same_values,
    trace,
    with_weights,
)
from attacks.observation import AttackFailed, Knowledge

pytestmark = pytest.mark.usefixtures("seeded")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        flat = inputs.flatten(1)
        logits: Tensor = self.head(flat + self.inner(flat))
        return logits


class HeadFirst(nn.Module):
    """The classifier is registered first, and a layer that never runs last."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(5, 3)
        self.body = nn.Linear(6, 5)
        self.unused = nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.body(inputs.flatten(1)))
        return logits


class Shift(nn.Module):
    """Buffers like a normalisation's; what it computes is something else."""

    mean: Tensor
    std: Tensor

    def __init__(self, divide: bool) -> None:
        super().__init__()
        self.divide = divide
        self.register_buffer("mean", torch.full((3, 1, 1), 0.5))
        self.register_buffer("std", torch.tensor([0.2, 0.3, 0.4]))

    def forward(self, inputs: Tensor) -> Tensor:
        std = self.std.view(-1, 1, 1)
        return (inputs - self.mean) / std if self.divide else (inputs - self.mean) * std


def test_layers_are_listed_in_the_order_they_run() -> None:
    traced = trace(HeadFirst(), (1, 2, 3))

    assert [layer.name for layer in traced.layers] == ["body", "classifier"]
    assert traced.layers[0].input_shape == (6,)
    assert traced.layers[0].output_shape == traced.layers[1].input_shape == (5,)
    assert traced.layers[0].parameter("weight") == "body.weight"


def test_the_classifier_is_the_linear_layer_that_gives_the_logits() -> None:
    classifier = trace(HeadFirst(), (1, 2, 3)).classifier()

    assert classifier is not None
    assert classifier.name == "classifier"


def test_a_model_that_ends_in_softmax_has_no_classifier() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.Softmax(1))

    assert trace(model, (1, 2, 3)).classifier() is None


def test_a_model_that_is_one_layer_has_parameters_without_a_prefix() -> None:
    (layer,) = trace(nn.Linear(4, 2), (4,)).layers

    assert layer.parameter("weight") == "weight"


def test_a_sequence_with_flattening_in_between_is_a_chain() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)
            self.act = nn.ReLU(inplace=True)  # what went in must survive it
            self.fc = nn.Linear(8, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            logits: Tensor = self.fc(self.act(self.conv(inputs)).flatten(1))
            return logits

    assert trace(Net(), (1, 4, 4)).break_in_chain() is None


def test_a_residual_connection_breaks_the_chain_where_it_ends() -> None:
    reason = trace(Residual(), (1, 2, 3)).break_in_chain()

    assert reason is not None
    assert "'head' (Linear)" in reason


def test_a_function_between_modules_breaks_the_chain() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 64)  # some of its outputs are negative

        def forward(self, inputs: Tensor) -> Tensor:
            return functional.relu(self.fc(inputs.flatten(1)))

    reason = trace(Net(), (1, 2, 3)).break_in_chain()

    assert reason is not None
    assert "output" in reason


def test_a_layer_that_runs_twice_breaks_the_chain() -> None:
    layer = nn.Linear(6, 6)

    reason = trace(nn.Sequential(nn.Flatten(), layer, layer), (1, 2, 3)).break_in_chain()

    assert reason == "layer '1' runs more than once"


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6), nn.Linear(6, 3)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    trace(model, (1, 2, 3))

    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_tracing_does_not_touch_the_global_random_numbers() -> None:
    model = HeadFirst()
    state = torch.random.get_rng_state()

    trace(model, (1, 2, 3))

    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_normalisation_is_recognised_by_what_it_computes() -> None:
    normalising, other = (trace(Shift(divide), (3, 2, 2)).layers[0] for divide in (True, False))

    constants = normalisation(normalising)
    assert constants is not None
    assert constants[0].shape == constants[1].shape == (3, 1, 1)
    assert normalisation(other) is None
    assert normalisation(trace(nn.Sigmoid(), (3, 2, 2)).layers[0]) is None


def test_weights_in_force_are_set_on_a_copy() -> None:
    model = nn.BatchNorm1d(2)
    weights = {"weight": torch.tensor([2.0, 3.0]), "bias": torch.tensor([4.0, 5.0])}
    buffers = {"running_mean": torch.tensor([6.0, 7.0])}

    copied = with_weights(model, weights, buffers)

    assert not copied.training
    torch.testing.assert_close(dict(copied.named_parameters())["bias"].data, weights["bias"])
    torch.testing.assert_close(copied.get_buffer("running_mean"), buffers["running_mean"])
    assert model.training
    assert model.bias.tolist() == [0.0, 0.0]


def test_weights_that_were_not_heard_are_named() -> None:
    with pytest.raises(AttackFailed, match=r"'bias' were not heard"):
        with_weights(nn.Linear(2, 2), {"weight": torch.zeros(2, 2)}, None)


def test_an_architecture_that_was_not_granted_is_asked_for() -> None:
    with pytest.raises(AttackFailed, match="architecture"):
        known_architecture(Knowledge(input_shape=(1, 2, 2)))
    with pytest.raises(AttackFailed, match="shape"):
        known_architecture(Knowledge(model=nn.Flatten()))


def test_visibility_is_asked_for_by_name() -> None:
    visible = {"a": torch.tensor([True, True]), "b": torch.tensor([True, False])}

    assert all_visible(None, "a", "b")
    assert all_visible(visible, "a", "never masked")
    assert not all_visible(visible, "a", "b")


def test_values_are_compared_whatever_the_shape() -> None:
    values = torch.arange(6.0)

    assert same_values(values, values.view(2, 3))
    assert not same_values(values, values.flip(0))
    assert not same_values(values, values[:5])
