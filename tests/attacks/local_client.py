"""A small client that trains for several steps, and what an adversary hears of it."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.observation import Kind, Knowledge, LocalRecipe, Observation

NUM_CLASSES = 10


def network(rng: torch.Generator | None = None) -> nn.Sequential:
    """A sigmoid network for 8x8 grey images, weights U(-0.5, 0.5), without `rng` always the same.

    Args:
        rng: Draws the weights.
    """
    rng = torch.Generator().manual_seed(0) if rng is None else rng
    net = nn.Sequential(
        nn.Conv2d(1, 12, 5, padding=2, stride=2),
        nn.Sigmoid(),
        nn.Conv2d(12, 12, 5, padding=2),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(192, NUM_CLASSES),
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=rng) - 0.5)
    return net


def images(number: int, *, seed: int = 0) -> Tensor:
    """Images of blurred noise, (number, 1, 8, 8)."""
    rng = torch.Generator().manual_seed(seed)
    return functional.avg_pool2d(torch.rand(number, 1, 10, 10, generator=rng), 3, stride=1)


def hear(
    inputs: Tensor,
    labels: Tensor,
    orders: list[list[list[int]]],
    *,
    learning_rate: float,
    momentum: float = 0.0,
    server_round: int = 1,
    model: nn.Module | None = None,
) -> tuple[Observation, Knowledge]:
    """Train on batches, one list of batches per epoch, by plain SGD; return what is heard."""
    model = network() if model is None else model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=momentum)
    for epoch in orders:
        for batch in epoch:
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    seen = Observation(
        round=server_round,
        sender="client-0",
        receiver="server",
        kind=Kind.WEIGHTS,
        update={name: p.detach().clone() for name, p in model.named_parameters()},
        weights=before,
        num_examples=len(inputs),
    )
    recipe = LocalRecipe(
        num_steps=sum(map(len, orders)),
        learning_rate=learning_rate,
        momentum=momentum,
        num_epochs=len(orders),
        batch_size=len(orders[0][0]),
    )
    known = Knowledge(
        model=network(),
        input_shape=(1, 8, 8),
        num_classes=NUM_CLASSES,
        batch_size=len(inputs),
        recipe=recipe,
    )
    return seen, known


def error(found: Tensor | None, truth: Tensor) -> float:
    """Return the mean square error of images in the same order."""
    assert found is not None
    assert found.shape == truth.shape
    return float((found - truth).square().mean())
