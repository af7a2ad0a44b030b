"""Several rounds of the same data, joined into one attack.

The idea of TGIAs-RO (Li et al., 2023, https://arxiv.org/abs/2306.07883), with parts of our own.

A client with little data uses the same examples in every round. Each round then is one more set of
equations for the same images, at other weights: what one message lacks (masked, noisy, saturated),
another one has. One guess is matched to all rounds at once: the mean, or the median, of the rounds'
cosine distances, with total variation, by signed Adam inside the pixel box as Inverting Gradients.

It holds only if the rounds share their data, which nobody tells the attacker. It looks at two
signs: labels that were counted differently in different rounds, and rounds that stay far from the
guess while a guess at one of them alone comes close. The note `shared_data` says what it saw.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attacks.matching.descent import Descent, descend
from attacks.matching.differentiable import MatchingAttack, require_twice_differentiable
from attacks.matching.objectives import cosine_distance
from attacks.matching.priors import total_variation
from attacks.matching.rows import GradientOf, by_rows
from attacks.matching.snapshots import Snapshots
from attacks.matching.victim import Victim, rebuild
from attacks.matching.victim_labels import labels_of
from attacks.observation import (
    AttackFailed,
    Budget,
    Knowledge,
    Observation,
    Reconstruction,
    rounds_of,
)
from attacks.settings import (
    require_choice,
    require_counts,
    require_positive,
    require_weights,
)

_NOISE = 0.25  # of the start, as a fraction of the range; about 1 in normalised pixels
_PRECISION = 1e-7  # what a cosine in single precision can tell from 1
_FAR = 10.0
"""Distance of the joint guess, over that of a guess at one round alone, that speaks against it."""


@dataclass(frozen=True, kw_only=True)
class Temporal(MatchingAttack):
    """Find the images behind several rounds of a client that used the same ones in each.

    Attributes:
        steps: Signed Adam steps.
        step_size: First step, as a fraction of the input range; it falls to 0 along a cosine.
        tv_weight: Weight of total variation against cosine distance.
        combine: "mean" of the rounds' distances; "median" forgives a minority of bad rounds.
        restarts: Starts, run together; the guess with the lowest objective is returned.
        alone_steps: Steps of a guess at the last round alone, to tell whether rounds share data;
            0 leaves it out.
    """

    steps: int = 1_000
    step_size: float = 0.1
    tv_weight: float = 1e-4
    combine: Literal["mean", "median"] = "mean"
    restarts: int = 1
    alone_steps: int = 100

    joins = True

    def __post_init__(self) -> None:
        require_counts(self, "steps", "restarts")
        require_counts(self, "alone_steps", least=0)
        require_positive(self, "step_size")
        require_weights(self, "tv_weight")
        require_choice(self, "combine", "mean", "median")

    def __call__(
        self,
        seen: Observation | Sequence[Observation],
        known: Knowledge,
        *,
        rng: torch.Generator,
        budget: Budget | None = None,
    ) -> Reconstruction:
        """Guess the batch behind several rounds; one round is taken, too.

        Shapes:
            returns .inputs: (B, C, H, W), inside known.input_range
            returns .labels: (B,) int64

        The notes tell `rounds`, the cosine distance of each as `distance_round_N`, and
        `shared_data`: "likely", "doubtful: ..." with the reason, or "one round".

        Raises:
            AttackFailed: There are no rounds, or they come from different senders or announce
                different numbers of examples; or as Inverting Gradients.
        """
        began = time.monotonic()
        rounds = rounds_of(seen)
        _require_one_sender(rounds)
        victims = [rebuild(one, known, dtype=torch.float32) for one in rounds]
        require_twice_differentiable(victims[-1])
        counted = [labels_of(victim, known) for victim in victims]
        labels = _most_frequent(counted)
        joined = join(victims)

        low, high = joined.input_range
        shape = (self.restarts, joined.batch_size, *joined.input_shape)
        noise = _NOISE * (high - low) * torch.randn(shape, generator=rng)
        start = ((low + high) / 2 + noise).clamp(low, high).to(joined.like)
        snapshots = Snapshots(lambda images: images, steps=self.steps, input_range=(low, high))
        found = self._run(joined, labels, start, self.steps, budget, snapshots)
        best = int(found.values.argmin())
        if not bool(found.values[best].isfinite()):
            raise AttackFailed("the objective is not finite at any start")
        inputs = found.points[best]
        distances = joined.distances(joined.gradient(inputs, labels)).detach()
        notes: dict[str, str | float] = {"rounds": float(len(rounds))}
        for one, distance in zip(rounds, distances.tolist(), strict=True):
            notes[f"distance_round_{one.round}"] = distance
        notes["shared_data"] = "one round"
        if len(rounds) > 1:
            notes["shared_data"] = self._shared(joined, counted, distances, start[:1], budget)
        return Reconstruction(
            inputs=inputs,
            labels=labels,
            matching_loss=float(found.values[best]),
            steps=found.steps,
            seconds=time.monotonic() - began,
            finished=found.finished,
            snapshots=snapshots.end(found.steps, found.points, found.values),
            notes=notes,
        )

    def _run(
        self,
        joined: "Joined",
        labels: Tensor,
        start: Tensor,
        steps: int,
        budget: Budget | None,
        snapshots: Snapshots | None,
    ) -> Descent:
        low, high = joined.input_range
        span = high - low

        def objective(images: Tensor, gradient: GradientOf) -> Tensor:
            distances = joined.distances(gradient(images, labels))
            distance = distances.mean() if self.combine == "mean" else distances.median()
            return distance + self.tv_weight * total_variation(images / span)

        return descend(
            by_rows(objective, joined),
            start,
            steps=steps,
            step_size=self.step_size * span,
            schedule="cosine",
            box=(low, high),
            tolerance=_PRECISION,
            budget=budget,
            on_step=None if snapshots is None else snapshots.look,
        )

    def _shared(
        self,
        joined: "Joined",
        counted: list[Tensor],
        distances: Tensor,
        start: Tensor,
        budget: Budget | None,
    ) -> str:
        """Say whether the rounds look as if they shared their data."""
        kinds = {tuple(labels.sort().values.tolist()) for labels in counted}
        if len(kinds) > 1:
            return f"doubtful: {len(kinds)} different sets of labels were counted"
        if self.alone_steps == 0:
            return "likely"
        last = join(joined.parts[-1:])
        alone = self._run(last, counted[-1], start, self.alone_steps, budget, None)
        near = last.distances(last.gradient(alone.points[0], counted[-1])).detach()
        ratio = float(distances.max()) / max(float(near), _PRECISION)
        if ratio > _FAR:
            return (
                f"doubtful: a guess at the last round alone comes {ratio:.0f} times closer to it "
                "than the joint guess to the worst round"
            )
        return "likely"


@dataclass(frozen=True, kw_only=True, eq=False)
class Joined(Victim):
    """Several rounds of one victim as one: gradients by "number/parameter name".

    Attributes:
        parts: The rounds, oldest first.
    """

    parts: tuple[Victim, ...] = ()

    def gradient(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the gradients of a guess in all rounds, with the graph."""
        return _named([part.gradient(inputs, targets) for part in self.parts])

    def functional_gradient(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the same as `gradient`, for use inside the transforms of `torch.func`."""
        return _named([part.functional_gradient(inputs, targets) for part in self.parts])

    def distances(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Return the cosine distance of every round, (rounds,)."""
        return torch.stack(
            [
                cosine_distance(
                    {name: gradients[f"{number}/{name}"] for name in part.target}, part.target
                )
                for number, part in enumerate(self.parts)
            ]
        )


def join(victims: Sequence[Victim]) -> Joined:
    """Return several rounds of the same data as one victim."""
    last = victims[-1]
    own = {name: getattr(last, name) for name in Victim.__dataclass_fields__}
    own["target"] = _named([victim.target for victim in victims])
    own["visible"] = _named([victim.visible for victim in victims])
    return Joined(**own, parts=tuple(victims))


def _named(rounds: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {
        f"{number}/{name}": tensor
        for number, tensors in enumerate(rounds)
        for name, tensor in tensors.items()
    }


def _require_one_sender(rounds: Sequence[Observation]) -> None:
    if not rounds:
        raise AttackFailed("there is no round to attack")
    senders = sorted({one.sender for one in rounds})
    if len(senders) > 1:
        raise AttackFailed(f"rounds of one victim are joined, got messages of {senders}")
    sizes = {one.num_examples for one in rounds} - {None}
    if len(sizes) > 1:
        raise AttackFailed(
            f"the rounds announce different numbers of examples, {sorted(map(str, sizes))}: they "
            "do not share their data"
        )


def _most_frequent(counted: Sequence[Tensor]) -> Tensor:
    """Return the labels that most rounds agree on; the latest of them if there is a tie."""
    votes = [sum(torch.equal(one, other) for other in counted) for one in counted]
    best = max(range(len(votes)), key=lambda place: (votes[place], place))
    return counted[best]
