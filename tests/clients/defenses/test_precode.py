"""PRECODE: the bottleneck, its penalty, what draws, and what is left to who knows it."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.closed_form import ClosedForm
from attacks.defense import read_defenses
from attacks.idlg import IDLG
from attacks.labels import LabelRule
from attacks.network import with_weights
from attacks.observation import AttackFailed, Kind, Knowledge, LocalRecipe
from clients.defenses.precode import Precode, VariationalBottleneck
from fedsim.data.load import load_data
from fedsim.defenses import with_penalties
from fedsim.errors import ConfigError
from fedsim.models.build import build_model

from .hearing import heard

SHAPE = (1, 8, 8)
SMALL = Precode(width=16)


def network(defense: Precode = SMALL, seed: int = 0) -> nn.Module:
    rng = torch.Generator().manual_seed(seed)
    model = build_model("dlg-lenet", SHAPE, 10, rng=rng, options={})
    torch.manual_seed(seed)
    return defense.alter(model, SHAPE, 10).train()


def gradient(model: nn.Module, inputs: Tensor, labels: Tensor, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    value = with_penalties(functional.cross_entropy, model)(model(inputs), labels)
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, torch.autograd.grad(value, list(model.parameters())), strict=True))


@pytest.fixture
def image() -> Tensor:
    return load_data("digits", root="", options={}).train_inputs[3:4]


LABEL = torch.tensor([3])


def known_of(model: nn.Module, batch_size: int = 1) -> Knowledge:
    return Knowledge(
        model=model,
        input_shape=SHAPE,
        num_classes=10,
        batch_size=batch_size,
        defenses=(SMALL,),
    )


def test_the_code_is_drawn_in_training_mode_and_is_its_mean_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    block = VariationalBottleneck(5, width=3, beta=0.0)
    features = torch.rand(20_000, 5)[:1].expand(20_000, 5)

    drawn, mean = block(features), block.eval()(features)

    encoded = block.encoder(features[:1])
    torch.testing.assert_close(mean, block.decoder(encoded[:, :3]).expand_as(mean))
    assert torch.equal(mean[0], mean[1])
    deviation = functional.softplus(encoded[0, 3:])
    covariance = block.decoder.weight @ deviation.square().diag() @ block.decoder.weight.T
    torch.testing.assert_close(drawn.mean(dim=0), mean[0], atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), covariance, atol=0.02, rtol=0)


def test_the_penalty_is_the_divergence_from_a_standard_normal_and_is_taken_once() -> None:
    torch.manual_seed(0)
    block = VariationalBottleneck(5, width=3, beta=0.5)
    features = torch.rand(4, 5)
    block(features)

    penalty = block.take_penalty()

    mean, spread = block.encoder(features).chunk(2, dim=1)
    code = torch.distributions.Normal(mean, functional.softplus(spread))
    standard = torch.distributions.Normal(torch.zeros(3), torch.ones(3))
    expected = torch.distributions.kl_divergence(code, standard).sum(dim=1).mean()
    assert penalty is not None
    torch.testing.assert_close(penalty, 0.5 * expected)
    assert block.take_penalty() is None
    block.eval()(features)
    assert block.take_penalty() is None


def test_a_model_that_has_just_been_run_can_be_copied(image: Tensor) -> None:
    model = network()
    model(image)
    again = copy.deepcopy(model)
    assert with_penalties(functional.cross_entropy, again)(again.eval()(image), LABEL) > 0


def test_training_follows_the_penalty_too(image: Tensor) -> None:
    plain, penalised = (
        gradient(network(Precode(width=16, beta=beta)), image, LABEL) for beta in (0.0, 1.0)
    )
    name = "linear.bottleneck.encoder.weight"
    assert not torch.allclose(plain[name], penalised[name])
    assert torch.equal(plain["linear.classifier.weight"], penalised["linear.classifier.weight"])


def test_the_classifier_is_kept_and_all_else_comes_before_it() -> None:
    rng = torch.Generator().manual_seed(0)
    plain = build_model("dlg-lenet", SHAPE, 10, rng=rng, options={})
    weights = {name: p.detach().clone() for name, p in plain.named_parameters()}
    altered = dict(network().named_parameters())
    assert torch.equal(altered["linear.classifier.weight"], weights["linear.weight"])
    assert torch.equal(altered["conv1.weight"], weights["conv1.weight"])
    assert network()(torch.rand(2, *SHAPE)).shape == (2, 10)
    whole = Precode(width=2).alter(nn.Linear(6, 3), (6,), 3)
    assert whole(torch.rand(4, 6)).shape == (4, 3)


def test_a_guess_has_no_gradient_to_be_compared_with(image: Tensor) -> None:
    model = network()
    seen = heard(model=model, update=gradient(model, image, LABEL))
    with pytest.raises(AttackFailed, match="draws random numbers in training mode"):
        IDLG()(seen, known_of(model), rng=torch.Generator())


def test_what_who_knows_it_compares_with_is_exact_for_one_example(image: Tensor) -> None:
    model = network()
    for seed in range(3):  # whatever is drawn
        seen, known = read_defenses(
            heard(model=model, update=gradient(model, image, LABEL, seed)), known_of(model)
        )

        assert known.model is not None
        assert seen.weights is not None
        guess = with_weights(known.model, seen.weights, None).train()
        value = known.loss(guess(image), LABEL)
        parameters = dict(guess.named_parameters())
        found = torch.autograd.grad(value, [parameters[name] for name in seen.update])
        mine = dict(zip(seen.update, found, strict=True))

        assert set(parameters) - set(mine) == {
            "linear.bottleneck.decoder.weight",
            "linear.bottleneck.decoder.bias",
            "linear.classifier.weight",
        }
        for name in mine.keys() - {"linear.classifier.bias"}:  # that is of the draw, for labels
            torch.testing.assert_close(mine[name], seen.update[name])


def test_after_one_local_step_it_is_exact_as_well(image: Tensor) -> None:
    model = network()
    update = {name: -0.5 * tensor for name, tensor in gradient(model, image, LABEL).items()}
    known = replace(known_of(model), recipe=LocalRecipe(learning_rate=0.5))
    _, known = read_defenses(heard(model=model, update=update, kind=Kind.DELTA), known)
    assert known.model is not None
    (derivative,) = [b for name, b in known.model.named_buffers() if name.endswith("derivative")]
    torch.testing.assert_close(derivative, -2 * update["linear.bottleneck.encoder.bias"])
    several = replace(known_of(model), recipe=LocalRecipe(learning_rate=0.5, num_steps=2))
    _, several = read_defenses(heard(model=model, update=update, kind=Kind.DELTA), several)
    assert several.model is not None
    assert not [name for name, _ in several.model.named_buffers() if name.endswith("derivative")]


def test_of_several_examples_the_mean_is_decoded_and_nothing_is_drawn() -> None:
    model, inputs = network(), torch.rand(2, *SHAPE)
    labels = torch.tensor([1, 2])
    _, known = read_defenses(
        heard(model=model, update=gradient(model, inputs, labels)), known_of(model, 2)
    )
    assert known.model is not None
    decided = known.model.train()
    assert torch.equal(decided(inputs), decided(inputs))
    torch.testing.assert_close(decided(inputs), model.eval()(inputs))


def test_who_knows_it_gets_one_image_back(image: Tensor) -> None:
    model = network()
    seen, known = heard(model=model, update=gradient(model, image, LABEL)), known_of(model)

    through = ClosedForm()(seen, known, rng=torch.Generator().manual_seed(0))  # plain
    matched = IDLG(steps=150, restarts=1)(
        *read_defenses(seen, known), rng=torch.Generator().manual_seed(0)
    )

    for found in (through, matched):
        assert found.inputs is not None
        error = (found.inputs - image).square().mean()
        assert error < 10**-2.5  # 25 dB; a flat image has about 11
    assert matched.labels is not None
    assert matched.labels.tolist() == [3]


def test_labels_show_through_the_draw(image: Tensor) -> None:
    right = 0
    for label in range(10):
        model = network(seed=label)
        seen = heard(model=model, update=gradient(model, image, torch.tensor([label]), seed=label))
        labels = LabelRule()(seen, known_of(model), rng=torch.Generator()).labels
        right += labels is not None and labels.tolist() == [label]
    assert right == 10


def test_what_has_no_classifier_or_code_is_refused() -> None:
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        Precode(width=0)
    with pytest.raises(ValueError, match="beta must be 0 or more, got -1"):
        Precode(beta=-1)
    with pytest.raises(ConfigError, match="no linear layer gives this model's logits"):
        Precode().alter(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), (4,), 3)
