"""What is heard of a client that sends one gradient."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.observation import Kind, Knowledge, Observation


def gradient_of_batch(model: nn.Module, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the gradient of the mean loss, by name, in the mode that the model is in."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    loss = functional.cross_entropy(model(inputs), labels)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def overhear(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor | Sequence[int],
    *,
    server_round: int = 1,
    sent_as: torch.dtype | None = None,
    **granted: Any,
) -> tuple[Observation, Knowledge]:
    """Return the gradient of a batch as it is heard, with the weights in force, and what is known.

    Args:
        model: The client's, in the mode that it trains in.
        inputs: (B, C, H, W).
        labels: (B,).
        server_round: When.
        sent_as: What the gradient is rounded to on the way; None sends it as it is.
        granted: What is known beside the model, the shape of an input and B.
    """
    gradient = gradient_of_batch(model, inputs, torch.as_tensor(labels))
    if sent_as is not None:
        gradient = {name: one.to(sent_as).to(one.dtype) for name, one in gradient.items()}
    seen = Observation(
        round=server_round,
        sender="client-0",
        receiver="server",
        kind=Kind.GRADIENT,
        update=gradient,
        weights={name: p.detach().clone() for name, p in model.named_parameters()},
    )
    known = {"input_shape": tuple(inputs.shape[1:]), "batch_size": len(inputs), **granted}
    return seen, Knowledge(model=model, **known)
