import pytest
import torch
from torch import Tensor, nn

from attacks.labels import read_labels
from attacks.matching.victim import rebuild
from attacks.matching.victim_labels import labels_of
from attacks.network import trace
from attacks.observation import AttackFailed

from .conftest import Overhear

LABEL = torch.tensor([2])


def test_labels_are_read_off_the_gradient(
    net: nn.Module, image: Tensor, overhear: Overhear
) -> None:
    seen, known = overhear(net, image, LABEL)

    assert labels_of(rebuild(seen, known, dtype=torch.float64), known).tolist() == [2]


def test_labels_are_counted_with_the_predictions_of_the_weights_in_force(
    net: nn.Module, overhear: Overhear, rng: torch.Generator
) -> None:
    with torch.no_grad():
        net.get_parameter("3.bias").copy_(
            torch.tensor([4.0, 0.0, 0.0])
        )  # class 0 is predicted, always
    images, labels = torch.rand(6, 1, 4, 4, generator=rng), torch.tensor([0, 0, 0, 0, 1, 2])
    seen, known = overhear(net, images, labels)
    counted_evenly = read_labels(seen.update, trace(net, (1, 4, 4)), visible=None, batch_size=6)

    found = labels_of(rebuild(seen, known, dtype=torch.float32), known)

    assert found.tolist() == labels.tolist()
    assert counted_evenly is not None
    assert counted_evenly.tolist() != labels.tolist()


def test_labels_that_cannot_be_read_are_a_reason(image: Tensor, overhear: Overhear) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Sigmoid())
    seen, known = overhear(model, image, LABEL)

    with pytest.raises(AttackFailed, match="no linear layer gives the logits"):
        labels_of(rebuild(seen, known, dtype=torch.float32), known)
