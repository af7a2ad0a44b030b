"""What is read of a defense is the same for gradients, changes of weights, and new weights."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.defense import KnownDefense, Untold
from attacks.matching.posterior import counts_of, likelihood_of
from attacks.matching.victim import rebuild
from attacks.observation import Kind, Knowledge, LocalRecipe, Observation
from attacks.reading import read
from clients.defenses.casts import BFloat16, Float16
from clients.defenses.censor import Censor
from clients.defenses.clip import Clip
from clients.defenses.dgc import DGC
from clients.defenses.int8 import Int8
from clients.defenses.local_dp import LocalDP
from clients.defenses.noise import GaussianNoise, LaplacianNoise
from clients.defenses.outpost import Outpost
from clients.defenses.partial_sharing import PartialSharing
from clients.defenses.prune import Prune
from clients.defenses.qsgd import QSGD
from clients.defenses.random_mask import RandomMask
from clients.defenses.sign import Sign
from clients.defenses.soteria import Soteria
from fedsim.defenses import Situation, UpdateDefense
from fedsim.models.build import build_model

MakeSituation = Callable[..., Situation]
RATE = 0.1
SCALE_FREE = [
    *(Float16(), BFloat16(), Int8(), QSGD(), Sign(), Prune(), RandomMask(share=0.3)),
    *(RandomMask(share=0.3, rescale=True), DGC(share=0.5), PartialSharing(), Soteria(share=0.3)),
    *(Outpost(), Censor()),
]
"""Defenses whose settings have no unit, or that know the step."""
IN_UNITS = [
    (GaussianNoise(scale=1e-3), GaussianNoise(scale=1e-3 * RATE)),
    (LaplacianNoise(scale=1e-3), LaplacianNoise(scale=1e-3 * RATE)),
    (Clip(norm=1.0), Clip(norm=RATE)),
    (LocalDP(max_norm=1.0, noise_multiplier=1e-4), LocalDP(max_norm=RATE, noise_multiplier=1e-4)),
]
"""The same defense of gradients and of changes of weights."""


def model() -> nn.Module:
    rng = torch.Generator().manual_seed(0)
    return build_model("dlg-lenet", (1, 8, 8), 10, rng=rng, options={})


def deviations(
    kind: Kind, defense: UpdateDefense, link: KnownDefense, situation: MakeSituation
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the deviations that are reckoned with, and the errors there are, both of a gradient.

    Behind one example, in root mean square per parameter, over what is left.
    """
    net = model()
    inputs = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([3])
    named = dict(net.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    loss = functional.cross_entropy(net(inputs), labels)
    gradient = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    step = 1.0 if kind is Kind.GRADIENT else -RATE
    at = situation(
        kind="gradient" if kind is Kind.GRADIENT else "delta",
        model=net,
        before=before,
        inputs=inputs,
        labels=labels,
        learning_rate=RATE,
    )
    update = defense.apply({name: step * tensor for name, tensor in gradient.items()}, at)
    if kind is Kind.WEIGHTS:
        update = {name: before[name] + tensor for name, tensor in update.items()}
    seen = Observation(
        round=1, sender="a", receiver="b", kind=kind, update=update, weights=before, num_examples=1
    )
    recipe = LocalRecipe(batch_size=1)
    if kind is not Kind.GRADIENT:
        recipe = replace(recipe, learning_rate=RATE)
    known = Knowledge(
        model=net,
        input_shape=(1, 8, 8),
        num_classes=10,
        batch_size=1,
        recipe=recipe,
        defenses=(link,),
    )
    reading = read(seen, known)
    victim = rebuild(reading.seen, reading.known, dtype=torch.float64)
    likelihood = likelihood_of(victim, reading.seen, reading.known)
    guess: dict[str, Tensor] = {}
    for name in victim.target:
        mask = victim.visible.get(name)
        guess[name] = gradient[name].double() * (1.0 if mask is None else mask.double())
    counts = counts_of(victim)
    errors = {
        name: float((error.square().sum() / counts[name]).sqrt()) * likelihood.deviation[name]
        for name, error in likelihood.errors(guess, victim.target).items()
    }
    return dict(likelihood.deviation), errors


def check(
    of_gradients: UpdateDefense, of_changes: UpdateDefense, told: bool, situation: MakeSituation
) -> None:
    found = {}
    for kind in (Kind.GRADIENT, Kind.DELTA, Kind.WEIGHTS):
        defense = of_gradients if kind is Kind.GRADIENT else of_changes
        assert isinstance(defense, KnownDefense)
        link = defense if told else Untold(defense=defense)
        found[kind], errors = deviations(kind, defense, link, situation)
        for name, error in errors.items():
            assert error < 4 * found[kind][name]
    assert found[Kind.DELTA] == pytest.approx(found[Kind.WEIGHTS], rel=0.05)
    weight = "conv1.weight"
    if told and weight in found[Kind.GRADIENT]:
        assert found[Kind.GRADIENT][weight] == pytest.approx(found[Kind.DELTA][weight], rel=0.3)


@pytest.mark.parametrize("told", [True, False], ids=["settings", "names"])
@pytest.mark.parametrize("defense", SCALE_FREE, ids=repr)
def test_what_is_read_has_the_unit_of_what_was_heard(
    defense: UpdateDefense, told: bool, situation: MakeSituation
) -> None:
    check(defense, defense, told, situation)


@pytest.mark.parametrize("told", [True, False], ids=["settings", "names"])
@pytest.mark.parametrize(("of_gradients", "of_changes"), IN_UNITS, ids=repr)
def test_settings_in_units_of_the_update_are_read_in_them(
    of_gradients: UpdateDefense, of_changes: UpdateDefense, told: bool, situation: MakeSituation
) -> None:
    check(of_gradients, of_changes, told, situation)
