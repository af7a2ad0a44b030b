"""The row of simple defenses against an attacker who ignores them."""

import math

import torch
from torch import Tensor

from benchmarks.validation.bench import Bench, Case, psnr_case
from benchmarks.victims import Transform, attack_named, fresh_model

NOISE_VERDICTS = ((1e-4, "leaks"), (1e-3, "leaks"), (1e-2, "defends"), (1e-1, "defends"))
PRUNING_VERDICTS = ((0.01, "leaks"), (0.1, "leaks"), (0.3, "defends"), (0.5, "defends"))
RECOGNISABLE_DB = 18.0
"""Mean PSNR above which we say that an image leaks: well over the data mean's 12 dB."""


def threshold_table(bench: Bench) -> list[Case]:
    """Row 4: which simple defenses stop DLG's attack, as its paper asks."""
    attack = attack_named("idlg", steps=300, restarts=1, rescue=False, refine=False)
    settings: list[tuple[str, Transform | None, str]] = [
        ("none", None, "leaks"),
        *((f"Gaussian {s:g}", noise("gaussian", s), w) for s, w in NOISE_VERDICTS),
        *((f"Laplacian {s:g}", noise("laplacian", s), w) for s, w in NOISE_VERDICTS),
        ("float16", lambda t: t.half().float(), "leaks"),
        ("bfloat16", lambda t: t.bfloat16().float(), "leaks"),
        ("int8, one scale per tensor", int8, "defends"),
        *((f"pruned {p:.0%} per tensor", prune(p), w) for p, w in PRUNING_VERDICTS),
    ]
    cases = []
    for name, sent, verdict in settings:
        victims = list(
            bench.victims(
                "cifar100",
                1,
                6,
                lambda seed: fresh_model("dlg-lenet", seed, num_classes=100),
                train_mode=True,
                sent=sent,
            )
        )
        leaks = verdict == "leaks"
        cases.append(
            psnr_case(
                name,
                attack,
                victims,
                bench.mean_db("cifar100", victims),
                published=verdict,
                low=RECOGNISABLE_DB if leaks else -math.inf,
                high=math.inf if leaks else RECOGNISABLE_DB,
            )
        )
    return cases


def prune(share: float) -> Transform:
    """Zero the smallest entries of each tensor."""

    def transform(tensor: Tensor) -> Tensor:
        size = tensor.abs().flatten()
        kept = size >= size.kthvalue(max(1, round(share * size.numel()))).values
        return tensor * kept.view_as(tensor)

    return transform


def int8(tensor: Tensor) -> Tensor:
    """Round to 255 levels, one scale per tensor, nearest."""
    scale = tensor.abs().max().clamp_min(1e-30) / 127
    return (tensor / scale).round() * scale


def noise(kind: str, scale: float) -> Transform:
    """Add noise of this standard deviation (Gaussian) or scale (Laplacian), always the same."""
    rng = torch.Generator().manual_seed(0)

    def transform(tensor: Tensor) -> Tensor:
        if kind == "gaussian":
            return tensor + scale * torch.randn(tensor.shape, generator=rng)
        uniform = torch.rand(tensor.shape, generator=rng) - 0.5
        return tensor - scale * uniform.sign() * torch.log1p(-2 * uniform.abs())

    return transform
