"""Data leakage in federated averaging (Dimitrov et al., 2022, https://arxiv.org/abs/2206.12395).

A client that passes over its data several times shuffles them every time, and nobody sees how. So
every epoch gets images of its own, the replay trains on each epoch's in turn, and a prior ties the
epochs together by what does not depend on the order. Early layers count more in the distance. At
the end the epochs' images are paired with each other and averaged.

Which label is in which batch is not known either, in the first epoch as in the others, and a wrong
guess spoils the replay: on the digits, with rate 0.1, the right one is worth 30 dB. So several
arrangements are tried for some steps, and the one that comes closest goes on.

Differs from the paper: the order-invariant prior compares sums per class, not over all images: the
labels are recovered, and the order among classes is what they give away; cosine instead of squared
distance; signed Adam in the pixel box; arrangements of labels are tried, where the paper draws one.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from attacks.matching.company import company_of
from attacks.matching.descent import Descent, descend
from attacks.matching.differentiable import check_matchable, require_twice_differentiable
from attacks.matching.objectives import cosine_distance
from attacks.matching.priors import total_variation
from attacks.matching.replay import Plan
from attacks.matching.rows import Row, rows_of
from attacks.matching.snapshots import Snapshots
from attacks.matching.victim import Victim, rebuild
from attacks.matching.victim_labels import labels_of
from attacks.observation import (
    AttackFailed,
    Budget,
    Knowledge,
    Observation,
    Reconstruction,
    Tensors,
    only,
)
from attacks.settings import require_counts, require_positive, require_weights
from attacks.threats import WHITE_BOX, Capability

_NOISE = 0.25  # of the start, as a fraction of the range; about 1 in normalised pixels
_TRIES = 20  # draws per arrangement wanted: few examples have few different ones
_PRECISION = 1e-7  # what a cosine in single precision can tell from 1


@dataclass(frozen=True, kw_only=True)
class FedAvgEpochs:
    """Find the images behind several epochs of local training in an order that nobody saw.

    Attributes:
        steps: Signed Adam steps of the best arrangement.
        step_size: First step, as a fraction of the input range; it falls to 0 along a cosine.
        tv_weight: Weight of total variation against cosine distance.
        order_weight: Weight of the prior that epochs show the same images.
        layer_decay: Factor on a layer's gradient, over that of the layer before it; published is a
            factor of 1/e on its square.
        arrangements: Ways to assign labels to batches that are tried; equal ones are tried once.
        trial_steps: Steps that every arrangement is tried for.
    """

    steps: int = 400
    step_size: float = 0.1
    tv_weight: float = 2e-4
    order_weight: float = 0.01
    layer_decay: float = 0.6
    arrangements: int = 8
    trial_steps: int = 80

    def __post_init__(self) -> None:
        require_counts(self, "steps", "arrangements", "trial_steps")
        require_positive(self, "step_size", "layer_decay")
        require_weights(self, "tv_weight", "order_weight")

    @property
    def needs(self) -> frozenset[Capability]:
        """What matching needs, and how clients train."""
        return WHITE_BOX | {Capability.LOCAL_RECIPE}

    def check(self, known: Knowledge) -> None:
        """Refuse gradients, too many steps, and models that are not twice differentiable."""
        if known.recipe is not None and known.recipe.learning_rate is None:
            raise AttackFailed("clients send gradients, not updates; choose inverting-gradients")
        check_matchable(known)

    def __call__(
        self,
        seen: Observation | Sequence[Observation],
        known: Knowledge,
        *,
        rng: torch.Generator,
        budget: Budget | None = None,
    ) -> Reconstruction:
        """Guess the data behind one update.

        Shapes:
            seen.update: one tensor per parameter, shaped like it
            returns .inputs: (B, C, H, W), inside known.input_range
            returns .labels: (B,) int64

        The notes tell how many arrangements were tried, and `disagreement`, how far the images of
        the epochs are from each other, as a root mean square.

        Raises:
            AttackFailed: The message is one gradient, the victim cannot be rebuilt
                (`attacks.matching.victim.rebuild`), the model is not twice differentiable, the
                labels cannot be read, or no start has a finite objective.
        """
        began = time.monotonic()
        once = rebuild(only(seen), known, dtype=torch.float32)
        if once.plan is None:
            raise AttackFailed("the update is one gradient; choose inverting-gradients")
        require_twice_differentiable(once)
        victim, num_epochs = each_epoch_its_own(once, once.plan)
        labels = arrange(
            labels_of(once, known), once.plan, num_epochs, most=self.arrangements, rng=rng
        )
        low, high = victim.input_range
        size = (num_epochs, victim.batch_size, *victim.input_shape)
        noise = _NOISE * (high - low) * torch.randn(len(labels), *size, generator=rng)
        start = ((low + high) / 2 + noise).clamp(low, high).to(victim.like)
        trial = self._run(victim, labels, start, self.trial_steps, budget, None)
        best = trial.values.argmin()[None]
        snapshots = Snapshots(
            lambda images: _merge(images, labels[best[0]])[0],
            steps=self.steps,
            input_range=victim.input_range,
        )
        found = self._run(victim, labels[best], trial.points[best], self.steps, budget, snapshots)
        value = float(found.values[0])
        if not math.isfinite(value):
            raise AttackFailed("the objective is not finite at any start")
        chosen = labels[best[0]]
        inputs, disagreement = _merge(found.points[0], chosen)
        return Reconstruction(
            inputs=inputs,
            labels=chosen[0],
            matching_loss=value,
            steps=trial.steps + found.steps,
            seconds=time.monotonic() - began,
            finished=trial.finished and found.finished,
            snapshots=snapshots.end(found.steps, found.points, found.values),
            notes={
                "arrangements": float(len(labels)),
                "disagreement": disagreement,
                "distance_after_trial": float(trial.values.min()),
                "median_distance_after_trial": float(trial.values.median()),
            },
        )

    def _run(
        self,
        victim: Victim,
        labels: Tensor,
        start: Tensor,
        steps: int,
        budget: Budget | None,
        snapshots: Snapshots | None,
    ) -> Descent:
        """Descend from `start`, (R, E, B, ...), each row with its arrangement, (R, E, B)."""
        weights = layer_weights(victim.target, self.layer_decay)
        target = {name: weights[name] * tensor for name, tensor in victim.target.items()}

        low, high = victim.input_range
        span = high - low

        def objective(images: Tensor, row: Row) -> Tensor:
            assert row.labels is not None  # noqa: S101 - given to `rows_of` below
            gradient = row.gradient(images.flatten(0, 1), row.labels.flatten())
            weighted = {name: weights[name] * tensor for name, tensor in gradient.items()}
            return (
                cosine_distance(weighted, target)
                + self.tv_weight * total_variation(images / span)
                + self.order_weight * epochs_differ(images / span, row.own["classes"])
            )

        return descend(
            rows_of(
                objective,
                company_of([victim]),
                owners=torch.zeros(len(labels), dtype=torch.int64),
                labels=labels,
                own={"classes": functional.one_hot(labels, victim.num_classes).to(victim.like)},
            ),
            start,
            steps=steps,
            step_size=self.step_size * span,
            schedule="cosine",
            box=(low, high),
            tolerance=_PRECISION,
            budget=budget,
            on_step=None if snapshots is None else snapshots.look,
        )


def each_epoch_its_own(victim: Victim, plan: Plan) -> tuple[Victim, int]:
    """Return a victim whose guesses hold B examples for every epoch, and the number of epochs."""
    spread: list[tuple[int, int]] = []
    epoch = -1
    for first, end in plan:
        epoch += first == 0
        spread.append((epoch * victim.batch_size + first, epoch * victim.batch_size + end))
    return replace(victim, plan=tuple(spread)), epoch + 1


def arrange(
    labels: Tensor, plan: Plan, num_epochs: int, *, most: int, rng: torch.Generator
) -> Tensor:
    """Draw different ways in which labels may lie in the batches of every epoch, (R, E, B).

    The first is the same in every epoch; the order inside a batch makes no difference.

    Args:
        labels: Shape (B,).
        plan: The batches, every epoch with the same examples.
        num_epochs: E.
        most: Most arrangements.
        rng: Draws them.
    """
    sizes = [end - first for first, end in plan[: _epoch_length(plan)]]
    sizes += [len(labels) - sum(sizes)]  # beyond the last step, if it ends within an epoch

    def in_batches(order: Tensor) -> Tensor:
        return torch.cat([part.sort().values for part in torch.split(order, sizes)])

    given = labels.cpu()
    found = [in_batches(given).expand(num_epochs, -1)]
    for _ in range(_TRIES * most):
        if len(found) == most:
            break
        drawn = torch.stack(
            [
                in_batches(given[torch.randperm(len(given), generator=rng)])
                for _ in range(num_epochs)
            ]
        )
        if not any(torch.equal(drawn, other) for other in found):
            found.append(drawn)
    return torch.stack(found).to(labels.device)


def _epoch_length(plan: Plan) -> int:
    """Return the number of steps in the first epoch."""
    return next((step for step, (first, _) in enumerate(plan) if step and first == 0), len(plan))


def epochs_differ(images: Tensor, classes: Tensor) -> Tensor:
    """Return how much the epochs' sums per class vary, as a mean square per pixel and image.

    It is 0 when every epoch shows the same images, in whatever order.

    Args:
        images: Shape (E, B, ...).
        classes: One-hot labels, (E, B, K).
    """
    sums = torch.einsum("ebk,ebd->ekd", classes, images.flatten(2))
    return (sums - sums.mean(dim=0)).square().sum() / images.numel()


def layer_weights(gradient: Tensors, decay: float) -> dict[str, float]:
    """Return a weight for every parameter, 1 for the first layer's, times `decay` per layer."""
    layers: list[str] = []
    for name in gradient:
        layer = name.rpartition(".")[0]
        if layer not in layers:
            layers.append(layer)
    return {name: decay ** layers.index(name.rpartition(".")[0]) for name in gradient}


def _merge(images: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """Pair the epochs' images with those of the first, class by class, and average them.

    Args:
        images: Shape (E, B, ...).
        labels: Shape (E, B).

    Returns:
        Images (B, ...) in the order of the first epoch, and the root mean square of what the
        epochs differ by.
    """
    from scipy.optimize import linear_sum_assignment  # importing it takes a while

    first = images[0].flatten(1)
    paired = [first]
    for other, their in zip(images[1:], labels[1:], strict=True):
        cost = torch.cdist(first, other.flatten(1)).square()
        cost = torch.where(labels[0][:, None] == their[None], cost, cost.sum() + 1)
        _, columns = linear_sum_assignment(cost.cpu().numpy())
        paired.append(other.flatten(1)[torch.from_numpy(columns).to(images.device)])
    together = torch.stack(paired)
    mean = together.mean(dim=0)
    return mean.view_as(images[0]), float((together - mean).square().mean().sqrt())
