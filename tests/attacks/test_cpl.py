from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from attacks.cpl import CPL
from attacks.observation import Attack, ManyAtOnce, Reconstruction

from .overhearing import overhear


def test_it_reads_the_label_and_finds_the_image(
    model: nn.Module, blurred: Tensor, rng: torch.Generator
) -> None:
    found = CPL()(*overhear(model, blurred, [4]), rng=rng)

    assert isinstance(CPL(), Attack)
    assert isinstance(CPL(), ManyAtOnce)
    assert found.labels is not None
    assert found.labels.tolist() == [4]
    assert found.inputs is not None
    assert float((found.inputs - blurred).square().mean()) < 1e-3  # a random guess: 0.1


def test_it_starts_from_a_tiled_patch(
    model: nn.Module, blurred: Tensor, rng: torch.Generator
) -> None:
    found = CPL(steps=0)(*overhear(model, blurred, [4]), rng=rng)

    assert found.inputs is not None
    torch.testing.assert_close(found.inputs, found.inputs[..., :2, :2].tile(1, 1, 4, 4))


def test_the_label_term_draws_the_guess_towards_its_label(
    model: nn.Module, blurred: Tensor
) -> None:
    seen, known = overhear(model, blurred, [4])
    chances = []
    for weight in (0.0, 1e6):
        rng = torch.Generator().manual_seed(1)
        found = CPL(steps=30, label_weight=weight)(seen, known, rng=rng)
        assert found.inputs is not None
        with torch.no_grad():
            chances.append(float(model(found.inputs).softmax(dim=1)[0, 4]))

    assert chances[1] > chances[0]


def test_victims_of_different_rounds_each_see_their_own_label_term(
    model: nn.Module, blurred: Tensor
) -> None:
    cases = []
    for place in range(2):
        for parameter in model.parameters():
            parameter.data += 0.01 * place
        cases.append(overhear(model, blurred, [4 + place]))
    attack = CPL(steps=10, label_weight=1.0)

    found = attack.many(
        [seen for seen, _ in cases],
        [known for _, known in cases],
        rngs=[torch.Generator().manual_seed(place) for place in range(2)],
    )

    for place, (one, case) in enumerate(zip(found, cases, strict=True)):
        alone = attack(*case, rng=torch.Generator().manual_seed(place))
        assert isinstance(one, Reconstruction)
        assert one.inputs is not None
        assert alone.inputs is not None
        torch.testing.assert_close(one.inputs, alone.inputs, atol=1e-3, rtol=0)


def test_half_of_the_coordinates_are_enough(
    model: nn.Module, blurred: Tensor, rng: torch.Generator
) -> None:
    seen, known = overhear(model, blurred, [4])
    visible = {
        name: torch.rand(tensor.shape, generator=rng) < 0.5 if "weight" in name else tensor > -9
        for name, tensor in seen.update.items()
    }

    found = CPL(natural=True, restarts=4, label_weight=0.0)(
        replace(seen, visible=visible), known, rng=rng
    )

    assert found.inputs is not None
    assert float((found.inputs - blurred).square().mean()) < 1e-3


def test_settings_without_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match="label_weight must be at least 0"):
        CPL(label_weight=-1.0)
