"""Inverting Gradients (Geiping et al., 2020, https://arxiv.org/abs/2003.14053).

Images whose gradient points the way the observed one does, with little total variation, by Adam
inside the pixel box.

Differs from the paper in how it searches, because that finds more in fewer steps (measured in
docs/attacks):

- Distance d and total variation V are multiplied, d exp(s V), not added: the descent then follows
  the relative change of d, plus s times that of V. What V may cost in distance shrinks with the
  distance that is left, so a gradient that gives the image away is not drawn aside at the end, and
  one that holds noise keeps its prior. Cosine distances of mid-grey vary by a factor of 20 from
  one network to the next; no fixed weight of a sum fits all, and none is left to choose. (With d^2
  the mean of independent errors of unknown size, log d + s V is what that size's maximum leaves of
  the likelihood: the idea of the square-root lasso, Belloni et al., 2011, arXiv 1009.5689.)
- s grows with the side of the image: neighbours of the same picture differ less the finer it is
  sampled, and V times the side is about the same at every size.
- The start is mid-grey and not noise; the step size falls along a cosine to the end of the steps
  asked for; total variation is rounded off at 0.
- Adam sees the gradient's sign, as published, only at models with ReLU (or another kink) and batch
  normalisation; at smooth models and plain perceptrons it sees the gradient itself.

`PUBLISHED` has the settings of the paper. Either way the labels are read off the gradient for any
batch size, unless they are asked for as oracle knowledge; there is one restart unless more are
asked for; and the guess returned is the best on the way, not the last.

As a start, images may first be searched for among those that an untrained network can make; see
`attacks.matching.deep_image_prior`. Parts of FedLeak may be switched on; see `attacks.fedleak`.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from attacks.matching.company import companies, company_of
from attacks.matching.coordinates import Coordinates
from attacks.matching.deep_image_prior import Generator
from attacks.matching.descent import Descent, Schedule, ValueAndGrad, descend
from attacks.matching.differentiable import check_matchable, require_twice_differentiable
from attacks.matching.kinks import has_kinks, is_normalised
from attacks.matching.objectives import chord, cosine_distance
from attacks.matching.partial import Choice, Partial, Parts, flattened
from attacks.matching.priors import total_variation
from attacks.matching.rows import Row, rows_of
from attacks.matching.snapshots import Snapshots
from attacks.matching.victim import Victim, rebuild
from attacks.matching.victim_labels import granted_labels, labels_of
from attacks.observation import (
    AttackFailed,
    Budget,
    Knowledge,
    Observation,
    Reconstruction,
    only,
)
from attacks.threats import ORACLE, WHITE_BOX, Capability

Start = Literal["grey", "noise", "deep-image-prior"]
"""Where a search begins: see `InvertingGradients.start`."""

_NOISE = 0.25
"""Standard deviation of a pixel of a noisy start, as a fraction of the range; about 1 in
normalised pixels, as published."""
_PRECISION = 1e-7
"""What a cosine in single precision can tell from 1."""
_NEAR = 1e-3
"""How far ahead the gradient penalty looks, per pixel, as a fraction of the range."""
_TV_SHARE = 1 / 64
"""By how much the logarithm of the distance may rise for a unit of total variation, per pixel of
the image's side."""
_GENERATOR_STEP = 1e-2
"""First step of the generator's weights, which are of the order of 0.1."""

PUBLISHED: Mapping[str, Any] = {
    "steps": 4_800,
    "step_size": 0.025,
    "schedule": "step",
    "signed": True,
    "start": "noise",
    "tv_weight": 4e-4,
    "tv_smoothing": 0.0,
}
"""Settings of the paper, for pixels in [0, 1] with a standard deviation of 1/4 per channel.

There they are 0.1 and 1e-4 for normalised pixels; the total variation varied from 1e-6 to 1e-1."""


