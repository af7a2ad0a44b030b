"""Surrogate Model Extension (Zhu, Yao and Blaschko, 2023, https://arxiv.org/abs/2306.00127).

A client that trains for many steps goes from the weights w_0 to w_T. Somewhere near the straight
line between them lies a model, (1 - a) w_0 + a w_T, whose gradient on all of the client's data
points the way of the whole update. The images are searched for together with that a, by the cosine
between the gradient there and w_0 - w_T. Nothing is said about learning rate, steps, batches or
order, and a step costs one gradient, however many steps the client took.

Differs from the paper: Adam sees the sign of the gradient; labels are recovered, not given, unless
they are asked for as oracle knowledge (the scale of the update, which counting labels takes, is
estimated from the bias of classes that look absent); the guess returned is the best one on the way.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor
from torch.func import functional_call, grad

from attacks.matching.adam import adam
from attacks.matching.differentiable import check_twice_differentiable, require_twice_differentiable
from attacks.matching.objectives import cosine_distance
from attacks.matching.priors import total_variation
from attacks.matching.rows import GradientOf, by_rows
from attacks.matching.snapshots import Snapshots
from attacks.matching.victim import Victim, rebuild
from attacks.matching.victim_labels import granted_labels
from attacks.observation import (
    AttackFailed,
    Budget,
    Kind,
    Knowledge,
    LocalRecipe,
    Observation,
    Reconstruction,
    delta_of,
    only,
)
from attacks.recipe_estimate import labels_and_scale
from attacks.settings import (
    require_choice,
    require_counts,
    require_positive,
    require_weights,
)
from attacks.threats import ORACLE, WHITE_BOX, Capability

_NOISE = 0.25  # of the start, as a fraction of the range; about 1 in normalised pixels


@dataclass(frozen=True, kw_only=True)
class Surrogate:
    """Find the images that explain an update of many steps, at one model on the way.

    Attributes:
        steps: Steps of Adam.
        step_size: First step of the images, as a fraction of the input range.
        line_step_size: First step of the place on the line, which is from 0 to 1.
        start: Place on the line to start from: 0 is before training, 1 after.
        tv_weight: Weight of total variation against cosine distance.
        signed: Whether Adam sees only the sign of the gradient.
        restarts: Starts, run together; the guess with the lowest objective is returned.
        labels: "recover" counts them from the update; "oracle" is told them.
    """

    steps: int = 1_000
    step_size: float = 0.1
    line_step_size: float = 1e-3
    start: float = 0.5
    tv_weight: float = 1e-2
    signed: bool = True
    restarts: int = 1
    labels: Literal["recover", "oracle"] = "recover"

    def __post_init__(self) -> None:
        if not 0 <= self.start <= 1:
            raise ValueError(f"start must be from 0 to 1, got {self.start}")
        require_counts(self, "steps", "restarts")
        require_positive(self, "step_size")
        require_weights(self, "line_step_size", "tv_weight")
        require_choice(self, "labels", "recover", "oracle")

    @property
    def needs(self) -> frozenset[Capability]:
        """The weights in force, the model, what inputs look like, how many; oracle labels."""
        return WHITE_BOX | ORACLE if self.labels == "oracle" else WHITE_BOX

    def check(self, known: Knowledge) -> None:
        """Refuse models whose gradient cannot be differentiated again, and plain gradients."""
        if known.recipe is not None and known.recipe.learning_rate is None:
            raise AttackFailed(
                "clients send gradients, which have no line between two models; choose "
                "inverting-gradients"
            )
        check_twice_differentiable(known)

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

        The notes tell `place`, where on the line the surrogate ended, and `cosine_distance`.

        Raises:
            AttackFailed: The message is a gradient, the victim cannot be rebuilt
                (`attacks.matching.victim.rebuild`), the model is not twice differentiable, the
                labels are neither readable nor granted, or no start has a finite objective.
        """
        began = time.monotonic()
        line = line_through(only(seen), known, dtype=torch.float32)
        require_twice_differentiable(line.at_start)
        notes: dict[str, str | float] = {}
        if self.labels == "oracle":
            labels = granted_labels(known, line.batch_size, like=line.like)
            notes["labels"] = "oracle"
        else:
            labels, scale = labels_and_scale(line.at_start, line.move, known)
            notes["rate_times_steps"] = scale

        span = known.input_range[1] - known.input_range[0]

        def objective(point: Tensor, gradient: GradientOf) -> Tensor:
            distance = cosine_distance(gradient(point, labels), line.target)
            return distance + self.tv_weight * total_variation(line.images(point) / span)

        low, high = line.input_range
        num = line.batch_size * line.like.new_empty(line.input_shape).numel()
        noise = _NOISE * (high - low) * torch.randn(self.restarts, num, generator=rng)
        pixels = ((low + high) / 2 + noise).clamp(low, high).to(line.like)
        start = torch.cat((pixels, pixels.new_full((self.restarts, 1), self.start)), dim=1)
        sizes = pixels.new_full((num + 1,), self.step_size * (high - low))
        sizes[-1] = self.line_step_size
        lowest, highest = torch.full_like(sizes, low), torch.full_like(sizes, high)
        lowest[-1], highest[-1] = 0.0, 1.0
        snapshots = Snapshots(line.images, steps=self.steps, input_range=(low, high))
        found = adam(
            by_rows(objective, line),
            start,
            steps=self.steps,
            step_size=sizes,
            low=lowest,
            high=highest,
            signed=self.signed,
            budget=budget,
            on_step=snapshots.look,
        )
        best = int(found.values.argmin())
        if not bool(found.values[best].isfinite()):
            raise AttackFailed("the objective is not finite at any start")
        point = found.points[best]
        distance = cosine_distance(line.gradient(point, labels), line.target)
        return Reconstruction(
            inputs=line.images(point),
            labels=labels,
            matching_loss=float(found.values[best]),
            steps=found.steps,
            seconds=time.monotonic() - began,
            finished=found.finished,
            snapshots=snapshots.end(found.steps, found.points, found.values),
            notes=notes | {"place": float(point[-1]), "cosine_distance": float(distance.detach())},
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Line(Victim):
    """A victim whose weights are somewhere between those before and after training.

    Its guesses are packed: the images, flattened, and the place on the line as the last entry.

    Attributes:
        move: What training added to the weights, by parameter name; zero where not heard.
    """

    move: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def at_start(self) -> Victim:
        """The same victim at the weights before training, with plain guesses."""
        own = {name: getattr(self, name) for name in Victim.__dataclass_fields__}
        return Victim(**own)

    def images(self, point: Tensor) -> Tensor:
        """Return the images of a packed guess, (B, *input_shape)."""
        return point[:-1].view(-1, *self.input_shape)

    def gradient(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the gradient of a packed guess, (D + 1,), with the graph."""
        weights = dict(self.model.named_parameters())
        between = {name: weights[name] + inputs[-1] * self.move[name] for name in self.target}
        logits = functional_call(self.model, {**weights, **between}, (self.images(inputs),))
        found = torch.autograd.grad(
            self.loss(logits, targets),
            list(between.values()),
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return self._heard(dict(zip(between, found, strict=True)))

    def functional_gradient(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the same as `gradient`, for use inside the transforms of `torch.func`."""
        weights = {name: p.detach() for name, p in self.model.named_parameters()}

        def loss(between: dict[str, Tensor]) -> Tensor:
            logits = functional_call(self.model, {**weights, **between}, (self.images(inputs),))
            return self.loss(logits, targets)

        between = {name: weights[name] + inputs[-1] * self.move[name] for name in self.target}
        return self._heard(grad(loss)(between))


def line_through(seen: Observation, known: Knowledge, *, dtype: torch.dtype) -> Line:
    """Rebuild the victim behind an update of unknown recipe; its target is w_0 - w_T.

    Raises:
        AttackFailed: The message is a gradient, or see `attacks.matching.victim.rebuild`.
    """
    if seen.kind not in (Kind.DELTA, Kind.WEIGHTS):
        raise AttackFailed(
            f"a message of kind '{seen.kind}' does not tell the weights after local training; "
            "choose inverting-gradients"
        )
    taken = {name: -delta for name, delta in delta_of(seen).items()}
    mode = LocalRecipe(train_mode=known.recipe.train_mode if known.recipe else True)
    victim = rebuild(
        replace(seen, kind=Kind.GRADIENT, update=taken), replace(known, recipe=mode), dtype=dtype
    )
    own = {name: getattr(victim, name) for name in Victim.__dataclass_fields__}
    return Line(**own, move={name: -tensor for name, tensor in victim.target.items()})
