"""Rows of labels that are read off the classifier's gradient."""

import math
from collections.abc import Sequence

import torch

from benchmarks.labels import MEASURES, judge, lenet5, readings
from benchmarks.validation.bench import Bench, Case
from benchmarks.victims import attack_named, fresh_model, strike
from fedsim.seeds import stream


def one_label(bench: Bench) -> list[Case]:
    """Row 2: the label of one example off the classifier's gradient."""
    rule = attack_named("label")
    victims = bench.victims(
        "cifar100", 1, 1000, lambda seed: fresh_model("dlg-lenet", seed, num_classes=100)
    )
    return [
        Case(
            name="CIFAR-100, untrained, B = 1",
            values=[strike(rule, victim).labels_right or 0.0 for victim in victims],
            baseline=0.01,
            published="1.000 (DLG's joint labels 0.833)",
            low=1.0,
        )
    ]


def label_counts(bench: Bench) -> list[Case]:
    """Row 13: iLRG's counts on an untrained network, and those of the default rule."""
    cases = []
    for batch_size, public in ((128, "1.000"), (512, "0.960"), (1024, "0.851")):
        found, guess = read_labels(bench, "relu", batch_size, ("ilrg", "auto"), "LnAcc")
        cases += [
            Case(
                name=f"{rule}, B = {batch_size}",
                values=values,
                baseline=guess,
                published=public if rule == "ilrg" else "",
                low=float(public) - 0.05 if rule == "ilrg" else -math.inf,
            )
            for rule, values in found.items()
        ]
    return cases


SIGNS = {"minimum < 0": "negative minimum (Yin)", "row sum < 0": "negative row sum (iDLG)"}
"""The two rules of row 14, and how the table calls them."""


def label_failures(bench: Bench) -> list[Case]:
    """Row 14: signs of rows as proofs of a class, with and without non-negative features."""
    cases = []
    for activation, public in (("relu", (1.0, 1.0)), ("silu", (0.213, 0.089))):
        found, guess = read_labels(bench, activation, 24, tuple(SIGNS), "LeAcc")
        cases += [
            Case(
                name=f"{activation}, {SIGNS[rule]}",
                values=values,
                baseline=guess,
                published=f"{figure:.3f}",
                low=figure - 0.1,
                high=figure + 0.1,
            )
            for (rule, values), figure in zip(found.items(), public, strict=True)
        ]
    return cases


def read_labels(
    bench: Bench, activation: str, batch_size: int, rules: Sequence[str], measure: str
) -> tuple[dict[str, list[float]], float]:
    """Return a measure of each rule per fresh LeNet-5, and what guessing by frequency achieves."""
    data = bench.data("cifar100")
    inputs = torch.cat([data.train_inputs, data.test_inputs])
    labels = torch.cat([data.train_labels, data.test_labels])
    place = MEASURES.index(measure)
    found: dict[str, list[float]] = {rule: [] for rule in rules}
    guesses = []
    for seed in range(bench.count(10)):
        model = lenet5(100, activation, stream(seed, "model"))
        order = torch.randperm(len(labels), generator=stream(seed, "batch"))
        batch = order[:batch_size]
        read = readings(model, inputs[batch], labels[batch], inputs[order[-200:]], 100)
        for rule in rules:
            found[rule].append(judge(read[rule], labels[batch], 100)[place])
        drawn = labels[torch.randint(len(labels), (batch_size,), generator=stream(seed, "guess"))]
        guesses.append(judge(drawn, labels[batch], 100)[place])
    return found, sum(guesses) / len(guesses)
