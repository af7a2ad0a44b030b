"""What a client computes in one round: a gradient, or weights after local SGD.

Every random choice comes from a stream named by round and client, so that a client needs no
memory, and every engine and every resumed run draws the same batches.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from attacks.global_generators import global_generators
from attacks.observation import Loss, Tensors
from fedsim.config import TrainingConfig
from fedsim.defenses import Sampling, TrainingDefense
from fedsim.seeds import derive, stream
from fedsim.wire import shared_buffers


@dataclass(frozen=True, kw_only=True)
class LocalUpdate:
    """One client's work in one round.

    Attributes:
        tensors: Gradient by parameter name, or weights (or their change) by name; of all
            parameters, frozen ones too, whose gradient and change are zero.
        buffers: Running statistics after a gradient; empty otherwise and for models without.
        plan: Indices into the client's own examples, of each batch that it trained on.
        num_examples: The number of examples to announce; that of `used`, unless a defense draws
            batches of a size that tells of nothing.
        train_loss: Mean loss over the examples used, at the time each was used.
    """

    tensors: Tensors
    buffers: Tensors
    plan: Sequence[Tensor]
    num_examples: int
    train_loss: float

    @cached_property
    def used(self) -> Tensor:
        """Indices of the examples behind the update, each once; a single batch keeps its order."""
        return _distinct(self.plan)


Differentiate = Callable[[int, Tensor], tuple[dict[str, Tensor], Tensor | float]]
"""(step, indices of its batch) -> gradient of trained parameters by name, and mean loss."""


def batches(
    num_examples: int, training: TrainingConfig, *, seed: int, server_round: int, client: int
) -> Iterator[Tensor]:
    """Yield the indices of each batch of one round, shape (B,) int64; the last may be smaller.

    FedSGD takes one batch. FedAvg passes over the data `local_epochs` times, shuffled each time,
    and stops after `max_local_steps`.
    """
    steps = 1 if training.algorithm == "fedsgd" else training.max_local_steps
    taken = 0
    for epoch in range(training.local_epochs):
        rng = stream(seed, "round", server_round, "client", client, "epoch", epoch)
        order = torch.randperm(num_examples, generator=rng)
        for start in range(0, num_examples, training.batch_size):
            if steps is not None and taken >= steps:
                return
            taken += 1
            yield order[start : start + training.batch_size]


def local_update(
    model: nn.Module,
    loss: Loss,
    inputs: Tensor,
    labels: Tensor,
    training: TrainingConfig,
    *,
    seed: int,
    server_round: int,
    client: int,
    proximal_mu: float = 0.0,
    defense: TrainingDefense | None = None,
) -> LocalUpdate:
    """Train `model`, which holds the weights received, on one client's data.

    Args:
        model: Changed in place.
        loss: Mean over the batch.
        inputs: The client's inputs, shape (N, C, H, W).
        labels: Their labels, shape (N,).
        training: The recipe.
        seed: The experiment's seed.
        server_round: The round.
        client: The client's number.
        proximal_mu: FedProx's pull towards the weights received (Li et al., 2020, arXiv
            1812.06127); 0 is plain SGD.
        defense: What computes the gradient of each step in place of plain differentiation.
    """
    where = ("round", server_round, "client", client)
    plan = list(batches(len(inputs), training, seed=seed, server_round=server_round, client=client))
    num_examples = _num_distinct(plan, training)
    if defense is not None and isinstance(defense, Sampling):
        for step in range(len(plan)):
            rng = stream(seed, *where, "draw", step)
            drawn = defense.draw(len(inputs), training.batch_size, rng)
            plan[step] = plan[step] if drawn is None else drawn

    def examples(batch: Tensor) -> tuple[Tensor, Tensor]:
        batch = batch.to(inputs.device)
        return inputs.index_select(0, batch), labels.index_select(0, batch)  # faster than [batch]

    def differentiate(step: int, batch: Tensor) -> tuple[dict[str, Tensor], Tensor | float]:
        if defense is None:
            return gradient_of_batch(model, trained, loss, *examples(batch))
        return defense.gradient(
            model,
            loss,
            *examples(batch),
            batch_size=training.batch_size,
            rng=stream(seed, *where, "training-defense", step),
        )

    model.train()
    parameters = dict(model.named_parameters())
    trained = {name: p for name, p in parameters.items() if p.requires_grad}
    with global_generators(derive(seed, *where, "dropout"), inputs.device):
        if training.algorithm == "fedsgd":
            return _gradient(model, differentiate, plan[0], num_examples)
        return _local_sgd(
            model, parameters, differentiate, training, plan, num_examples, proximal_mu
        )


def gradient_of_batch(
    model: nn.Module, trained: Mapping[str, Tensor], loss: Loss, inputs: Tensor, labels: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the gradient of the mean loss by trained parameter, and that loss."""
    value = loss(model(inputs), labels)
    found = torch.autograd.grad(value, list(trained.values()), materialize_grads=True)
    return dict(zip(trained, found, strict=True)), value.detach()


