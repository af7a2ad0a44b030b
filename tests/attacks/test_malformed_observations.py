"""Whatever was heard, an attack says why it fails: it does not fall over."""

import functools
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks import ATTACKS
from attacks.observation import (
    ActiveAttack,
    Attack,
    AttackFailed,
    Budget,
    Kind,
    Knowledge,
    LocalRecipe,
    Observation,
)
from fedsim.catalog import load

SHAPE, NUM_CLASSES = (1, 4, 4), 5
Heard = tuple[Observation, Knowledge]
Break = Callable[[Observation, Knowledge], Heard]


def attack_called(name: str) -> Attack:
    """Return the attack with few steps, so that one that goes on by mistake ends soon."""
    factory: Any = load(ATTACKS[name])
    few = {"steps": 2, "prior_steps": 2, "probe_steps": 2, "trial_steps": 2, "restarts": 1}
    own = {one.name for one in fields(factory)}
    attack: Attack = factory(**{key: value for key, value in few.items() if key in own})
    return attack


def perceptron() -> nn.Module:
    """Two layers: linear inversion, SPEAR and the traps want the first of them to be linear."""
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, NUM_CLASSES))


def convolutional() -> nn.Module:
    """A smooth chain, for attacks that match or solve."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.Sigmoid(), nn.Flatten(), nn.Linear(64, NUM_CLASSES)
    )


MODELS = {"perceptron": perceptron, "convolutional": convolutional}
TRAPS_IN_THE_FIRST_LAYER = {"trap-weights", "soliton"}
CASES = [
    (name, model)
    for name in ATTACKS
    for model in MODELS
    if model == "perceptron" or name not in TRAPS_IN_THE_FIRST_LAYER
]


@functools.cache
def overheard(name: str, model_name: str) -> Heard:
    """Return a sound observation of two examples, of the weights that the attack sent."""
    attack = attack_called(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[model_name]()
        images, sample = torch.rand(2, *SHAPE), torch.rand(4, *SHAPE)
        if isinstance(attack, ActiveAttack):
            model = attack.implant(model, SHAPE, NUM_CLASSES)
    labels = torch.tensor([1, 3])
    known = Knowledge(
        model=model,
        input_shape=SHAPE,
        num_classes=NUM_CLASSES,
        batch_size=2,
        labels=labels,
        recipe=LocalRecipe(),
        public_sample=sample,
    )
    named = dict(model.named_parameters())
    if isinstance(attack, ActiveAttack):
        sent = attack.tamper(
            {name: p.detach().clone() for name, p in named.items()},
            known,
            receiver="client-0",
            target="client-0",
            earlier=[],
            rng=torch.Generator().manual_seed(0),
        )
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(sent[name])
    loss = functional.cross_entropy(model(images), labels)
    gradient = torch.autograd.grad(loss, list(named.values()))
    seen = Observation(
        round=1,
        sender="client-0",
        receiver="server",
        kind=Kind.GRADIENT,
        update=dict(zip(named, gradient, strict=True)),
        weights={name: p.detach().clone() for name, p in named.items()},
        buffers={name: b.clone() for name, b in model.named_buffers()},
        num_examples=2,
    )
    return seen, known


def update(change: Callable[[Tensor], Tensor]) -> Break:
    """Break every tensor of the update."""
    return lambda seen, known: (
        replace(seen, update={name: change(t) for name, t in seen.update.items()}),
        known,
    )


def weights(change: Callable[[Tensor], Tensor]) -> Break:
    """Break every tensor of the weights in force."""
    return lambda seen, known: (
        replace(seen, weights={name: change(t) for name, t in (seen.weights or {}).items()}),
        known,
    )


def first_is_nan(tensor: Tensor) -> Tensor:
    changed = tensor.clone()
    changed.view(-1)[0] = math.nan
    return changed


def of_weights(seen: Observation, known: Knowledge, **changed: Any) -> Heard:
    recipe = LocalRecipe(learning_rate=0.1)
    return replace(seen, kind=Kind.WEIGHTS, **changed), replace(known, recipe=recipe)


NEVER_INVERTED: dict[str, Break] = {
    "an update without names": lambda seen, known: (replace(seen, update={}), known),
    "an update of other names": lambda seen, known: (
        replace(seen, update={f"other.{name}": t for name, t in seen.update.items()}),
        known,
    ),
    "flat tensors": update(lambda t: t.flatten()[:-1]),
    "scalars": update(lambda t: t.sum()),
    "tensors without entries": update(lambda t: t.new_empty(0)),
    "nothing but nan": update(lambda t: t * math.nan),
    "nothing but infinities": update(lambda t: t + math.inf),
    "masks of another shape": lambda seen, known: (
        replace(seen, visible={name: torch.ones(3).bool() for name in seen.update}),
        known,
    ),
    "masks that hide all": lambda seen, known: (
        replace(seen, visible={n: torch.zeros_like(t).bool() for n, t in seen.update.items()}),
        known,
    ),
    "weights sent and none in force": lambda seen, known: of_weights(seen, known, weights={}),
    "sizes alone": lambda seen, known: (replace(seen, kind=Kind.SIZES_ONLY, update={}), known),
    "a masked share": lambda seen, known: (
        replace(
            seen,
            kind=Kind.MASKED_SHARE,
            num_examples=None,
            update={
                n: (torch.arange(t.numel()) * 2654435761 % 2**32).view(t.shape).to(torch.uint32)
                for n, t in seen.update.items()
            },
        ),
        known,
    ),
    "a model that takes no such inputs": lambda seen, known: (
        seen,
        replace(known, input_shape=(1, 5, 5), public_sample=None),
    ),
}
"""What no attack could make anything of."""

PERHAPS_INVERTED: dict[str, Break] = {
    "one nan in every tensor": update(first_is_nan),
    "nothing but zeros": update(torch.zeros_like),
    "whole numbers": update(lambda t: t.long()),
    "a learning rate of zero": lambda seen, known: (
        replace(seen, kind=Kind.DELTA),
        replace(known, recipe=LocalRecipe(learning_rate=0.0)),
    ),
    "no first parameter": lambda seen, known: (
        replace(seen, update=dict(list(seen.update.items())[1:])),
        known,
    ),
    "no last parameter": lambda seen, known: (
        replace(seen, update=dict(list(seen.update.items())[:-1])),
        known,
    ),
    "no weights": lambda seen, known: (replace(seen, weights=None), known),
    "weights without names": lambda seen, known: (replace(seen, weights={}), known),
    "weights without the first": lambda seen, known: (
        replace(seen, weights=dict(list((seen.weights or {}).items())[1:])),
        known,
    ),
    "flat weights": weights(lambda t: t.flatten()[:-1]),
    "weights that are nan": weights(lambda t: t * math.nan),
    "labels of another shape": lambda seen, known: (
        seen,
        replace(known, labels=torch.zeros(3, 4, dtype=torch.int64)),
    ),
    "labels of no class": lambda seen, known: (
        seen,
        replace(known, labels=torch.tensor([99, -1])),
    ),
    "no batch size": lambda seen, known: (seen, replace(known, batch_size=None)),
    "an empty public sample": lambda seen, known: (
        seen,
        replace(known, public_sample=torch.rand(0, *SHAPE)),
    ),
}
"""What some attacks can do without: they may guess, but not fall over."""


def invert(name: str, heard: Heard) -> Tensor | None:
    rng = torch.Generator().manual_seed(0)
    return attack_called(name)(heard[0], heard[1], rng=rng, budget=Budget(0.2)).inputs


@pytest.mark.parametrize(("name", "model"), CASES)
@pytest.mark.parametrize("broken", NEVER_INVERTED)
def test_what_cannot_be_inverted_is_a_failed_attack(broken: str, name: str, model: str) -> None:
    heard = NEVER_INVERTED[broken](*overheard(name, model))

    with pytest.raises(AttackFailed, match=r"\w+ \w+"):
        invert(name, heard)


@pytest.mark.parametrize(("name", "model"), CASES)
@pytest.mark.parametrize("broken", PERHAPS_INVERTED)
def test_what_is_missing_leads_to_a_guess_or_a_failed_attack(
    broken: str, name: str, model: str
) -> None:
    heard = PERHAPS_INVERTED[broken](*overheard(name, model))

    found = None
    with suppress(AttackFailed):
        found = invert(name, heard)

    assert found is None or bool(found.isfinite().all())


@pytest.mark.parametrize("name", ATTACKS)
def test_no_observation_at_all_is_a_failed_attack(name: str) -> None:
    _, known = overheard(name, "perceptron")

    with pytest.raises(AttackFailed):
        attack_called(name)([], known, rng=torch.Generator(), budget=Budget(0.2))
