from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from attacks.idlg import IDLG
from attacks.observation import Attack, AttackFailed, Budget
from attacks.threats import Capability

from .overhearing import overhear

NUM_CLASSES = 10


def test_it_is_an_attack_that_needs_no_labels() -> None:
    attack: Attack = IDLG()

    assert isinstance(attack, Attack)
    assert Capability.LABELS not in attack.needs


@pytest.mark.parametrize("label", [0, 9])
def test_the_label_is_read_and_the_image_found(
    label: int, model: nn.Module, blurred: Tensor, rng: torch.Generator
) -> None:
    found = IDLG()(*overhear(model, blurred, [label]), rng=rng)

    assert found.labels is not None
    assert found.labels.tolist() == [label]
    assert found.inputs is not None
    # Recovered pixels are off by about 1e-3; a random guess has an error of about 0.1.
    assert float((found.inputs - blurred).square().mean()) < 1e-5


def test_an_image_is_found_from_half_of_the_coordinates(
    model: nn.Module, blurred: Tensor, rng: torch.Generator
) -> None:
    seen, known = overhear(model, blurred, [4])
    visible = {
        name: torch.rand(tensor.shape, generator=rng) < 0.5 if "weight" in name else tensor > -9
        for name, tensor in seen.update.items()
    }
    update = {name: torch.where(visible[name], t, torch.nan) for name, t in seen.update.items()}

    found = IDLG()(replace(seen, update=update, visible=visible), known, rng=rng)

    assert found.inputs is not None
    assert float((found.inputs - blurred).square().mean()) < 1e-4


def test_without_the_classifier_no_label_is_read(
    model: nn.Module, blurred: Tensor, rng: torch.Generator
) -> None:
    seen, known = overhear(model, blurred, [4])
    update = {name: t for name, t in seen.update.items() if not name.startswith("5.")}

    with pytest.raises(AttackFailed, match="labels cannot be read"):
        IDLG()(replace(seen, update=update), known, rng=rng)


def test_labels_it_may_know_are_never_read(model: nn.Module, blurred: Tensor) -> None:
    seen, known = overhear(model, blurred, [4])
    attack = IDLG(steps=5, restarts=1)

    plain = attack(seen, known, rng=torch.Generator().manual_seed(1))
    garbage = replace(known, labels=torch.tensor([9]))
    other = attack(seen, garbage, rng=torch.Generator().manual_seed(1))

    assert plain.inputs is not None
    assert other.inputs is not None
    assert torch.equal(plain.inputs, other.inputs)


def test_a_spent_budget_ends_it_with_a_guess(
    model: nn.Module, blurred: Tensor, rng: torch.Generator
) -> None:
    found = IDLG()(*overhear(model, blurred, [4]), rng=rng, budget=Budget(0.0))

    assert not found.finished
    assert found.inputs is not None
    assert found.labels is not None
    assert found.labels.tolist() == [4]


def test_labels_read_wrongly_are_put_right_by_the_search(
    model: nn.Module, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = torch.rand(2, 1, 8, 8, generator=rng)
    seen, known = overhear(model, inputs[:1], [4])
    other, _ = overhear(model, inputs[1:], [7])
    mean = {name: (t + other.update[name]) / 2 for name, t in seen.update.items()}
    seen, known = replace(seen, update=mean), replace(known, batch_size=2)
    monkeypatch.setattr(
        "attacks.matching.squared_distance.labels_of", lambda *_: torch.tensor([4, 8])
    )

    plain = IDLG(refine=False, restarts=1, steps=60)(
        seen, known, rng=torch.Generator().manual_seed(1)
    )
    found = IDLG(restarts=1, steps=150)(seen, known, rng=torch.Generator().manual_seed(1))

    assert plain.labels is not None
    assert found.labels is not None
    assert sorted(plain.labels.tolist()) == [4, 8]
    assert sorted(found.labels.tolist()) == [4, 7]
    assert found.matching_loss is not None
    assert plain.matching_loss is not None
    assert found.matching_loss < 0.01 * plain.matching_loss


def test_a_stuck_search_starts_again_from_the_closed_form(
    model: nn.Module, blurred: Tensor
) -> None:
    seen, known = overhear(model, blurred, [4])
    attack = IDLG(steps=0, restarts=2)

    found = attack(seen, known, rng=torch.Generator().manual_seed(1))
    without = replace(attack, rescue=False)(seen, known, rng=torch.Generator().manual_seed(1))

    assert found.inputs is not None
    assert without.inputs is not None
    assert float((found.inputs - blurred).square().mean()) < 1e-4
    assert float((without.inputs - blurred).square().mean()) > 1e-3
