"""Soteria: which features it prunes, what that stops, and what the zeros give away."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.defense import Untold, read_defenses
from attacks.idlg import IDLG
from attacks.observation import Knowledge, Observation
from clients.defenses.soteria import Soteria, leakage
from fedsim.config import parse_experiment
from fedsim.data.load import load_data
from fedsim.errors import ConfigError
from fedsim.models.build import build_model

from .conftest import MakeSituation
from .hearing import heard


def gradient_of_one(model: nn.Module, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    loss = functional.cross_entropy(model(inputs), labels)
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 300), nn.Tanh(), nn.Linear(300, 4))


def test_the_score_of_a_feature_is_its_size_over_its_slope() -> None:
    first = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    model = nn.Sequential(first, nn.Linear(2, 2))
    inputs = torch.tensor([[1.0, 1.0], [2.0, 0.0]])

    found = leakage(model, "1", inputs)

    # features 7 and 2, then 6 and 0; slopes 5 and 2 in both
    torch.testing.assert_close(found, torch.tensor([(7 / 5 + 6 / 5) / 2, (2 / 2 + 0) / 2]))


@pytest.mark.parametrize("num_examples", [1, 2, 100, 300])
def test_the_scores_agree_with_one_backward_pass_per_feature(num_examples: int) -> None:
    model, inputs = network(), torch.rand(num_examples, 3, 2, 2)

    found = leakage(model, "3", inputs)

    inputs.requires_grad_()
    features = model[:3](inputs)
    assert features.shape == (num_examples, 300)  # more than are done at once
    for index in (0, 255, 256, 299):
        (slopes,) = torch.autograd.grad(features[:, index].sum(), inputs, retain_graph=True)
        expected = (features[:, index].abs() / slopes.flatten(1).norm(dim=1)).mean()
        torch.testing.assert_close(found[index], expected.detach())


def test_the_most_telling_columns_of_one_layer_are_zero_and_nothing_else_is_changed(
    situation: MakeSituation,
) -> None:
    model, inputs, labels = network(), torch.rand(1, 3, 2, 2), torch.tensor([1])
    update = gradient_of_one(model, inputs, labels)

    sent = Soteria(share=0.25).apply(update, situation(model=model, inputs=inputs, labels=labels))

    gone = (sent["3.weight"] == 0).all(dim=0)
    scores = leakage(model, "3", inputs)
    assert int(gone.sum()) == 75
    assert scores[gone].min() >= scores[~gone].max()
    assert torch.equal(sent["3.weight"][:, ~gone], update["3.weight"][:, ~gone])
    assert all(torch.equal(sent[name], update[name]) for name in update if name != "3.weight")


def test_after_local_steps_the_features_are_those_of_the_weights_received(
    situation: MakeSituation,
) -> None:
    model, inputs = network(), torch.rand(3, 3, 2, 2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    expected = leakage(model, "3", inputs).topk(180).indices
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))  # wherever training went

    sent = Soteria().apply(
        {name: torch.ones_like(tensor) for name, tensor in before.items()},
        situation(model=model, before=before, inputs=inputs, kind="delta"),
    )

    gone = (sent["3.weight"] == 0).all(dim=0).nonzero().flatten()
    assert sorted(expected.tolist()) == gone.tolist()


def test_a_named_layer_is_defended_in_place_of_the_classifier(situation: MakeSituation) -> None:
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    inputs = torch.rand(1, 2)
    update = gradient_of_one(model, inputs, torch.tensor([1]))

    sent = Soteria(share=0.5, layer="2").apply(update, situation(model=model, inputs=inputs))

    assert int((sent["2.weight"] == 0).all(dim=0).sum()) == 4
    assert torch.equal(sent["4.weight"], update["4.weight"])


@pytest.mark.parametrize("told", [True, False])
def test_who_knows_it_forgets_the_columns_that_were_pruned(
    told: bool, situation: MakeSituation
) -> None:
    model, inputs, labels = network(), torch.rand(1, 3, 2, 2), torch.tensor([1])
    defense = Soteria(share=0.1, layer="3")
    update = gradient_of_one(model, inputs, labels)
    sent = defense.apply(update, situation(model=model, inputs=inputs, labels=labels))
    known = Knowledge(model=model, input_shape=(3, 2, 2), defenses=(defense,))
    if not told:
        known = replace(known, defenses=(Untold(defense=Soteria()),))

    seen, _ = read_defenses(heard(sent, model=model), known)

    assert seen.visible is not None
    assert set(seen.visible) == {"3.weight"}
    assert torch.equal(seen.visible["3.weight"], sent["3.weight"] != 0)


def test_of_a_defense_known_by_name_layer_and_share_are_estimated(
    situation: MakeSituation,
) -> None:
    model = nn.Sequential(nn.Linear(2, 10), nn.Tanh(), nn.Linear(10, 10), nn.Linear(10, 2))
    inputs = torch.rand(1, 2)
    update = gradient_of_one(model, inputs, torch.tensor([1]))
    sent = Soteria(share=0.3, layer="2").apply(update, situation(model=model, inputs=inputs))

    found = Soteria().estimated(heard(sent, model=model), Knowledge(model=model, input_shape=(2,)))

    assert found.layer == "2"
    assert found.share == pytest.approx(0.3)


@pytest.mark.slow
def test_it_stops_a_matching_attack_that_does_not_know_it_and_no_other(
    situation: MakeSituation,
) -> None:
    data = load_data("photos", root="", options={})
    rng = torch.Generator().manual_seed(100)
    model = build_model("dlg-lenet", data.input_shape, 10, rng=rng, options={})
    inputs, labels = data.train_inputs[:1], data.train_labels[:1]
    defense = Soteria()
    sent = defense.apply(
        gradient_of_one(model, inputs, labels),
        situation(model=model, inputs=inputs, labels=labels),
    )
    known = Knowledge(
        model=model, input_shape=data.input_shape, num_classes=10, batch_size=1, defenses=(defense,)
    )
    seen = heard(sent, model=model)

    def psnr_db(seen: Observation, known: Knowledge) -> float:
        attack = IDLG(steps=60, restarts=1)
        found = attack(seen, known, rng=torch.Generator().manual_seed(1)).inputs
        assert found is not None
        return float(-10 * torch.log10((found.double() - inputs).square().mean()))

    assert psnr_db(seen, known) < 15  # dB; 9 measured, and 12 is the data mean
    assert psnr_db(*read_defenses(seen, known)) > 25  # dB; the undefended gradient gives about 30


def test_what_it_cannot_defend_is_refused() -> None:
    experiment = parse_experiment('name = "x"')
    with pytest.raises(ValueError, match="share must be above 0 and at most 1, got 0"):
        Soteria(share=0)
    with pytest.raises(ConfigError, match=r"needs a linear layer 'fc', and the model's are: 1, 3"):
        Soteria(layer="fc").check(experiment, network())
    with pytest.raises(ConfigError, match="needs a linear layer, and the model's are: none"):
        Soteria().check(experiment, nn.Conv2d(1, 1, 1))
    Soteria().check(experiment, network())
    with pytest.raises(ConfigError, match=r"layer '0' receives \(5, 2\) per example"):
        leakage(nn.Sequential(nn.Linear(2, 2)), "0", torch.rand(1, 5, 2))
