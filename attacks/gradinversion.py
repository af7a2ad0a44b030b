"""GradInversion (Yin et al., CVPR 2021, https://arxiv.org/abs/2104.07586).

Several seeds search at once for images whose gradient is the one heard, with little total
variation and no extreme pixels, whose statistics at every batch normalisation are those of the
client's batch, and which stay near the mean of all seeds, registered to each other. Adam with
warm-up, cosine schedule and Langevin noise; labels by the lowest entry of each class's row.

Batch statistics are a leak of the protocol: a client that sends its running statistics back gives
the exact mean and variance of its batch away, (after - (1 - m) before) / m for momentum m. Where
they were not sent, the running statistics in force are matched, as in the paper.

Differs from the paper: every term is free of units (the squared distance is relative to the
gradient heard, statistics to the wanted variances), so weights are ours; images are registered by
phase correlation and not by learned features; far fewer steps. By default labels are recovered by
the rule of `attacks.labels`, which allows duplicates; the paper's needs distinct labels.

Weak where it is most needed here: on deep ReLU networks the squared distance is hardly reduced in a
few hundred steps, with or without statistics, and the guess is no recognisable picture (measured
in docs/attacks). The paper takes 20,000 steps at ImageNet's resolution.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from attacks.matching.company import company_of
from attacks.matching.descent import ValueAndGrad, descend
from attacks.matching.differentiable import check_matchable, require_twice_differentiable
from attacks.matching.objectives import cosine_distance, squared_distance
from attacks.matching.priors import (
    Statistics,
    registered_mean,
    squared_size,
    statistics_distance,
    statistics_of,
    total_variation,
)
from attacks.matching.rows import Row, rows_of
from attacks.matching.snapshots import Snapshots
from attacks.matching.victim import Victim, rebuild
from attacks.matching.victim_labels import granted_labels, labels_of
from attacks.network import all_visible, known_architecture, trace
from attacks.observation import (
    AttackFailed,
    Budget,
    Kind,
    Knowledge,
    Observation,
    Reconstruction,
    only,
    require_one_step,
)
from attacks.threats import ORACLE, WHITE_BOX, Capability

_NOISE = 0.25
"""Standard deviation of a pixel of the start, as a fraction of the range."""
_PRECISION = 1e-9
"""Relative squared distance that single precision can tell from 0."""


@dataclass(frozen=True, kw_only=True)
class GradInversion:
    """Match the gradient and the batch statistics from several seeds that agree.

    Attributes:
        steps: Adam steps; 20,000 in the paper.
        warmup: Steps over which the step size rises.
        step_size: First step after that, as a fraction of the input range; about 0.1 in
            normalised pixels, as published.
        restarts: Seeds that search together and are held near their mean.
        matching: How gradients are compared: by their "squared" distance, as published, relative
            to the gradient heard, or by their "cosine" distance.
        tv_weight: Weight of total variation against that.
        size_weight: Weight of the mean squared distance from mid-grey.
        statistics_weight: Weight of the distance to the batch statistics.
        group_weight: Weight of the mean squared distance to the registered mean of the seeds.
        langevin: Noise added at every step, in units of the step size.
        statistics: "sent-back" follows from what the client sent back, "running" are those in
            force; "heard" takes the first if they were heard, else the second, else none.
        labels: "recover" reads them off the gradient; "minima" by the paper's rule; "oracle" is
            told them.
    """

    steps: int = 2_000
    warmup: int = 50
    step_size: float = 0.025
    restarts: int = 4
    matching: Literal["squared", "cosine"] = "squared"
    tv_weight: float = 1e-3
    size_weight: float = 1e-6
    statistics_weight: float = 0.1
    group_weight: float = 0.01
    langevin: float = 0.2
    statistics: Literal["heard", "sent-back", "running", "none"] = "heard"
    labels: Literal["recover", "minima", "oracle"] = "recover"

    def __post_init__(self) -> None:
        """Refuse numbers that would be silently meaningless."""
        for name in ("tv_weight", "size_weight", "statistics_weight", "group_weight", "langevin"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not self.step_size > 0:
            raise ValueError(f"step_size must be above 0, got {self.step_size}")
        for name, least in (("steps", 0), ("warmup", 0), ("restarts", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    @property
    def needs(self) -> frozenset[Capability]:
        """As other matching attacks; statistics where they are asked for; oracle labels."""
        needs = WHITE_BOX
        if self.statistics in ("sent-back", "running"):
            needs = needs | {Capability.BATCHNORM_STATISTICS}
        return needs | ORACLE if self.labels == "oracle" else needs

    def check(self, known: Knowledge) -> None:
        """Refuse several steps, and models whose gradient cannot be differentiated again."""
        require_one_step(known.recipe)
        check_matchable(known)

    def __call__(
        self,
        seen: Observation | Sequence[Observation],
        known: Knowledge,
        *,
        rng: torch.Generator,
        budget: Budget | None = None,
    ) -> Reconstruction:
        """Guess the batch behind one gradient.

        Shapes:
            seen.update: one tensor per parameter, shaped like it
            returns .inputs: (B, C, H, W), inside known.input_range
            returns .labels: (B,) int64

        Raises:
            AttackFailed: The victim cannot be rebuilt (`attacks.matching.victim.rebuild`), the
                update is several steps, the labels are neither readable nor granted, statistics
                asked for were not heard, or no seed has a finite objective.
        """
        began = time.monotonic()
        require_one_step(known.recipe)
        seen = only(seen)
        victim = rebuild(seen, known, dtype=torch.float32)
        require_twice_differentiable(victim)
        labels = self._labels(victim, known)
        source, wanted = self._wanted(seen, known_architecture(known)[0], victim.like)
        low, high = victim.input_range
        shape = (self.restarts, victim.batch_size, *victim.input_shape)
        noise = torch.randn(shape, generator=rng).to(victim.like)
        snapshots = Snapshots(lambda images: images, steps=self.steps, input_range=(low, high))
        found = descend(
            self._objective(victim, labels, wanted),
            ((low + high) / 2 + _NOISE * (high - low) * noise).clamp(low, high),
            steps=self.steps,
            step_size=self.step_size * (high - low),
            schedule="cosine",
            warmup=self.warmup,
            signed=False,
            shake=lambda: self.langevin * torch.randn(shape, generator=rng).to(victim.like),
            box=(low, high),
            tolerance=_PRECISION,
            budget=budget,
            on_step=snapshots.look,
        )
        best = int(found.values.argmin())
        if not bool(found.values[best].isfinite()):
            raise AttackFailed("the objective is not finite at any seed")
        notes: dict[str, str | float] = {"statistics": source, "normalisations": len(wanted)}
        if self.labels == "oracle":
            notes["labels"] = "oracle"
        return Reconstruction(
            inputs=found.points[best],
            labels=labels,
            matching_loss=float(found.values[best]),
            steps=found.steps,
            seconds=time.monotonic() - began,
            finished=found.finished,
            snapshots=snapshots.end(found.steps, found.points, found.values),
            notes=notes,
        )

    def _objective(
        self, victim: Victim, labels: Tensor, wanted: Mapping[str, Statistics]
    ) -> ValueAndGrad:
        low, high = victim.input_range
        span, square_norm = high - low, victim.square_norm

        def value(images: Tensor, row: Row) -> Tensor:
            gradient = row.gradient(images, cast(Tensor, row.labels))
            pixels = images / span
            if self.matching == "cosine":
                total = cosine_distance(gradient, row.target)
            else:
                total = squared_distance(gradient, row.target) / square_norm
            total = total + self.tv_weight * total_variation(pixels)
            total = total + self.size_weight * squared_size(pixels, (low + high) / 2 / span)
            if wanted and self.statistics_weight > 0:
                found = statistics_within(victim.model, images, wanted)
                total = total + self.statistics_weight * statistics_distance(found, wanted)
            return total

        rows = rows_of(
            value,
            company_of([victim]),
            owners=torch.zeros(self.restarts, dtype=torch.int64),
            labels=labels.expand(self.restarts, *labels.shape),
        )
        if self.restarts == 1 or self.group_weight == 0:
            return rows
        return agreeing(rows, weight=self.group_weight / span**2)

    def _wanted(
        self, seen: Observation, model: nn.Module, like: Tensor
    ) -> tuple[str, dict[str, Statistics]]:
        """Return where the statistics to match come from, and they, by layer."""
        found: dict[str, Statistics] = {}
        source = "none"
        if self.statistics in ("heard", "sent-back"):
            source, found = "sent-back", batch_statistics(seen, model)
        if self.statistics == "running" or (self.statistics == "heard" and not found):
            source, found = "running", running_statistics(seen, model)
        if not found and self.statistics in ("sent-back", "running"):
            raise AttackFailed(
                f"no {self.statistics} statistics of a batch normalisation were heard; grant "
                "'batchnorm-statistics', or set statistics = 'heard' to do without"
            )
        on_device = {
            name: Statistics(mean=one.mean.to(like), variance=one.variance.to(like))
            for name, one in found.items()
        }
        return source if found else "none", on_device

    def _labels(self, victim: Victim, known: Knowledge) -> Tensor:
        if self.labels == "recover":
            return labels_of(victim, known)
        if self.labels == "minima":
            return labels_by_minima(victim, known)
        return granted_labels(known, victim.batch_size, like=victim.like)


def batch_statistics(seen: Observation, model: nn.Module) -> dict[str, Statistics]:
    """Return the statistics of the client's batch, by normalisation layer, where they follow.

    They do from the running statistics before and after one step in training mode; not from the
    mean of several clients' messages, nor where nothing moved.
    """
    before, after = seen.buffers or {}, seen.buffers_after or {}
    found: dict[str, Statistics] = {}
    if seen.kind is Kind.AGGREGATE:
        return found
    for name, momentum in _normalisations(model).items():
        mean, variance = f"{name}.running_mean".lstrip("."), f"{name}.running_var".lstrip(".")
        if not momentum or not {mean, variance} <= before.keys() & after.keys():
            continue
        if torch.equal(before[mean], after[mean]) and torch.equal(
            before[variance], after[variance]
        ):
            continue
        batch = [
            (after[key].double() - (1 - momentum) * before[key].double()) / momentum
            for key in (mean, variance)
        ]
        found[name] = Statistics(mean=batch[0], variance=batch[1].clamp_min(0))
    return found


def running_statistics(seen: Observation, model: nn.Module) -> dict[str, Statistics]:
    """Return the running statistics in force, by layer, without those that were never updated."""
    found: dict[str, Statistics] = {}
    for name in _normalisations(model):
        mean, variance = (
            (seen.buffers or {}).get(f"{name}.{key}".lstrip("."))
            for key in ("running_mean", "running_var")
        )
        if mean is None or variance is None or not bool((mean.ne(0) | variance.ne(1)).any()):
            continue
        found[name] = Statistics(mean=mean, variance=variance)
    return found


def statistics_within(
    model: nn.Module, inputs: Tensor, layers: Mapping[str, object]
) -> dict[str, Statistics]:
    """Run `model` on inputs (B, ...) and return the statistics of what enters each of `layers`."""
    found: dict[str, Statistics] = {}

    def note(name: str, features: Tensor) -> None:
        found[name] = statistics_of(features)

    modules = dict(model.named_modules())
    hooks = [
        modules[name].register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs[0]))
        for name in layers
    ]
    constants = {name: weight.detach() for name, weight in model.named_parameters()}
    try:
        functional_call(model, constants, (inputs,))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def agreeing(rows: ValueAndGrad, *, weight: float) -> ValueAndGrad:
    """Hold rows (R, B, C, H, W) near their registered mean, which itself is not differentiated."""

    def evaluate(points: Tensor) -> tuple[Tensor, Tensor]:
        values, slopes = rows(points)
        away = points - registered_mean(points)
        size = away[0].numel()
        apart = away.square().flatten(1).mean(dim=1)
        return values + weight * apart, slopes + 2 * weight / size * away

    return evaluate


def labels_by_minima(victim: Victim, known: Knowledge) -> Tensor:
    """Return the B classes whose row of the classifier's gradient has the lowest entries.

    The rule of GradInversion: for distinct labels, and features that are not negative.

    Raises:
        AttackFailed: More examples than classes, or no classifier was heard completely.
    """
    classifier = trace(*known_architecture(known)).classifier()
    name = None if classifier is None else classifier.parameter("weight")
    if name is None or name not in victim.target or not all_visible(victim.visible, name):
        raise AttackFailed("the labels cannot be read: the classifier was not heard completely")
    lowest = victim.target[name].amin(dim=1)
    if victim.batch_size > len(lowest):
        raise AttackFailed(
            f"labels = 'minima' finds distinct labels, and {victim.batch_size} examples have more "
            f"than {len(lowest)} classes; use labels = 'recover'"
        )
    return lowest.argsort()[: victim.batch_size].sort().values


def _normalisations(model: nn.Module) -> dict[str, float | None]:
    """Return the momentum of every batch normalisation that keeps running statistics."""
    return {
        name: module.momentum
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }
