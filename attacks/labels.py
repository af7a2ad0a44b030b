"""Labels read off the gradient of the classifier.

The classifier is the linear layer that gives the logits, and the loss is cross-entropy, so the
bias gradient of class k is (sum of p_jk over the batch - number of examples of class k) / B.

One example: the class with the smallest bias gradient or, without a bias, the smallest row sum
of the weight gradient (iDLG; Zhao et al., 2020, https://arxiv.org/abs/2001.02610).
Several: every example of a class takes exactly 1/B off its bias gradient, so give labels out one
by one, each to the class that is lowest, and put 1/B back (the idea of LLG; Wainakh et al., 2022,
https://arxiv.org/abs/2105.09369; they estimate the 1/B, which goes wrong for B > K).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.network import Trace, all_visible, known_architecture, trace
from attacks.observation import (
    AttackFailed,
    Budget,
    Knowledge,
    Observation,
    Reconstruction,
    Tensors,
    gradient_of,
    only,
    require_one_step,
)
from attacks.threats import Capability


def recover_labels(
    gradient: Tensors,
    *,
    classifier_weight: str | None,
    classifier_bias: str | None,
    batch_size: int,
    num_classes: int,
) -> Tensor:
    """Guess the labels of a batch from the classifier's gradient, with the bias if it has one.

    With the bias: exact for one example, and for any B, duplicates included, when the mean
    predicted probabilities are uniform; a class with a negative bias gradient is there for sure.
    Row sums are less exact: they assume features of positive sum, and estimate it for B > 1.

    Args:
        gradient: Gradient of the mean cross-entropy, by parameter name.
        classifier_weight: Name of the classifier's weight, (K, features).
        classifier_bias: Name of its bias, (K,).
        batch_size: B.
        num_classes: K.

    Returns:
        The labels in ascending order, shape (B,), int64.

    Raises:
        AttackFailed: The gradient holds neither, is not finite, or is zero for one example.
    """
    if classifier_bias in gradient and classifier_bias is not None:
        signal = batch_size * gradient[classifier_bias].double()
    elif classifier_weight in gradient and classifier_weight is not None:
        signal = _in_examples(gradient[classifier_weight].double().sum(1), batch_size)
    else:
        raise AttackFailed("labels are read off the classifier's gradient, which was not heard")
    if signal.shape != (num_classes,):
        raise AttackFailed(
            f"the classifier has {signal.numel()} outputs, expected {num_classes} classes"
        )
    if not bool(signal.isfinite().all()):
        raise AttackFailed("the classifier's gradient is not finite")
    if batch_size == 1 and not bool(signal.any()):
        raise AttackFailed("the classifier's gradient is zero: it says nothing about labels")
    return _give_out(signal.tolist(), batch_size).to(signal.device)


def read_labels(
    gradient: Tensors, traced: Trace, *, visible: Tensors | None, batch_size: int
) -> Tensor | None:
    """Return `recover_labels` for the classifier found in `traced`.

    Returns:
        The labels, (B,) int64; None when there is no classifier or its gradient was not
        heard completely.
    """
    classifier = traced.classifier()
    if classifier is None:
        return None
    weight, bias = (
        name if name in gradient and all_visible(visible, name) else None
        for name in (classifier.parameter("weight"), classifier.parameter("bias"))
    )
    if weight is None and bias is None:
        return None
    return recover_labels(
        gradient,
        classifier_weight=weight,
        classifier_bias=bias,
        batch_size=batch_size,
        num_classes=traced.outputs.shape[1],
    )


def _in_examples(row_sums: Tensor, batch_size: int) -> Tensor:
    """Scale row sums (K,) so that one example weighs about 1.

    A row sum is the bias gradient times the sum of the features, which is unknown. With uniform
    predictions, 1/K each, two bounds from below hold for it: the negative rows add up to at most
    what B examples take off them, and no row exceeds 1/K. The second is close only where
    predictions average out, so it counts for B > K.
    """
    num_classes = len(row_sums)
    negative = row_sums < 0
    scale = -row_sums[negative].sum() / (1 - negative.double().mean())
    if batch_size > num_classes:
        scale = torch.maximum(scale, num_classes * row_sums.max())
    return batch_size * row_sums / scale if scale > 0 else row_sums


def _give_out(signal: list[float], batch_size: int) -> Tensor:
    """Give `batch_size` labels out, each to the class whose entry of `signal` is lowest.

    Negative entries come first, each once: their sign is certain even where the scale is not.
    """
    present = sorted((k for k, value in enumerate(signal) if value < 0), key=signal.__getitem__)
    labels = present[:batch_size]
    for label in labels:
        signal[label] += 1.0
    while len(labels) < batch_size:
        lowest = min(range(len(signal)), key=signal.__getitem__)
        labels.append(lowest)
        signal[lowest] += 1.0
    return torch.tensor(sorted(labels), dtype=torch.int64)


@dataclass(frozen=True, kw_only=True)
class LabelRule:
    """Recover the labels alone; see the module for the rule."""

    @property
    def needs(self) -> frozenset[Capability]:
        """The architecture and how many labels there are."""
        return frozenset({Capability.ARCHITECTURE, Capability.BATCH_SIZE})

    def check(self, known: Knowledge) -> None:
        """Refuse several steps, and models whose logits no linear layer gives."""
        require_one_step(known.recipe)
        _counted(known)

    def __call__(
        self,
        seen: Observation | Sequence[Observation],
        known: Knowledge,
        *,
        rng: torch.Generator,  # noqa: ARG002 - a rule, nothing is drawn
        budget: Budget | None = None,  # noqa: ARG002 - takes milliseconds
    ) -> Reconstruction:
        """Guess the labels behind one update.

        Raises:
            AttackFailed: No linear layer gives the logits, or its gradient was not heard.
        """
        start = time.monotonic()
        seen = only(seen)
        traced, batch_size = _counted(known)
        labels = read_labels(
            gradient_of(seen, known.recipe),
            traced,
            visible=seen.visible,
            batch_size=batch_size,
        )
        if labels is None:
            raise AttackFailed("the classifier's gradient was not heard completely")
        return Reconstruction(inputs=None, labels=labels, seconds=time.monotonic() - start)


def _counted(known: Knowledge) -> tuple[Trace, int]:
    """Return the model's trace and the number of labels to count."""
    model, input_shape = known_architecture(known)
    if known.batch_size is None:
        raise AttackFailed("counting labels needs their number; grant 'batch-size'")
    traced = trace(model, input_shape)
    if traced.classifier() is None:
        raise AttackFailed("no linear layer of this model gives the logits")
    return traced, known.batch_size
