"""DP-SGD, against Opacus' own optimizer and by its sensitivity."""

import warnings
from dataclasses import replace

import pytest
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.nn import functional

from attacks.observation import Kind, Knowledge, LocalRecipe, Observation
from clients.defenses import dp_sgd
from clients.defenses.dp_sgd import DPSGD
from fedsim.config import Experiment, parse_experiment
from fedsim.errors import ConfigError
from fedsim.models.build import build_model
from fedsim.privacy import Share, epsilon_of

SHAPE = (1, 8, 8)


def model_of(name: str, **options: object) -> nn.Module:
    rng = torch.Generator().manual_seed(1)
    return build_model(name, SHAPE, 10, rng=rng, options=options).train()


def batch(size: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(2)
    inputs, labels = torch.rand(6, *SHAPE, generator=rng), torch.randint(10, (6,), generator=rng)
    return inputs[:size], labels[:size]


def gradient(
    defense: DPSGD, model: nn.Module, size: int = 6, *, batch_size: int = 6, seed: int = 0
) -> dict[str, Tensor]:
    inputs, labels = batch(size)
    rng = torch.Generator().manual_seed(seed)
    found, _ = defense.gradient(
        model, functional.cross_entropy, inputs, labels, batch_size=batch_size, rng=rng
    )
    return found


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


@pytest.mark.parametrize("name", ["mlp", "dlg-lenet", "vit"])
@pytest.mark.parametrize("max_grad_norm", [0.5, 100.0])
def test_a_step_is_that_of_opacus_own_optimizer(name: str, max_grad_norm: float) -> None:
    model = model_of(name)
    found = gradient(DPSGD(max_grad_norm=max_grad_norm, noise_multiplier=0.0), model, batch_size=8)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of hooks, by PyTorch
        wrapped = GradSampleModule(model)
        optimizer = DPOptimizer(
            torch.optim.SGD(wrapped.parameters(), lr=1.0),
            noise_multiplier=0.0,
            max_grad_norm=max_grad_norm,
            expected_batch_size=8,
        )
        inputs, labels = batch(6)
        functional.cross_entropy(wrapped(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.pre_step()
    for key, parameter in wrapped.named_parameters():
        theirs = parameter.grad
        torch.testing.assert_close(found[key.removeprefix("_module.")], theirs, msg=key)


def test_one_example_moves_a_step_by_no_more_than_its_clip() -> None:
    model = model_of("dlg-lenet")
    defense = DPSGD(max_grad_norm=0.3, noise_multiplier=0.0)

    with_it, without = (flat(gradient(defense, model, size, batch_size=4)) for size in (5, 4))

    assert 0.29 / 4 < float((with_it - without).norm()) <= 0.3 / 4 * (1 + 1e-5)


def test_clipping_the_mean_would_be_another_thing() -> None:
    model = model_of("mlp", hidden=[8])
    inputs, labels = batch(6)
    loss = functional.cross_entropy(model(inputs), labels)
    mean = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    found = flat(gradient(DPSGD(max_grad_norm=0.5, noise_multiplier=0.0), model))

    assert float(functional.cosine_similarity(found, mean, dim=0)) < 0.999


def test_without_clipping_and_noise_it_is_the_mean_gradient() -> None:
    model = model_of("dlg-lenet")
    inputs, labels = batch(6)
    loss = functional.cross_entropy(model(inputs), labels)
    plain = torch.autograd.grad(loss, list(model.parameters()))

    found = gradient(DPSGD(max_grad_norm=1e6, noise_multiplier=0.0), model)

    torch.testing.assert_close(list(found.values()), list(plain))


@pytest.mark.parametrize("size", [0, 6])
def test_noise_has_the_deviation_that_the_account_is_for(size: int) -> None:
    model = model_of("mlp", hidden=[400])
    noisy = gradient(DPSGD(max_grad_norm=2.0, noise_multiplier=1.5), model, size, batch_size=4)
    bare = gradient(DPSGD(max_grad_norm=2.0, noise_multiplier=0.0), model, size, batch_size=4)

    noise = flat(noisy) - flat(bare)

    assert float(noise.std()) == pytest.approx(1.5 * 2.0 / 4, rel=0.02)
    assert size or not flat(bare).any()  # an empty batch is nothing but noise


def test_equal_streams_give_equal_steps_and_others_do_not() -> None:
    model = model_of("mlp", hidden=[8])
    one, again, other = (flat(gradient(DPSGD(), model, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_batches_too_large_for_memory_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("mlp", hidden=[8])
    whole = gradient(DPSGD(), model)
    monkeypatch.setattr(dp_sgd, "_MOST_ENTRIES", 2 * len(flat(whole)))

    torch.testing.assert_close(gradient(DPSGD(), model), whole)


def test_frozen_layers_and_dropout_are_trained_as_ever() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Dropout(0.5), nn.Linear(9, 10))
    model[1].requires_grad_(False)

    assert set(gradient(DPSGD(), model)) == {"3.weight", "3.bias"}


def test_poisson_batches_hold_each_example_with_the_rate_that_is_accounted() -> None:
    defense = DPSGD()
    drawn = [defense.draw(20, 5, torch.Generator().manual_seed(seed)) for seed in range(2_000)]

    counts = torch.zeros(20)
    sizes = []
    for one in drawn:
        assert one is not None
        counts[one] += 1
        sizes.append(float(len(one)))
    # 0.25 of 2000 draws; the deviation of a count is 19, that of the variance of sizes 0.12
    assert torch.all((counts - 500).abs() < 100)
    assert torch.tensor(sizes).var().item() == pytest.approx(20 * 0.25 * 0.75, abs=0.6)
    share = Share(num_examples=20, batch_size=5, num_steps=3, num_epochs=1, num_rounds=4)
    assert defense.mechanism(share).sample_rate == 0.25
    assert defense.mechanism(share).num_steps == 12


def test_fixed_batches_are_accounted_without_a_gain_from_sampling() -> None:
    defense = DPSGD(sampling="fixed")
    share = Share(num_examples=20, batch_size=5, num_steps=8, num_epochs=2, num_rounds=4)

    assert defense.draw(20, 5, torch.Generator()) is None
    assert defense.mechanism(share).sample_rate == 1.0
    assert defense.mechanism(share).num_steps == 8  # two passes a round: two steps per example


def test_a_client_adds_the_noise_that_its_own_share_asks_for() -> None:
    defense = DPSGD(epsilon=2.0, sampling="fixed")
    often, seldom = (
        Share(num_examples=16, batch_size=8, num_steps=1, num_epochs=1, num_rounds=rounds)
        for rounds in (40, 10)
    )

    settled = {share: defense.tailored(share) for share in (often, seldom)}

    for share, one in settled.items():
        assert one.epsilon is None
        assert 1.97 < epsilon_of(one.mechanism(share), 1e-5) <= 2.0
    noise = [one.noise_multiplier or 0.0 for one in settled.values()]
    assert noise[0] == pytest.approx(2 * noise[1], rel=0.02)  # variances add up over rounds


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return parse_experiment('name = "x"\n[server]\nevaluate_clients = false')


def test_batch_normalisation_is_refused(experiment: Experiment) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    with pytest.raises(ConfigError, match=r"dp-sgd cannot train model .*BatchNorm"):
        DPSGD().check(experiment, model)


def test_what_would_tell_of_data_besides_is_refused(experiment: Experiment) -> None:
    def changed(text: str) -> Experiment:
        return parse_experiment(f'name = "x"\n[server]\n{text}')

    DPSGD().check(experiment, model_of("mlp"))
    with pytest.raises(ConfigError, match="evaluate_clients = false"):
        DPSGD().check(changed("evaluate_clients = true"), model_of("mlp"))
    with pytest.raises(ConfigError, match="qfedavg"):
        DPSGD().check(changed('strategy = "qfedavg"'), model_of("mlp"))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_grad_norm": 0.0}, "max_grad_norm"), ({"noise_multiplier": 1.0, "epsilon": 1.0}, "not")],
)
def test_settings_without_meaning_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DPSGD(**options)  # type: ignore[arg-type]


# who knows it


def heard(update: dict[str, Tensor], kind: Kind = Kind.GRADIENT) -> Observation:
    return Observation(
        round=1, sender="client-1", receiver="server", kind=kind, update=update, num_examples=6
    )


def test_who_knows_it_knows_how_exact_a_gradient_is() -> None:
    known = Knowledge(batch_size=6, recipe=LocalRecipe(batch_size=6))
    _, told = DPSGD(max_grad_norm=3.0, noise_multiplier=2.0).read(
        heard({"w": torch.ones(3)}), known
    )

    assert told.noise is not None
    assert told.noise.deviation == {"w": pytest.approx(1.0)}  # z C / B
    assert not told.length_known


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_who_knows_it_knows_how_exact_weights_after_local_steps_are(momentum: float) -> None:
    recipe = LocalRecipe(
        num_steps=5, learning_rate=0.1, momentum=momentum, batch_size=4, num_epochs=1
    )
    _, told = DPSGD(max_grad_norm=1.0, noise_multiplier=2.0).read(
        heard({"w": torch.zeros(2)}, Kind.DELTA), Knowledge(recipe=recipe, batch_size=20)
    )

    weight = nn.Parameter(torch.zeros(20_000))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=momentum)
    rng = torch.Generator().manual_seed(0)
    for _ in range(5):
        weight.grad = 2.0 / 4 * torch.randn(weight.shape, generator=rng)
        optimizer.step()
    assert told.noise is not None
    assert told.noise.deviation["w"] == pytest.approx(float(weight.detach().std()), rel=0.03)


def test_a_single_gradient_that_was_short_is_as_it_was() -> None:
    known = Knowledge(batch_size=1, recipe=LocalRecipe(batch_size=1))
    bare = DPSGD(max_grad_norm=1.0, noise_multiplier=0.0)

    _, short = bare.read(heard({"w": torch.tensor([0.5])}), known)
    _, long = bare.read(heard({"w": torch.tensor([1.0])}), known)

    assert short.length_known
    assert not long.length_known


@pytest.mark.parametrize("told", [DPSGD(), DPSGD(epsilon=3.0)])
def test_its_noise_is_read_off_the_classifier(told: DPSGD) -> None:
    model = model_of("mlp", hidden=[256])
    used = DPSGD(max_grad_norm=0.5, noise_multiplier=0.2)
    seen = heard(gradient(used, model))
    known = Knowledge(
        model=model,
        input_shape=SHAPE,
        num_classes=10,
        batch_size=6,
        recipe=LocalRecipe(batch_size=6),
    )

    reader = replace(told, max_grad_norm=0.5)
    _, after = reader.estimated(seen, known).read(seen, known)

    assert after.noise is not None
    assert after.noise.deviation["linear.weight"] == pytest.approx(0.2 * 0.5 / 6, rel=0.1)
    if told.epsilon is not None:  # what it comes to depends on the client
        assert reader.read(seen, known)[1].noise == after.noise
