"""A small table, and what is heard of a client that holds some of its rows."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.observation import Kind, Knowledge, Observation
from attacks.tabular.columns import Column, Columns

COLUMNS = Columns(
    columns=[
        Column(name="age", low=0, high=100, whole=True),
        Column(name="city", categories=("Rome", "Oslo", "Kiev", "Bern", "Nice")),
        Column(name="pay", low=0, high=10),
        Column(name="job", categories=("cook", "nurse", "clerk")),
    ]
)
NUM_CLASSES = 2


def people(num: int, *, cities: int = 5, seed: int = 0) -> Tensor:
    """Random rows, (num, 10), of people in the first so many cities."""
    rng = torch.Generator().manual_seed(seed)
    rows = torch.zeros(num, COLUMNS.width)
    rows[:, 0], rows[:, 6] = torch.rand(2, num, generator=rng)
    rows[torch.arange(num), 1 + torch.randint(cities, (num,), generator=rng)] = 1
    rows[torch.arange(num), 7 + torch.randint(3, (num,), generator=rng)] = 1
    return rows


def perceptron(seed: int = 0, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Fully connected, 10 -> 40 -> 40 -> 2, weights by PyTorch's own initialisation."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(COLUMNS.width, 40),
            activation(),
            nn.Linear(40, 40),
            activation(),
            nn.Linear(40, NUM_CLASSES),
        )


def overhear(
    rows: Tensor, labels: Tensor, model: nn.Module | None = None
) -> tuple[Observation, Knowledge]:
    """Return what is heard of one gradient, and what is known."""
    model = perceptron() if model is None else model
    named = dict(model.named_parameters())
    loss = functional.cross_entropy(model(rows), labels)
    update = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    seen = Observation(
        round=1,
        sender="client-0",
        receiver="server",
        kind=Kind.GRADIENT,
        update=update,
        weights={name: parameter.detach().clone() for name, parameter in named.items()},
        num_examples=len(rows),
    )
    known = Knowledge(
        model=perceptron(activation=type(model[1])) if isinstance(model, nn.Sequential) else model,
        input_shape=(COLUMNS.width,),
        num_classes=NUM_CLASSES,
        batch_size=len(rows),
        columns=COLUMNS,
    )
    return seen, known
