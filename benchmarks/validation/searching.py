"""Rows of attacks that search for images whose gradient matches."""

from typing import Any

from attacks.inverting_gradients import PUBLISHED
from benchmarks.dlg_cifar100 import make_target, published
from benchmarks.validation.bench import Bench, Case, psnr_case
from benchmarks.victims import attack_named, fresh_model, judge, overhear, strike
from fedsim.seeds import stream


def line_search(bench: Bench) -> list[Case]:
    """Row 3: with and without a line search, one CIFAR-100 image, DLG LeNet."""
    data = bench.data("cifar100")
    number = bench.count(24)
    ours: dict[str, list[float]] = {"idlg": [], "dlg": []}
    plain, diverged = [], 0
    for seed in range(number):
        target = make_target(data.test_inputs, data.test_labels, seed)
        victim = overhear(target.model, target.image, target.label, seed, train_mode=True)
        for name, values in ours.items():
            values.append(float(strike(attack_named(name), victim).mse < 1e-3))
        one = published(target)
        plain.append(float(one.mse < 1e-3))
        diverged += one.diverged
    return [
        Case(name="iDLG, strong Wolfe", values=ours["idlg"], published="12 of 12", low=0.95),
        Case(name="DLG, strong Wolfe", values=ours["dlg"], published="4 of 4", low=0.95),
        Case(
            name="DLG as published, 300 steps",
            values=plain,
            published="0.45 to 0.65",
            low=0.3,
            high=0.9,
            note=f"{diverged} of {number} diverged",
        ),
    ]


def dlg_batches(bench: Bench) -> list[Case]:
    """Row 5, on LeNet: steps to restore a batch."""
    cases = []
    for batch_size, public in ((1, "270"), (2, "602"), (4, "1173"), (8, "2711")):
        steps, worked = [], 0
        for victim in bench.victims(
            "cifar10", batch_size, 3, lambda seed: fresh_model("dlg-lenet", seed), train_mode=True
        ):
            rng = stream(victim.seed, "attack")
            guess = attack_named("dlg")(victim.seen, victim.known, rng=rng)
            steps.append(float(guess.steps))
            worked += judge(guess, victim).mse < 1e-3
        cases.append(
            Case(
                name=f"B = {batch_size}",
                values=steps,
                published=f"{public} steps (ResNet-20)",
                note=f"L-BFGS steps; {worked} of {len(steps)} batches to MSE < 1e-3; LeNet, for "
                "the trend alone: 15,826 equations determine at most 5 images",
            )
        )
    return cases


def convnet_image(bench: Bench) -> list[Case]:
    """Row 6: Inverting Gradients on an untrained ConvNet."""
    return inverting(bench, "convnet", "23.4 to 24.1 dB", 20.0, steps=300)


def resnet_image(bench: Bench) -> list[Case]:
    """Row 7: Inverting Gradients on an untrained ResNet-20."""
    return inverting(bench, "resnet20", "19.83 +- 2.96 dB", 16.9, steps=600, width=64)


def inverting(
    bench: Bench, model: str, published_db: str, low: float, *, steps: int, **options: Any
) -> list[Case]:
    """Attack one CIFAR-10 image at a time, with our settings and the published ones."""
    victims = list(
        bench.victims(
            "cifar10", 1, 2, lambda seed: fresh_model(model, seed, normalise=True, **options)
        )
    )
    mean = bench.mean_db("cifar10", victims)
    cases = []
    for name, settings in (("defaults", {}), ("published settings", PUBLISHED)):
        attack = attack_named("inverting-gradients", **{**settings, "steps": steps})
        cases.append(
            psnr_case(
                f"{name}, {steps} steps", attack, victims, mean, published=published_db, low=low
            )
        )
    return cases
