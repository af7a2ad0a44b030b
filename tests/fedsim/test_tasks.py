"""Tasks: data, a model and a loss."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedsim.errors import ConfigError
from fedsim.tasks import evaluate, load_task


def test_a_task_builds_its_model_for_its_data_from_the_generator_alone() -> None:
    task = load_task(data="digits", data_options={}, model="dlg-lenet", model_options={})

    models = [task.build_model(torch.Generator().manual_seed(3)) for _ in range(2)]

    assert (task.input_shape, task.num_classes) == ((1, 8, 8), 10)
    first, second = (nn.utils.parameters_to_vector(model.parameters()) for model in models)
    assert torch.equal(first, second)
    assert models[0].training
    assert models[0](task.data.test_inputs[:4]).shape == (4, 10)


def test_the_loss_takes_labels_and_probabilities_alike() -> None:
    task = load_task(data="digits", data_options={}, model="mlp", model_options={})
    logits, labels = torch.randn(5, 10), torch.tensor([0, 1, 2, 3, 9])

    hard, soft = (
        task.loss(logits, labels),
        task.loss(logits, functional.one_hot(labels, 10).float()),
    )

    torch.testing.assert_close(hard, soft)


def test_a_model_that_does_not_take_the_data_is_refused_at_once() -> None:
    with pytest.raises(
        ConfigError, match=r"'convnet' needs images of at least 9x9 pixels, got 8x8"
    ):
        load_task(data="digits", data_options={}, model="convnet", model_options={})


def test_accuracy_and_loss_are_those_of_the_whole_set_whatever_the_batch_size() -> None:
    logits = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    labels = logits.argmax(dim=1)
    labels[:3] = (labels[:3] + 1) % 4  # three mistakes
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4, bias=False))
    nn.init.eye_(model[1].weight)  # type: ignore[arg-type]  # a layer's weight is a tensor

    for batch_size in (1, 3, 256):
        accuracy, loss = evaluate(model, logits.view(10, 1, 2, 2), labels, batch_size)

        assert accuracy == pytest.approx(0.7)
        assert loss == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-6)


@pytest.mark.parametrize("train_mode", [True, False])
def test_evaluation_changes_nothing_in_the_model(train_mode: bool) -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(4, 2)).train(train_mode)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    evaluate(model, torch.rand(6, 1, 2, 2), torch.zeros(6, dtype=torch.int64))

    assert model.training is train_mode
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