def _gradient(
    model: nn.Module, differentiate: Differentiate, used: Tensor, num_examples: int
) -> LocalUpdate:
    gradients, loss = differentiate(0, used)
    return LocalUpdate(
        tensors={  # what is frozen is sent as it is after local steps: without a change
            name: gradients[name] if name in gradients else torch.zeros_like(parameter)
            for name, parameter in model.named_parameters()
        },
        buffers={name: tensor.clone() for name, tensor in shared_buffers(model).items()},
        plan=[used],
        num_examples=num_examples,
        train_loss=float(loss),
    )


def _local_sgd(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    differentiate: Differentiate,
    training: TrainingConfig,
    plan: list[Tensor],
    num_examples: int,
    proximal_mu: float,
) -> LocalUpdate:
    weights = {name: parameter.detach() for name, parameter in parameters.items()}
    received: dict[str, Tensor] = {}
    if proximal_mu or training.update_kind == "delta":
        received = _copies(weights | shared_buffers(model))
    velocity: dict[str, Tensor] = {}
    losses: list[Tensor | float] = []
    for step, batch in enumerate(plan):
        gradients, loss = differentiate(step, batch)
        losses.append(loss)
        for name, gradient in gradients.items():
            if proximal_mu:
                gradient = gradient + proximal_mu * (weights[name] - received[name])
            if training.momentum:  # PyTorch's: the first gradient is the first velocity
                if step:
                    gradient = velocity[name].mul_(training.momentum).add_(gradient)
                else:
                    gradient = gradient.clone()
                velocity[name] = gradient
            weights[name].add_(gradient, alpha=-training.learning_rate)
    after = _copies(weights | shared_buffers(model))
    if training.update_kind == "delta":
        after = {name: tensor - received[name] for name, tensor in after.items()}
    sizes = [batch.numel() for batch in plan]
    weighted = sum(float(loss) * size for loss, size in zip(losses, sizes, strict=True))
    return LocalUpdate(
        tensors=after,
        buffers={},
        plan=plan,
        num_examples=num_examples,
        train_loss=weighted / max(1, sum(sizes)),
    )


def _copies(tensors: Tensors) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _num_distinct(plan: list[Tensor], training: TrainingConfig) -> int:
    """Return how many different examples there are in batches; an epoch has none twice."""
    if training.algorithm == "fedsgd" or training.local_epochs == 1:
        return sum(batch.numel() for batch in plan)
    return len(_distinct(plan))


def _distinct(plan: Sequence[Tensor]) -> Tensor:
    """Return the indices of all batches, each once; a single batch keeps its order."""
    if len(plan) == 1:
        return plan[0]
    distinct: Tensor = torch.cat(tuple(plan)).unique()  # type: ignore[no-untyped-call]
    return distinct