@dataclass(frozen=True, kw_only=True)
class InvertingGradients:
    """Find the images whose gradient points the way the observed one does.

    Attributes:
        steps: Adam steps.
        step_size: First step, as a fraction of the input range (1.0 is black to white).
        schedule: "cosine" lowers it smoothly to 0; "step" divides it by 10 at 3/8, 5/8 and 7/8 of
            the steps, as published.
        signed: Give Adam the gradient's sign, as published, instead of the gradient; None does so
            for models with both kinked activations and normalisation layers.
        start: "grey" is mid-grey, for restarts after the first smooth clouds about it; "noise" is
            mid-grey plus noise, as published; "deep-image-prior" is what an untrained network
            makes after `prior_steps`.
        prior_steps: Steps of that network's weights, before `steps` among pixels.
        tv_weight: Weight of total variation added to the cosine distance, as published; None
            multiplies the two instead, see the module.
        tv_smoothing: Difference of neighbours below which total variation is rounded off, as a
            fraction of the input range; 0 is the published one.
        restarts: Starts, run together; the guess with the lowest objective is returned.
        labels: "recover" reads them off the gradient; "oracle" is told them.
        matched_share: Share of the gradient's entries that are compared; see FedLeak.
        matched_choice: Which: the "largest" ones heard, or "random" ones at every step.
        gradient_penalty: 0 to 1: how much flat minima are preferred, at twice the time; see
            FedLeak.
    """

    steps: int = 1_500
    step_size: float = 0.1
    schedule: Schedule = "cosine"
    signed: bool | None = None
    start: Start = "grey"
    prior_steps: int = 500
    tv_weight: float | None = None
    tv_smoothing: float = 0.01
    restarts: int = 1
    labels: Literal["recover", "oracle"] = "recover"
    matched_share: float = 1.0
    matched_choice: Choice = "largest"
    gradient_penalty: float = 0.0

    def __post_init__(self) -> None:
        """Refuse numbers that would be silently meaningless."""
        for name in ("tv_weight", "tv_smoothing"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not self.step_size > 0:
            raise ValueError(f"step_size must be above 0, got {self.step_size}")
        for name, least in (("steps", 0), ("prior_steps", 0), ("restarts", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.gradient_penalty <= 1:
            raise ValueError(f"gradient_penalty must be from 0 to 1, got {self.gradient_penalty}")
        Partial(share=self.matched_share, choice=self.matched_choice)

    @property
    def needs(self) -> frozenset[Capability]:
        """The weights in force, the model, what inputs look like, how many; oracle labels."""
        return WHITE_BOX | ORACLE if self.labels == "oracle" else WHITE_BOX

    def check(self, known: Knowledge) -> None:
        """Refuse what cannot be replayed, and models whose gradient has no second derivative."""
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
                model is not twice differentiable, the labels are neither readable nor granted,
                or no start has a finite objective.
        """
        (found,) = self.many([only(seen)], [known], rngs=[rng], budget=budget)
        if isinstance(found, AttackFailed):
            raise found
        return found

    def many(
        self,
        seen: Sequence[Observation],
        known: Sequence[Knowledge],
        *,
        rngs: Sequence[torch.Generator],
        budget: Budget | None = None,
    ) -> list[Reconstruction | AttackFailed]:
        """Guess the batch behind each gradient, victims of one architecture together.

        Shapes: as for one. `seconds` is the time of all that were computed together.
        """
        found: dict[int, Reconstruction | AttackFailed] = {}
        ready: list[tuple[int, Victim, Tensor]] = []
        for place, (one, what) in enumerate(zip(seen, known, strict=True)):
            try:
                victim = rebuild(one, what, dtype=torch.float32)
                require_twice_differentiable(victim)
                ready.append((place, victim, self._labels(victim, what)))
            except AttackFailed as failure:
                found[place] = failure
        for group in companies([victim for _, victim, _ in ready]) if ready else []:
            places = [ready[k][0] for k in group]
            together = _Together(
                self,
                [ready[k][1] for k in group],
                [ready[k][2] for k in group],
                [rngs[place] for place in places],
            )
            found.update(zip(places, together.run(budget), strict=True))
        return [found[place] for place in range(len(seen))]

    def _labels(self, victim: Victim, known: Knowledge) -> Tensor:
        if self.labels == "recover":
            return labels_of(victim, known)
        return granted_labels(known, victim.batch_size, like=victim.like)


class _Together:
    """One search at V victims, `restarts` rows each."""

    def __init__(
        self,
        attack: InvertingGradients,
        victims: Sequence[Victim],
        labels: Sequence[Tensor],
        rngs: Sequence[torch.Generator],
    ) -> None:
        self.attack = attack
        self.victims = victims
        self.labels = labels
        self.rngs = rngs
        self.first = victims[0]
        self.like = self.first.like
        self.low, self.high = self.first.input_range
        self.company = company_of(victims)
        by_architecture = has_kinks(self.first) and is_normalised(self.first)
        self.signed = by_architecture if attack.signed is None else attack.signed
        self.tv_share = _TV_SHARE * math.sqrt(math.prod(self.first.input_shape[-2:]))
        numbers = torch.arange(len(victims), device=self.like.device)
        self.owners = numbers.repeat_interleave(attack.restarts)

    def run(self, budget: Budget | None) -> list[Reconstruction | AttackFailed]:
        """Search, and return one guess, or the failure, per victim."""
        began = time.monotonic()
        attack, span = self.attack, self.high - self.low
        if attack.start == "deep-image-prior":
            before, start = self._from_generator(budget)
        else:
            before, start = 0, self._from_grey()
        snapshots = [
            Snapshots(
                lambda images: images,
                steps=before + attack.steps,
                input_range=self.first.input_range,
                rng=rng,
            )
            for rng in self.rngs
        ]

        def look(step: int, points: Tensor, values: Tensor) -> None:
            for one, mine, its in zip(
                snapshots, self._split(points), self._split(values), strict=True
            ):
                one.look(before + step, mine, its)

        found = descend(
            self._objective(
                lambda images, _: images, radius=_NEAR * span * start[0].numel() ** 0.5
            ),
            start,
            steps=attack.steps,
            step_size=attack.step_size * span,
            schedule=attack.schedule,
            signed=self.signed,
            box=self.first.input_range,
            tolerance=_PRECISION,
            groups=self.owners,
            budget=budget,
            on_step=look,
        )
        seconds = time.monotonic() - began
        return [
            self._result(number, points, values, found, before, seconds, snapshots[number])
            for number, (points, values) in enumerate(
                zip(self._split(found.points), self._split(found.values), strict=True)
            )
        ]

    def _result(
        self,
        number: int,
        points: Tensor,
        values: Tensor,
        found: Descent,
        before: int,
        seconds: float,
        snapshots: Snapshots,
    ) -> Reconstruction | AttackFailed:
        best = int(values.argmin())
        if not bool(values[best].isfinite()):
            return AttackFailed("the objective is not finite at any start")
        steps = before + found.steps
        return Reconstruction(
            inputs=points[best],
            labels=self.labels[number],
            matching_loss=float(values[best]),
            steps=steps,
            seconds=seconds,
            finished=found.finished,
            snapshots=snapshots.end(steps, points, values),
            notes={
                "adam_sees": "signs" if self.signed else "slopes",
                **({"labels": "oracle"} if self.attack.labels == "oracle" else {}),
            },
        )

    def _from_grey(self) -> Tensor:
        """Draw starts about mid-grey, (V restarts, B, C, H, W)."""
        attack, first, span = self.attack, self.first, self.high - self.low
        shape = (first.batch_size, *first.input_shape)
        coordinates = Coordinates(first.input_shape, first.input_range, like=self.like)
        starts = []
        for rng in self.rngs:
            for restart in range(attack.restarts):
                if attack.start == "noise":
                    start = (self.low + self.high) / 2 + _NOISE * span * torch.randn(
                        shape, generator=rng
                    ).to(self.like)
                elif restart == 0:
                    start = self.like.new_full(shape, (self.low + self.high) / 2)
                else:
                    start = coordinates.inputs(coordinates.clouds(first.batch_size, rng=rng))
                starts.append(start.clamp(self.low, self.high))
        return torch.stack(starts)

    def _from_generator(self, budget: Budget | None) -> tuple[int, Tensor]:
        """Return the steps taken, and the images that untrained networks came to make."""
        if len(self.first.input_shape) != 3:
            raise AttackFailed("start = 'deep-image-prior' makes images, and inputs are none")
        channels, height, width = self.first.input_shape
        generator = Generator(
            self.first.batch_size,
            (channels, height, width),
            self.first.input_range,
            like=self.like,
        )
        drawn = [generator.draw(rng) for rng in self.rngs for _ in range(self.attack.restarts)]
        weights, codes = (torch.stack(some) for some in zip(*drawn, strict=True))
        found = descend(
            self._objective(
                lambda point, row: generator.images(point, row.own["code"]),
                radius=_NEAR * generator.size**0.5,
                code=codes,
            ),
            weights,
            steps=self.attack.prior_steps,
            step_size=_GENERATOR_STEP,
            schedule="cosine",
            signed=False,
            box=(-torch.inf, torch.inf),
            groups=self.owners,
            budget=budget,
        )
        made = [generator.images(*both) for both in zip(found.points, codes, strict=True)]
        return found.steps, torch.stack(made)

    def _objective(
        self, images_of: Callable[[Tensor, Row], Tensor], *, radius: float, **own: Tensor
    ) -> ValueAndGrad:
        """Return values and gradients of all rows; see `descend`.

        Args:
            images_of: What a row's point stands for.
            radius: How far ahead the gradient penalty looks.
            own: What `images_of` needs, row by row.
        """
        attack, span = self.attack, self.high - self.low
        parts = Parts(
            Partial(share=attack.matched_share, choice=attack.matched_choice),
            self.company,
            owners=self.owners,
            rngs=self.rngs,
            steps=max(attack.steps, attack.prior_steps),
        )

        def value(point: Tensor, row: Row) -> Tensor:
            images = images_of(point, row)
            guess, aim = parts.of(row.gradient(images, cast(Tensor, row.labels)), row)
            varying = total_variation(images / span, smoothing=attack.tv_smoothing)
            if attack.tv_weight is None:
                return chord(guess, aim) * (self.tv_share * varying).exp()
            return cosine_distance(guess, aim) + attack.tv_weight * varying

        parts.own.update(own)
        labels = torch.stack(list(self.labels))[self.owners]
        evaluate: ValueAndGrad = rows_of(
            value, self.company, owners=self.owners, labels=labels, own=parts.own
        )
        if attack.gradient_penalty > 0:
            evaluate = flattened(evaluate, share=attack.gradient_penalty, radius=radius)
        return parts.turning(evaluate)

    def _split(self, of_rows: Tensor) -> tuple[Tensor, ...]:
        """Split what belongs to rows among the victims."""
        return torch.split(of_rows, self.attack.restarts)
