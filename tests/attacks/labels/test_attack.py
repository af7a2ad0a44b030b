from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from attacks.labels import RULES, LabelRule, recover_labels
from attacks.metrics.labels import multiset_overlap
from attacks.observation import AttackFailed, Kind, Knowledge, Observation, Tensors
from attacks.threats import Capability
from tests.attacks.overhearing import gradient_of_batch


def heard(gradient: Tensors, visible: Tensors | None = None) -> Observation:
    return Observation(
        round=1,
        sender="client-0",
        receiver="server",
        kind=Kind.GRADIENT,
        update=gradient,
        visible=visible,
    )


class Net(nn.Module):
    """A classifier that is neither registered last nor called "fc"."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.top = nn.Linear(8, 5, bias=bias)
        self.body = nn.Linear(6, 8)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.top(torch.sigmoid(self.body(inputs.flatten(1))))
        return logits


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


@given(st.lists(st.integers(0, 9), min_size=2, max_size=12).filter(lambda counts: sum(counts) > 0))
def test_uniform_predictions_give_any_batch_away(counts: list[int]) -> None:
    # B may exceed K, labels repeat, classes are missing: dL/db_k = 1/K - n_k/B
    num_classes, batch_size = len(counts), sum(counts)
    gradient = {"b": 1 / num_classes - torch.tensor(counts) / batch_size}

    labels = recover_labels(
        gradient,
        classifier_weight=None,
        classifier_bias="b",
        batch_size=batch_size,
        num_classes=num_classes,
    )

    assert labels.dtype == torch.int64
    assert labels.bincount(minlength=num_classes).tolist() == counts


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(2, 8))
def test_a_class_with_a_negative_bias_gradient_is_always_there(
    seed: int, batch_size: int, num_classes: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (batch_size,), generator=rng)
    logits = 3 * torch.randn(batch_size, num_classes, generator=rng)
    bias = (logits.softmax(1) - functional.one_hot(labels, num_classes)).mean(0)

    found = recover_labels(
        {"b": bias},
        classifier_weight=None,
        classifier_bias="b",
        batch_size=batch_size,
        num_classes=num_classes,
    )

    assert set(torch.nonzero(bias < -1e-6).flatten().tolist()) <= set(found.tolist())
    assert len(found) == batch_size


@pytest.mark.parametrize("label", range(5))
@pytest.mark.parametrize("bias", [True, False])
def test_one_label_is_read_off_exactly(bias: bool, label: int, rng: torch.Generator) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net(bias)
    gradient = gradient_of_batch(
        model, torch.rand(1, 1, 2, 3, generator=rng), torch.tensor([label])
    )
    known = Knowledge(model=model, input_shape=(1, 2, 3), batch_size=1)

    found = LabelRule()(heard(gradient), known, rng=rng)

    assert found.labels is not None
    assert found.labels.tolist() == [label]
    assert found.inputs is None


@pytest.mark.parametrize("bias", [True, False])
def test_distinct_labels_are_read_off_an_untrained_network(
    bias: bool, rng: torch.Generator
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(6, 16), nn.Sigmoid(), nn.Linear(16, 20, bias=bias)
        )
    truth = torch.tensor([2, 3, 11, 17])
    gradient = gradient_of_batch(model, torch.rand(4, 1, 2, 3, generator=rng), truth)
    known = Knowledge(model=model, input_shape=(1, 2, 3), batch_size=4)

    found = LabelRule()(heard(gradient), known, rng=rng)

    assert found.labels is not None
    assert found.labels.tolist() == truth.tolist()


def test_duplicates_in_a_batch_larger_than_the_classes_are_counted(
    model: nn.Module, rng: torch.Generator
) -> None:
    truth = torch.tensor([0] * 14 + [1] * 2 + [3] * 4)  # classes 2 and 4 are missing
    with torch.no_grad():  # predicts every class alike, as a network does before training
        for parameter in model.parameters():
            parameter.mul_(0.05)
    gradient = gradient_of_batch(model, torch.rand(20, 1, 2, 3, generator=rng), truth)
    known = Knowledge(model=model, input_shape=(1, 2, 3), batch_size=20)

    found = LabelRule()(heard(gradient), known, rng=rng)

    assert found.labels is not None
    assert found.labels.tolist() == truth.tolist()


def test_row_sums_count_duplicates_when_a_class_is_missing(rng: torch.Generator) -> None:
    # The scale of row sums is unknown; a missing class, at exactly 1/K, fixes it for B > K.
    counts = torch.tensor([14, 2, 0, 4])
    rows = torch.outer(1 / 4 - counts / 20, torch.rand(7, generator=rng))

    labels = recover_labels(
        {"w": rows}, classifier_weight="w", classifier_bias=None, batch_size=20, num_classes=4
    )

    assert labels.bincount(minlength=4).tolist() == counts.tolist()


def test_row_sums_stand_in_for_a_bias_that_was_not_heard(
    model: nn.Module, rng: torch.Generator
) -> None:
    gradient = gradient_of_batch(model, torch.rand(1, 1, 2, 3, generator=rng), torch.tensor([4]))
    visible = {
        name: torch.full_like(tensor, name != "top.bias", dtype=torch.bool)
        for name, tensor in gradient.items()
    }
    known = Knowledge(model=model, input_shape=(1, 2, 3), batch_size=1)

    found = LabelRule()(heard(gradient, visible), known, rng=rng)

    assert found.labels is not None
    assert found.labels.tolist() == [4]


def test_a_classifier_heard_in_part_says_nothing(model: nn.Module, rng: torch.Generator) -> None:
    gradient = gradient_of_batch(model, torch.rand(1, 1, 2, 3, generator=rng), torch.tensor([4]))
    visible = {name: torch.zeros_like(tensor).bool() for name, tensor in gradient.items()}
    known = Knowledge(model=model, input_shape=(1, 2, 3), batch_size=1)

    with pytest.raises(AttackFailed, match="not heard completely"):
        LabelRule()(heard(gradient, visible), known, rng=rng)


def test_a_model_without_a_final_linear_layer_is_refused(rng: torch.Generator) -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    known = Knowledge(model=model, input_shape=(1, 2, 3), batch_size=1)

    with pytest.raises(AttackFailed, match="no linear layer of this model gives the logits"):
        LabelRule()(heard({}), known, rng=rng)


def test_the_number_of_labels_must_be_known(model: nn.Module, rng: torch.Generator) -> None:
    with pytest.raises(AttackFailed, match="batch-size"):
        LabelRule()(heard({}), Knowledge(model=model, input_shape=(1, 2, 3)), rng=rng)


@pytest.mark.parametrize(("value", "reason"), [(0.0, "zero"), (torch.nan, "not finite")])
def test_a_zero_or_broken_gradient_says_nothing(value: float, reason: str) -> None:
    with pytest.raises(AttackFailed, match=reason):
        recover_labels(
            {"b": torch.full((3,), value)},
            classifier_weight=None,
            classifier_bias="b",
            batch_size=1,
            num_classes=3,
        )


def test_a_classifier_of_another_width_is_refused() -> None:
    with pytest.raises(AttackFailed, match="3 outputs, expected 4 classes"):
        recover_labels(
            {"b": torch.ones(3)},
            classifier_weight=None,
            classifier_bias="b",
            batch_size=1,
            num_classes=4,
        )


def test_a_gradient_without_the_classifier_is_refused() -> None:
    with pytest.raises(AttackFailed, match="not heard"):
        recover_labels({}, classifier_weight="w", classifier_bias=None, batch_size=1, num_classes=3)


def test_a_rule_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"rule must be one of auto, .*got 'magic'"):
        LabelRule(rule="magic")


def test_a_rule_asks_for_what_it_reads() -> None:
    assert Capability.WEIGHTS not in LabelRule().needs
    assert Capability.WEIGHTS in LabelRule(rule="ilrg").needs
    assert LabelRule(rule="calibrated").needs > LabelRule(rule="ilrg").needs


@pytest.mark.parametrize("rule", sorted(RULES))
def test_every_rule_is_an_attack_by_name(rule: str, rng: torch.Generator) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 20))
    truth = torch.tensor([2, 3, 11, 17])
    gradient = gradient_of_batch(model, torch.rand(4, 1, 2, 3, generator=rng), truth)
    seen = replace(
        heard(gradient), weights={name: p.detach() for name, p in model.named_parameters()}
    )
    known = Knowledge(
        model=model,
        input_shape=(1, 2, 3),
        batch_size=4,
        public_sample=torch.rand(30, 1, 2, 3, generator=rng),
    )

    found = LabelRule(rule=rule)(seen, known, rng=torch.Generator().manual_seed(1))
    again = LabelRule(rule=rule)(seen, known, rng=torch.Generator().manual_seed(1))

    assert found.labels is not None
    assert again.labels is not None
    assert found.labels.tolist() == truth.tolist() == again.labels.tolist()
    assert found.notes["rule"] == rule


def test_the_weights_heard_calibrate_the_counts(rng: torch.Generator) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(6, 16), nn.Sigmoid(), nn.Linear(16, 5))
    with torch.no_grad():
        model.get_parameter("3.bias").copy_(torch.tensor([2.0, 0.0, -1.0, 0.0, 1.0]))
    truth = torch.randint(5, (400,), generator=rng)
    gradient = gradient_of_batch(model, torch.rand(400, 1, 2, 3, generator=rng), truth)
    known = Knowledge(model=model, input_shape=(1, 2, 3), batch_size=400)
    deaf = heard(gradient)
    seen = replace(deaf, weights={name: p.detach() for name, p in model.named_parameters()})
    parts = replace(deaf, weights={"1.weight": model.get_parameter("1.weight").detach()})

    right = [
        multiset_overlap(labels, truth)
        for one in (deaf, parts, seen)
        if (labels := LabelRule()(one, known, rng=rng).labels) is not None
    ]

    assert right[0] == right[1] < 0.7  # weights heard in part are no help
    assert right[2] > 0.99
