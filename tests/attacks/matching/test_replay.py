"""The replay of several local steps, against what clients really send."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional

from attacks.matching.differentiable import check_matchable
from attacks.matching.objectives import squared_distance
from attacks.matching.replay import plan_of, replay, step_shares
from attacks.matching.victim import Victim, rebuild
from attacks.matching.victim_labels import labels_of
from attacks.observation import AttackFailed, Kind, Knowledge, LocalRecipe, Observation
from clients.local_training import batches, local_update
from fedsim.config import TrainingConfig

Overheard = tuple[Observation, Knowledge, Tensor, Tensor]


def network(norm: bool = False) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layers: list[nn.Module] = [nn.Conv2d(1, 3, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(12, 3)]
        return nn.Sequential(*([*layers[:1], nn.BatchNorm2d(3), *layers[1:]] if norm else layers))


def hear(
    settings: Mapping[str, object], *, num_examples: int = 5, norm: bool = False, mu: float = 0.0
) -> Overheard:
    """What a client sends, in double precision, and its data in the order it used them."""
    rng = torch.Generator().manual_seed(1)
    inputs = torch.rand(num_examples, 1, 4, 4, generator=rng, dtype=torch.float64)
    labels = torch.arange(num_examples) % 3
    training = TrainingConfig.model_validate(
        {"algorithm": "fedavg", "returns": "delta", **settings}
    )
    model = network(norm).double()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    sent = local_update(
        model,
        functional.cross_entropy,
        inputs,
        labels,
        training,
        proximal_mu=mu,
        seed=0,
        server_round=1,
        client=2,
    )
    steps = batches(num_examples, training, seed=0, server_round=1, client=2)
    first_epoch = list(steps)[: -(-num_examples // training.batch_size)]
    order = torch.cat(first_epoch)
    recipe = LocalRecipe(
        num_steps=training.num_local_steps(num_examples),
        learning_rate=training.learning_rate,
        momentum=training.momentum,
        num_epochs=training.local_epochs,
        batch_size=training.batch_size,
        max_steps=training.max_local_steps,
        proximal_mu=mu,
    )
    seen = Observation(
        round=1,
        sender="client-2",
        receiver="server",
        kind=Kind(training.update_kind),
        update={name: sent.tensors[name] for name in weights},
        weights=weights,
        num_examples=len(sent.used),
    )
    known = Knowledge(
        model=network(norm), input_shape=(1, 4, 4), batch_size=len(sent.used), recipe=recipe
    )
    return seen, known, inputs[order], labels[order]


@pytest.mark.parametrize("functional_form", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 2},  # three steps, the last of one example
        {"batch_size": 2, "max_local_steps": 2},  # four of five examples
        {"batch_size": 2, "returns": "weights"},
        {"batch_size": 5, "local_epochs": 3},  # full batches: their order does not matter
    ],
)
def test_the_replay_of_the_true_data_is_what_the_client_sends(
    settings: dict[str, object], momentum: float, functional_form: bool
) -> None:
    seen, known, inputs, labels = hear(settings | {"momentum": momentum, "learning_rate": 0.3})

    victim = rebuild(seen, known, dtype=torch.float64)
    found = victim.functional_gradient if functional_form else victim.gradient

    for name, tensor in found(inputs, labels).items():
        torch.testing.assert_close(tensor, victim.target[name], rtol=1e-9, atol=1e-12)


def test_the_pull_of_fedprox_is_replayed() -> None:
    seen, known, inputs, labels = hear({"batch_size": 2, "learning_rate": 0.3}, mu=0.7)
    assert known.recipe is not None
    without = replace(known, recipe=replace(known.recipe, proximal_mu=0.0))

    victim, plain = (rebuild(seen, k, dtype=torch.float64) for k in (known, without))

    def missed(victim: Victim) -> float:
        return float(squared_distance(victim.gradient(inputs, labels), victim.target).detach())

    assert missed(victim) < 1e-20
    assert missed(plain) > 1e-4


@pytest.mark.parametrize("functional_form", [False, True])
def test_batch_normalisation_takes_the_statistics_of_every_local_batch(
    functional_form: bool,
) -> None:
    seen, known, inputs, labels = hear(
        {"batch_size": 3, "learning_rate": 0.3}, num_examples=6, norm=True
    )

    victim = rebuild(seen, known, dtype=torch.float64)
    found = victim.functional_gradient if functional_form else victim.gradient

    for name, tensor in found(inputs, labels).items():
        torch.testing.assert_close(tensor, victim.target[name], rtol=1e-9, atol=1e-12)


def test_one_step_gives_the_bits_of_a_gradient() -> None:
    seen, known, inputs, labels = hear({"batch_size": 5, "learning_rate": 0.3})
    gradient = rebuild(seen, known, dtype=torch.float64).gradient(inputs, labels)
    as_gradient = replace(seen, kind=Kind.GRADIENT, update=gradient)

    victim = rebuild(as_gradient, known, dtype=torch.float64)

    assert victim.plan is None
    assert all(torch.equal(t, gradient[n]) for n, t in victim.gradient(inputs, labels).items())


def test_a_gradient_stays_one_gradient_whatever_the_recipe_says() -> None:
    seen, known, *_ = hear({"batch_size": 2})

    assert rebuild(replace(seen, kind=Kind.GRADIENT), known, dtype=torch.float64).num_steps == 1
    assert rebuild(seen, known, dtype=torch.float64).num_steps == 3


def test_the_derivative_of_the_replay_is_that_of_a_difference_quotient() -> None:
    seen, known, inputs, labels = hear({"batch_size": 2, "learning_rate": 0.3, "momentum": 0.5})
    victim = rebuild(seen, known, dtype=torch.float64)
    middle, direction = torch.full_like(inputs, 0.5), torch.ones_like(inputs).cumsum(-1)

    def distance(step: float) -> Tensor:
        moved = (middle + step * direction).requires_grad_()
        return squared_distance(victim.gradient(moved, labels), victim.target)

    start = middle.clone().requires_grad_()
    (slope,) = torch.autograd.grad(
        squared_distance(victim.gradient(start, labels), victim.target), start
    )
    quotient = (distance(1e-5) - distance(-1e-5)) / 2e-5

    torch.testing.assert_close((slope * direction).sum(), quotient.detach(), rtol=1e-6, atol=1e-9)


def test_several_guesses_are_replayed_together() -> None:
    seen, known, inputs, labels = hear({"batch_size": 2, "learning_rate": 0.3})
    victim = rebuild(seen, known, dtype=torch.float64)
    guesses = torch.stack((inputs, 1 - inputs))

    together = vmap(lambda guess: victim.functional_gradient(guess, labels))(guesses)

    for row, guess in enumerate(guesses):
        for name, tensor in victim.gradient(guess, labels).items():
            torch.testing.assert_close(together[name][row], tensor)


def test_layers_that_were_not_heard_are_trained_in_the_replay() -> None:
    seen, known, inputs, labels = hear({"batch_size": 2, "learning_rate": 0.9})
    head = {name: seen.update[name] for name in ("3.weight", "3.bias")}

    victim = rebuild(replace(seen, update=head), known, dtype=torch.float64)

    found = victim.gradient(inputs, labels)
    assert found.keys() == head.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, victim.target[name], rtol=1e-9, atol=1e-12)


def test_layers_that_the_architecture_has_frozen_are_not_trained() -> None:
    seen, known, inputs, labels = hear({"batch_size": 2, "learning_rate": 0.3})
    frozen = network()
    frozen[0].requires_grad_(False)
    weights = {name: w.clone() for name, w in (seen.weights or {}).items()}
    rate, head = 0.3, ("3.weight", "3.bias")

    def gradient_at(now: dict[str, Tensor], some: Tensor, their: Tensor) -> dict[str, Tensor]:
        leaves = {name: t.detach().requires_grad_() for name, t in now.items()}
        logits = torch.func.functional_call(frozen.double(), {**weights, **leaves}, (some,))
        found = torch.autograd.grad(functional.cross_entropy(logits, their), list(leaves.values()))
        return dict(zip(leaves, found, strict=True))

    assert known.recipe is not None
    start = {name: weights[name] for name in head}
    moved = replay(gradient_at, start, inputs, labels, plan_of(known.recipe, 5), known.recipe)
    delta = {name: torch.zeros_like(t) for name, t in weights.items()} | {
        name: -rate * t for name, t in moved.items()
    }
    victim = rebuild(replace(seen, update=delta), replace(known, model=frozen), dtype=torch.float64)

    assert set(victim.trained) == set(head) == set(victim.target)
    for name, tensor in victim.gradient(inputs, labels).items():
        torch.testing.assert_close(tensor, moved[name], rtol=1e-9, atol=1e-12)


def test_a_chunk_of_a_gradient_is_matched_where_it_was_heard() -> None:
    seen, known, inputs, labels = hear({"batch_size": 5})
    gradient = rebuild(seen, known, dtype=torch.float64).target
    half = torch.zeros_like(gradient["3.weight"], dtype=torch.bool)
    half.view(-1)[:10] = True
    chunk = replace(
        seen,
        kind=Kind.CHUNK,
        update={name: gradient[name] for name in ("3.weight", "3.bias")},
        visible={"3.weight": half},
    )

    victim = rebuild(chunk, replace(known, recipe=None), dtype=torch.float64)

    found = victim.gradient(inputs, labels)
    assert found["3.weight"][~half].eq(0).all()
    assert float(squared_distance(found, victim.target).detach()) < 1e-20


def test_dropout_is_refused_for_several_steps_too() -> None:
    seen, known, *_ = hear({"batch_size": 2})
    model = nn.Sequential(*network(), nn.Dropout(0.5))

    with pytest.raises(AttackFailed, match="draws random numbers"):
        rebuild(seen, replace(known, model=model), dtype=torch.float64)


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        (LocalRecipe(num_steps=4, learning_rate=0.1), "not how many examples each step takes"),
        (LocalRecipe(num_steps=250, learning_rate=0.1, num_epochs=250), "choose .* 'surrogate'"),
    ],
)
def test_what_cannot_be_replayed_is_refused_before_anything_is_heard(
    recipe: LocalRecipe, reason: str
) -> None:
    with pytest.raises(AttackFailed, match=reason):
        check_matchable(Knowledge(model=network(), input_shape=(1, 4, 4), recipe=recipe))


def test_several_steps_pass_the_check() -> None:
    recipe = LocalRecipe(num_steps=40, learning_rate=0.1, num_epochs=2, batch_size=4)

    check_matchable(Knowledge(model=network(), input_shape=(1, 4, 4), recipe=recipe))


def test_plans_follow_epochs_batches_and_the_limit() -> None:
    recipe = LocalRecipe(num_steps=9, learning_rate=0.1, num_epochs=2, batch_size=2)

    assert plan_of(recipe, 3) == ((0, 2), (2, 3), (0, 2), (2, 3))
    assert plan_of(replace(recipe, max_steps=3), 3) == ((0, 2), (2, 3), (0, 2))
    assert plan_of(LocalRecipe(), 3) == ((0, 3),)


def test_momentum_repeats_early_gradients() -> None:
    recipe = LocalRecipe(num_steps=3, learning_rate=0.1, momentum=0.5, batch_size=1)

    assert step_shares(recipe, 3) == [1.75, 1.5, 1.0]
    assert step_shares(LocalRecipe(), 2) == [1.0, 1.0]


@pytest.mark.parametrize("bias", [True, False])
def test_labels_are_counted_over_several_steps_of_small_rate(bias: bool) -> None:
    seen, known, _, labels = hear(
        {"batch_size": 2, "local_epochs": 2, "learning_rate": 1e-3}, num_examples=6
    )
    if not bias:
        seen = replace(
            seen, update={name: t for name, t in seen.update.items() if name != "3.bias"}
        )

    found = labels_of(rebuild(seen, known, dtype=torch.float64), known)

    assert sorted(found.tolist()) == sorted(labels.tolist())


def test_labels_are_dealt_out_among_batches() -> None:
    seen, known, _, labels = hear({"batch_size": 2, "learning_rate": 1e-3}, num_examples=6)
    assert sorted(labels.tolist()) == [0, 0, 1, 1, 2, 2]

    found = labels_of(rebuild(seen, known, dtype=torch.float64), known)

    assert all(len(set(found[start : start + 2].tolist())) == 2 for start in (0, 2, 4))
