"""The error at the logits, from the gradient of a linear classifier and cross-entropy, one example.

The weight gradient is rank one, dW = delta h^T, and the bias gradient is delta = p - onehot(label)
itself. Where a part of either was not heard, the rest is filled in by alternating least squares.
Without any of the bias gradient delta is known up to its length, c: the logits that belong to it,
W h / c + b, must give it back through the softmax, which one c does.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.observation import AttackFailed

_ROUNDS = 200
"""Rounds of alternating least squares, at most."""

_SETTLED = 1e-13
"""Relative change of delta at which they end."""

_SMALLEST = 1e-9
"""Shortest delta looked for: the loss of an example predicted this well is below 1e-9."""

_ZOOMS = 12
"""How often the search for the length is refined, tenfold each time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """What one example leaves at the classifier, float64.

    Attributes:
        delta: Derivative of the loss with respect to the logits, (K,).
        error: Standard deviation of the error of `delta` where a part of it was guessed, else 0.
        label: Its class.
        misfit: How far delta is from what the softmax gives back, relative to its length; None
            where the bias gradient told the length.
    """

    delta: Tensor
    error: Tensor
    label: int
    misfit: float | None = None


def read_head(
    weight_gradient: Tensor,
    bias_gradient: Tensor | None,
    *,
    weight_heard: Tensor | None = None,
    bias_heard: Tensor | None = None,
    weight: Tensor,
    bias: Tensor | None,
) -> Head:
    """Return the error at the logits; see the module.

    Args:
        weight_gradient: (K, features), zero where not heard.
        bias_gradient: (K,), zero where not heard; None for a layer without bias.
        weight_heard: True where the weight gradient was heard; None for everywhere.
        bias_heard: The same of the bias gradient.
        weight: The weight in force, (K, features).
        bias: The bias in force, (K,), or None.

    Raises:
        AttackFailed: The gradient is zero, or too little of it was heard.
    """
    if bias_gradient is not None and bias_heard is None:
        if not bool(bias_gradient.any()):
            raise AttackFailed("the classifier's gradient is zero: no error comes from the logits")
        return Head(
            delta=bias_gradient,
            error=torch.zeros_like(bias_gradient),
            label=int(bias_gradient.argmin()),
        )
    if bias_gradient is None:
        bias_gradient = weight_gradient.new_zeros(len(weight_gradient))
        bias_heard = torch.zeros_like(bias_gradient, dtype=torch.bool)
    if bias_heard is None:
        bias_heard = torch.ones_like(bias_gradient, dtype=torch.bool)
    whole = torch.cat([weight_gradient, bias_gradient[:, None]], 1)
    if weight_heard is None:
        weight_heard = torch.ones_like(weight_gradient, dtype=torch.bool)
    mask = torch.cat([weight_heard, bias_heard[:, None]], 1)
    if not bool((whole * mask).any()):
        raise AttackFailed("the classifier's gradient is zero, or nothing of it was heard")
    rows, columns = _rank_one(whole, mask)
    features, ones = columns[:-1], columns[-1]
    if bool(bias_heard.any()) and float(ones.abs()) > 0:
        delta, misfit = rows * ones, None
        features = features / ones
    else:
        length = rows.norm()
        delta, misfit = _scaled(rows / length, features * length, weight, bias)
        features = features * length * (rows / length @ delta) / delta.square().sum()
    label = int(delta.argmin())
    silent, error = ~mask.any(1), torch.zeros_like(delta)
    if bool(silent.any()):
        if not bool(delta[label] < 0):
            raise AttackFailed("the label's own part of the classifier's gradient was not heard")
        told = mask.any(0)[:-1]
        features = torch.where(told, features, features[told].mean() if bool(told.any()) else 0.0)
        logits = weight @ features if bias is None else weight @ features + bias
        delta = torch.where(silent, logits.softmax(0), delta)
        missing = 1 - float(told.double().mean())
        error = torch.where(silent, delta * missing**0.5, 0.0)
    return Head(delta=delta, error=error, label=label, misfit=misfit)


def fill_in(
    weight_gradient: Tensor, bias_gradient: Tensor, weight_heard: Tensor, bias_heard: Tensor
) -> Tensor | None:
    """Return the bias gradient, (K,), of a linear layer; None where some of it cannot be told.

    Args:
        weight_gradient: (K, features), zero where not heard.
        bias_gradient: (K,), zero where not heard.
        weight_heard: True where the weight gradient was heard.
        bias_heard: True where the bias gradient was heard.
    """
    if bool(bias_heard.all()):
        return bias_gradient
    mask = torch.cat([weight_heard, bias_heard[:, None]], 1)
    if not bool(mask.any(1).all()) or not bool((bias_gradient * bias_heard).any()):
        return None
    rows, columns = _rank_one(torch.cat([weight_gradient, bias_gradient[:, None]], 1), mask)
    return rows * columns[-1]


def _rank_one(whole: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return (K,) and (n,) whose outer product is `whole` (K, n) where `mask` says so.

    Rows and columns of which nothing was heard are zero.
    """
    known = mask.to(whole)
    heard = whole * known
    columns = heard[int(heard.square().sum(1).argmax())].clone()
    rows = torch.zeros_like(heard[:, 0])
    for _ in range(_ROUNDS):
        before = rows
        rows = (heard @ columns) / (known @ columns.square()).clamp_min(1e-300)
        columns = (rows @ heard) / (rows.square() @ known).clamp_min(1e-300)
        if float((rows - before).norm()) <= _SETTLED * float(rows.norm()):
            break
    return rows, columns


def _scaled(
    direction: Tensor, features: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, float]:
    """Return delta = +-c `direction` (K,) that the softmax gives back, and by how much it does not.

    Args:
        direction: Of length 1.
        features: (features,), such that direction features^T is the weight gradient.
        weight: (K, features).
        bias: (K,) or None.
    """
    slope = weight @ features
    offset = torch.zeros_like(slope) if bias is None else bias

    def misfits(lengths: Tensor, sign: float) -> Tensor:
        delta = sign * lengths[:, None] * direction
        predicted = (sign * slope / lengths[:, None] + offset).softmax(1)
        predicted[:, int((sign * direction).argmin())] -= 1.0
        distance: Tensor = torch.linalg.vector_norm(predicted - delta, dim=1)
        return distance / lengths

    best, found = torch.inf, direction
    for sign in (1.0, -1.0):
        low, high = _SMALLEST, 2**0.5
        for zoom in range(_ZOOMS):
            steps = 2_000 if zoom == 0 else 40
            lengths = torch.logspace(
                torch.tensor(low).log10().item(),
                torch.tensor(high).log10().item(),
                steps,
                dtype=torch.float64,
                device=direction.device,
            )
            values = misfits(lengths, sign)
            place = int(values.argmin())
            low, high = (float(lengths[i]) for i in (max(place - 2, 0), min(place + 2, steps - 1)))
        if float(values[place]) < best:
            best, found = float(values[place]), sign * lengths[place] * direction
    return found, best
