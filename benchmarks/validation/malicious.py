"""Rows of attacks of a malicious server, which has clients train another model."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from attacks.observation import ActiveAttack, Knowledge
from attacks.robbing_the_fed import expected_hits
from benchmarks.validation.bench import Bench, Case
from benchmarks.victims import Victim, attack_named, fresh_model, overhear, strike
from fedsim.seeds import stream


def soliton(bench: Bench) -> list[Case]:
    """Row 12: the cascade with biases set by the server, B = 256."""
    return recovered(
        bench,
        "soliton",
        lambda seed: fresh_model("mlp", seed, hidden=(1000,)).double(),
        256,
        name="MLP 3072-1000-10, B = 256",
        published="0.999",
        low=0.95,
    )


def robbing_the_fed(bench: Bench) -> list[Case]:
    """Row 15: the imprint module in front of a network, B = 64.

    Hits are images that are alone in one of 128 bins; if all bins are equally likely, so many of
    the images are, within three standard errors.
    """
    batch_size, bins, batches = 64, 128, 5
    alone = expected_hits(torch.full((bins,), 1 / bins), batch_size) / batch_size
    margin = 3 * math.sqrt(alone * (1 - alone) / (batch_size * batches))
    return recovered(
        bench,
        "robbing-the-fed",
        lambda seed: fresh_model("mlp", seed),
        batch_size,
        threshold_db=60,
        low=alone - margin,
        high=alone + margin,
        name="B = 64",
        published="70.9 dB on average (128 bins); 60 to 61 of 64 with 1000 bins",
    )


def trap_weights(bench: Bench) -> list[Case]:
    """Row 16: trap weights in the first layer of an MLP, B = 100."""
    return recovered(
        bench,
        "trap-weights",
        lambda seed: fresh_model("mlp", seed, hidden=(1000,)),
        100,
        name="MLP 3072-1000-10, B = 100",
        published="over 0.5 (ImageNet)",
        low=0.5,
    )


def recovered(
    bench: Bench,
    attack_name: str,
    model: Callable[[int], nn.Module],
    batch_size: int,
    *,
    name: str,
    published: str,
    threshold_db: float = 30,
    low: float = -math.inf,
    high: float = math.inf,
) -> list[Case]:
    """Return the share of a batch that an active attack recovers, over several networks."""
    shares = []
    quality: list[float] = []
    for seed, (inputs, labels) in enumerate(bench.batches("cifar10", batch_size, 5)):
        attack = attack_named(attack_name)
        assert isinstance(attack, ActiveAttack)
        one = strike(attack, tampered(attack, model(seed), inputs, labels, seed))
        hits = [db for db in one.psnr_db if db > threshold_db]
        shares.append(len(hits) / batch_size)
        quality += hits
    note = f"share of images over {threshold_db:g} dB"
    if quality:
        note += f", which have {sum(quality) / len(quality):.1f} dB on average"
    return [
        Case(
            name=name,
            values=shares,
            baseline=0.0,
            published=published,
            low=low,
            high=high,
            note=note,
        )
    ]


def tampered(
    attack: ActiveAttack, model: nn.Module, inputs: Tensor, labels: Tensor, seed: int
) -> Victim:
    """Return what is heard of a client that got the attack's model and weights."""
    model = attack.implant(model, tuple(inputs.shape[1:]), 10).eval()
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    known = Knowledge(
        model=model, input_shape=tuple(inputs.shape[1:]), num_classes=10, batch_size=len(labels)
    )
    crafted = attack.tamper(
        weights,
        known,
        receiver="client-0",
        target="client-0",
        earlier=(),
        rng=stream(seed, "tamper"),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(crafted[name])
    return overhear(model, inputs, labels, seed)
