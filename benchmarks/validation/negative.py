"""The row of negative results: what stops attacks that work elsewhere in the table."""

import torch
from torch import Tensor, nn

from benchmarks.validation.bench import Bench, Case, psnr_case
from benchmarks.victims import Victim, attack_named, fresh_model


def hard_victims(bench: Bench) -> list[Case]:
    """Row 23: the attack that chooses by itself, where published ones are known to fail."""
    return [
        psnr_case(
            name, attack_named("auto"), victims, bench.mean_db("cifar10", victims), budget_s=60
        )
        for name, victims in negative_victims(bench).items()
    ]


def negative_victims(bench: Bench) -> dict[str, list[Victim]]:
    """Return victims that published attacks are known to fail on."""
    data = bench.data("cifar10")
    trained = untrained(0)
    train(trained, data.train_inputs, data.train_labels, epochs=5)
    return {
        "ConvNet-16 trained for 5 epochs, B = 1": list(
            bench.victims("cifar10", 1, 3, lambda _: trained)
        ),
        "ConvNet-16 untrained, batch normalisation in training mode, B = 8": list(
            bench.victims("cifar10", 8, 3, untrained, train_mode=True)
        ),
        "ConvNet-16 untrained, B = 64": list(bench.victims("cifar10", 64, 1, untrained)),
    }


def untrained(seed: int) -> nn.Module:
    """Return a narrow ConvNet."""
    return fresh_model("convnet", seed, normalise=True, width=16)


def train(model: nn.Module, inputs: Tensor, labels: Tensor, *, epochs: int) -> None:
    """Train in place by Adam, batches of 50."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    rng = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels), generator=rng).split(50):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
