"""CENSOR: what is sent is orthogonal to the gradient; what that still tells, and what it costs."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.labels import LabelRule
from attacks.observation import Knowledge
from clients.defenses.censor import Censor

from .conftest import MakeSituation
from .hearing import heard

CLASSES = 10


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, CLASSES))


def gradient(model: nn.Module, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    loss = functional.cross_entropy(model(inputs), labels)
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))


def batch(seed: int = 0, size: int = 1) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    inputs = torch.rand(size, 20, generator=rng)
    return inputs, torch.randint(CLASSES, (size,), generator=rng)


def test_each_tensor_is_orthogonal_to_its_gradient_and_as_long(
    model: nn.Module, situation: MakeSituation
) -> None:
    inputs, labels = batch()
    update = gradient(model, inputs, labels)

    sent = Censor().apply(update, situation(model=model, inputs=inputs, labels=labels))

    for name, tensor in update.items():
        length = tensor.norm()
        assert abs(float((sent[name] * tensor).sum())) < 1e-6 * float(length**2)
        torch.testing.assert_close(sent[name].norm(), length)


def test_the_candidate_with_the_lowest_loss_is_sent(
    model: nn.Module, situation: MakeSituation
) -> None:
    inputs, labels = batch(size=4)
    update = gradient(model, inputs, labels)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def loss_after(trials: int, seed: int) -> float:
        at = situation(
            seed, model=model, before=before, inputs=inputs, labels=labels, learning_rate=1.0
        )
        sent = Censor(trials=trials).apply(update, at)
        moved = {name: before[name] - sent[name] for name in before}
        logits = torch.func.functional_call(model, moved, (inputs,))
        return float(functional.cross_entropy(logits, labels))

    for seed in range(5):  # the first candidate is the same
        assert loss_after(20, seed) <= loss_after(1, seed)
    assert sum(loss_after(20, seed) < loss_after(1, seed) for seed in range(5)) >= 4
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_a_tensor_of_one_entry_and_one_without_gradient_are_sent_as_zero(
    situation: MakeSituation,
) -> None:
    model = nn.Linear(3, 1)
    update = {"weight": torch.zeros(1, 3), "bias": torch.tensor([2.0])}
    sent = Censor(trials=1).apply(
        update, situation(model=model, inputs=torch.zeros(1, 3), loss=lambda a, b: a.sum())
    )
    assert not sent["weight"].any()
    assert not sent["bias"].any()


def test_the_label_is_hidden_from_its_sign_but_not_from_who_asks_what_is_orthogonal(
    model: nn.Module, situation: MakeSituation
) -> None:
    by_sign = by_angle = 0
    trials = 60
    known = Knowledge(model=model, input_shape=(20,), num_classes=CLASSES, batch_size=1)
    prediction = model(torch.rand(100, 20)).softmax(1).mean(0).detach()  # of public inputs
    for seed in range(trials):
        inputs, labels = batch(seed)
        at = situation(seed, model=model, inputs=inputs, labels=labels)
        sent = Censor(trials=5).apply(gradient(model, inputs, labels), at)
        found = LabelRule()(heard(sent, model=model), known, rng=torch.Generator()).labels
        assert found is not None
        by_sign += int(found[0] == labels[0])
        # the error at the logits, prediction minus label, is orthogonal to the bias that was sent
        bias = sent["2.bias"]
        by_angle += int((bias @ prediction - bias).abs().argmin() == labels[0])

    assert by_sign < 0.3 * trials  # chance is 0.1
    assert by_angle > 0.5 * trials


def test_as_many_messages_of_one_batch_as_a_tensor_has_entries_less_one_give_its_direction(
    model: nn.Module, situation: MakeSituation
) -> None:
    inputs, labels = batch()
    update = gradient(model, inputs, labels)
    sent = [
        Censor(trials=1).apply(update, situation(seed, model=model, inputs=inputs, labels=labels))[
            "2.bias"
        ]
        for seed in range(CLASSES - 1)
    ]

    direction = torch.linalg.svd(torch.stack(sent).double()).Vh[-1]

    cosine = torch.cosine_similarity(direction, update["2.bias"].double(), dim=0)
    assert abs(float(cosine)) > 1 - 1e-6


def test_who_knows_it_takes_what_was_sent_for_noise(model: nn.Module) -> None:
    update = {"w": torch.full((4,), 3.0)}
    _, known = Censor().read(heard(update, model=model), Knowledge())
    assert known.noise is not None
    assert known.noise.deviation == {"w": pytest.approx(3 * 2**0.5)}


def test_no_trials_are_refused() -> None:
    with pytest.raises(ValueError, match="trials must be at least 1, got 0"):
        Censor(trials=0)
