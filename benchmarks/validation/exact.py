"""Rows of attacks that solve for the images: no search, an exact answer or none."""

import math
from dataclasses import replace

import torch

from attacks.observation import Attack
from benchmarks.validation.bench import Bench, Case, psnr_case, seconds_each
from benchmarks.victims import Transform, Victim, attack_named, fresh_model, strike
from fedsim.seeds import stream


def linear_layer(bench: Bench) -> list[Case]:
    """Row 1: one image off the first linear layer, and the law of its error under noise."""
    data = bench.data("cifar10")
    victims = list(
        bench.victims("cifar10", 1, 50, lambda seed: fresh_model("mlp", seed, hidden=(256,)))
    )
    attack = attack_named("linear")
    cases = [
        Case(
            name="float32",
            values=[max_error(attack, victim) for victim in victims],
            published="exact (Proposition 3.1)",
            high=1e-6,
            note="largest absolute error of a pixel",
            baseline=float((data.train_inputs.mean(0) - data.test_inputs[:50]).abs().amax()),
        )
    ]
    cases += [
        Case(
            name=f"noise {sigma:g}",
            values=[beyond_the_law(attack, with_noise(one, sigma), sigma) for one in victims],
            published="-20 log10(sigma / |db|)",
            low=-5.0,
            high=5.0,
            note="PSNR minus the law, dB; clamping helps where noise is large",
        )
        for sigma in (1e-4, 1e-3, 1e-2)
    ]
    return cases


def max_error(attack: Attack, victim: Victim) -> float:
    """Return the largest absolute error of a pixel."""
    guess = attack(victim.seen, victim.known, rng=stream(victim.seed, "attack"))
    assert guess.inputs is not None
    return float((guess.inputs - victim.inputs).abs().max())


def with_noise(victim: Victim, sigma: float) -> Victim:
    """Return the victim with Gaussian noise of standard deviation `sigma` in its gradient."""
    rng = stream(victim.seed, "noise")
    update = {
        name: tensor + sigma * torch.randn(tensor.shape, generator=rng, dtype=tensor.dtype)
        for name, tensor in victim.seen.update.items()
    }
    return replace(victim, seen=replace(victim.seen, update=update))


def beyond_the_law(attack: Attack, victim: Victim, sigma: float) -> float:
    """Return the PSNR minus what the noise law foretells, in dB."""
    first_bias = next(t for name, t in victim.seen.update.items() if name.endswith("bias"))
    power = first_bias.double().square().sum().sqrt()
    law = -20 * math.log10(sigma / float(power))
    return strike(attack, victim).psnr_db[0] - law


def r_gap(bench: Bench) -> list[Case]:
    """Row 9: R-GAP on its own network, and our closed form on the same gradients."""
    victims = list(bench.victims("cifar10", 1, 20, lambda seed: fresh_model("cnn6", seed)))
    mean = bench.mean_db("cifar10", victims)
    return [
        psnr_case(name, attack_named(name), victims, mean, published=public, low=40.0)
        for name, public in (("r-gap", "49.0 dB"), ("closed-form", ""))
    ]


def spear(bench: Bench) -> list[Case]:
    """Row 10: whole batches off one linear layer with ReLU."""
    cases = []
    for batch_size in (2, 4, 6, 8):
        victims = bench.victims(
            "cifar10",
            batch_size,
            5,
            lambda seed: fresh_model("mlp", seed, hidden=(200,)),
            dtype=torch.float64,
        )
        judged = [strike(attack_named("spear"), victim, budget_s=120) for victim in victims]
        cases.append(
            Case(
                name=f"width 200, B = {batch_size}, float64",
                values=[float(min(one.psnr_db) > 30) for one in judged],
                baseline=0.0,
                published="exact up to about 25 at larger widths",
                low=1.0 if batch_size <= 4 else -math.inf,
                note=f"share of batches wholly recovered; {seconds_each(judged)}",
            )
        )
    return cases


def cascade(bench: Bench) -> list[Case]:
    """Row 11: the passive cascade on an untrained MLP 3072-1000-10."""
    cases = []
    settings: list[tuple[int, str, Transform | None, str, float]] = [
        (64, "float64", None, "0.994", 63 / 64),
        (64, "sent as float32", torch.Tensor.float, "", 60 / 64),
        (64, "sent as bfloat16", lambda t: t.bfloat16().double(), "", -math.inf),
        (128, "float64", None, "0.666", -math.inf),
    ]
    for batch_size, name, sent, public, low in settings:
        victims = bench.victims(
            "cifar10",
            batch_size,
            5,
            lambda seed: fresh_model("mlp", seed, hidden=(1000,)),
            dtype=torch.float64,
            sent=sent,
        )
        judged = [strike(attack_named("cascade"), victim) for victim in victims]
        wrong = sum(one.false_certificates for one in judged)
        cases.append(
            Case(
                name=f"B = {batch_size}, {name}",
                values=[one.certified / batch_size for one in judged],
                baseline=0.0,
                published=public,
                low=low,
                note=f"share certified and right; {wrong} false certificates; "
                f"{seconds_each(judged)}",
            )
        )
    return cases
