"""The likeliest images behind a noisy gradient (Balunovic et al., 2022, ICLR, arXiv 2111.04706).

A defense that adds noise, rounds or masks says, to who knows it, how likely every gradient heard is
for every guess. The guess wanted is the one of highest posterior density: as likely as the noise
allows, and as smooth as images are; see `attacks.matching.posterior`. Such a guess is fitted down
to the noise and not below, which is where attacks that match a noisy gradient exactly lose: what
they fit last is noise.

Differs from the paper: L-BFGS in coordinates of natural images for smooth networks, as `idlg`, and
signed Adam first where kinks make slopes uneven; the prior's weight is not tuned but follows from
how much neighbouring pixels differ; a length that was not heard is fitted, and of several rounds
with the same data the likelihoods are multiplied, which averages their noise. Nobody needs to name
the defense: the deviation of noise that is alike everywhere is read off the classifier's gradient,
whose columns sum to zero without noise.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from attacks.defense import Family, Noise, noise_deviation
from attacks.matching.coordinates import Coordinates
from attacks.matching.descent import ValueAndGrad, descend
from attacks.matching.differentiable import MatchingAttack, require_twice_differentiable
from attacks.matching.kinks import has_kinks, is_normalised
from attacks.matching.lbfgs import minimize
from attacks.matching.posterior import (
    Likelihood,
    Prior,
    counts_of,
    joined,
    likelihood_of,
    prior_of,
)
from attacks.matching.rows import GradientOf, by_rows
from attacks.matching.snapshots import Snapshots
from attacks.matching.starts import warm_start
from attacks.matching.victim import Victim, rebuild
from attacks.matching.victim_labels import labels_of
from attacks.network import known_architecture, trace
from attacks.observation import (
    AttackFailed,
    Budget,
    Knowledge,
    Observation,
    Reconstruction,
    rounds_of,
)
from attacks.settings import require_counts, require_positive
from attacks.temporal import join

InputsOf = Callable[[Tensor], Tensor]
"""A point of the search -> inputs (B, ...)."""

_PROGRESS = 1e-5
"""Least relative decrease over 20 steps: noise that nothing explains is most of the value."""
_SOLVED = 1e-4
"""A start is a solution if what noise does not explain is below this share of that of clouds."""
_STEP_SIZE = 0.1
"""First step of Adam, as a fraction of the input range."""


@dataclass(frozen=True, kw_only=True)
class Bayesian(MatchingAttack):
    """Find the images that are likeliest, given the gradient heard and how noisy it is.

    Attributes:
        steps: Most L-BFGS steps of one restart.
        kinked_steps: Adam steps before, at networks with piecewise linear activations.
        restarts: Starts, run together: smooth clouds, the first replaced by what solving layer by
            layer gives where that is near enough. The likeliest guess is returned.
        smoothness: Mean absolute difference of neighbouring pixels that images are expected to
            have, as a fraction of the input range; None takes that of the public sample, or of
            photographs, and fits it to images that turn out to be rougher.
    """

    steps: int = 1_000
    kinked_steps: int = 1_000
    restarts: int = 1
    smoothness: float | None = None

    joins = True

    def __post_init__(self) -> None:
        require_counts(self, "steps", "restarts")
        require_counts(self, "kinked_steps", least=0)
        if self.smoothness is not None:
            require_positive(self, "smoothness")

    def __call__(
        self,
        seen: Observation | Sequence[Observation],
        known: Knowledge,
        *,
        rng: torch.Generator,
        budget: Budget | None = None,
    ) -> Reconstruction:
        """Guess the batch behind one update, or behind several of the same data.

        Shapes:
            returns .inputs: (B, C, H, W), inside known.input_range
            returns .labels: (B,) int64

        The notes tell `noise`, the largest deviation reckoned with; `explained`, whether what is
        left between the guess and what was heard is noise; `fitted_length`, where it was fitted.

        Raises:
            AttackFailed: The victim cannot be rebuilt, its labels cannot be read, the model is not
                twice differentiable, or no start has a finite objective.
        """
        rounds = rounds_of(seen)
        if not rounds:
            raise AttackFailed("there is no round to attack")
        return self.solve(rounds, [known] * len(rounds), rng=rng, budget=budget)

    def solve(
        self,
        rounds: Sequence[Observation],
        known: Sequence[Knowledge],
        *,
        rng: torch.Generator,
        budget: Budget | None = None,
    ) -> Reconstruction:
        """Do the same where something else is known of every round, such as its noise."""
        began = time.monotonic()
        victims = [
            rebuild(one, what, dtype=torch.float64) for one, what in zip(rounds, known, strict=True)
        ]
        require_twice_differentiable(victims[-1])
        labels = labels_of(victims[-1], known[-1])
        likelihoods = [
            likelihood_of(victim, one, what, noise_of(one, what))
            for victim, one, what in zip(victims, rounds, known, strict=True)
        ]
        victim, likelihood = victims[-1], likelihoods[-1]
        if len(victims) > 1:
            victim, likelihood = join(victims), joined(likelihoods)
        search = _Search(
            self, victim, labels, likelihood, prior_of(known[-1], self.smoothness), budget
        )
        start = search.starts(victims[-1], rng)
        return replace(search.run(start), seconds=time.monotonic() - began)


def noise_of(seen: Observation, known: Knowledge) -> Noise:
    """Return how exact what was heard is: as known, else as the classifier's gradient tells."""
    if known.noise is not None:
        return known.noise
    classifier = trace(*known_architecture(known)).classifier()
    found = None
    if classifier is not None and seen.weights is not None and known.length_known:
        found = noise_deviation(seen, classifier.parameter("weight"))
    return Noise(deviation={} if found is None else dict.fromkeys(seen.update, found))


def _as_it_is(inputs: Tensor) -> Tensor:
    return inputs


def _look(snapshots: Snapshots, before: int, step: int, points: Tensor, values: Tensor) -> None:
    snapshots.look(before + step, points, values)


class _Search:
    """The search for one victim's likeliest batch."""

    def __init__(
        self,
        attack: Bayesian,
        victim: Victim,
        labels: Tensor,
        likelihood: Likelihood,
        prior: Prior,
        budget: Budget | None,
    ) -> None:
        self.attack, self.victim, self.labels = attack, victim, labels
        self.likelihood, self.prior, self.budget = likelihood, prior, budget
        self.coordinates = Coordinates(victim.input_shape, victim.input_range, like=victim.like)
        low, high = victim.input_range
        self.low, self.high, self.span = low, high, high - low

    def starts(self, victim: Victim, rng: torch.Generator) -> Tensor:
        """Return inputs to start from, (R, B, ...).

        The first are clouds, or what solving layer by layer gives, if that is a solution but for
        noise: one far off is a worse start, being no image.
        """
        found = [
            self.coordinates.inputs(self.coordinates.clouds(victim.batch_size, rng=rng))
            for _ in range(self.attack.restarts)
        ]
        warm = warm_start(victim, rng=rng)
        if warm is not None:
            pair = torch.stack([found[0], warm.to(victim.like)])
            values, _ = self._objective(self.likelihood, _as_it_is)(pair)
            expected = sum(counts_of(self.victim).values()) / 2
            cloud, solved = (values - expected).tolist()
            if solved < _SOLVED * cloud:
                found[0] = pair[1]
        return torch.stack(found)

    def run(self, start: Tensor) -> Reconstruction:
        """Search from these inputs, (R, B, ...), and return the likeliest guess."""
        attack, victim = self.attack, self.victim
        steps, finished = 0, True
        if has_kinks(victim):
            found = descend(
                self._objective(self.likelihood, _as_it_is),
                start.clamp(self.low, self.high),
                steps=attack.kinked_steps,
                step_size=_STEP_SIZE * self.span,
                schedule="cosine",
                signed=is_normalised(victim),
                box=victim.input_range,
                budget=self.budget,
            )
            start, steps, finished = found.points, found.steps, found.finished
        points = torch.stack([self.coordinates.points(inputs) for inputs in start])
        snapshots = Snapshots(
            self.coordinates.inputs,
            steps=steps + attack.steps,
            input_range=victim.input_range,
        )
        stages = [self.likelihood]
        if self.likelihood.family is Family.LAPLACIAN:  # its corners slow a search from afar
            stages.insert(0, replace(self.likelihood, family=Family.GAUSSIAN))
        for stage in stages:
            ended = minimize(
                self._objective(stage, self.coordinates.inputs),
                points,
                steps=attack.steps,
                progress=_PROGRESS,
                budget=self.budget,
                on_step=partial(_look, snapshots, steps) if stage is self.likelihood else None,
            )
            points, steps = ended.points, steps + ended.steps
            finished = finished and ended.finished
        best = int(ended.values.argmin())
        if not bool(ended.values[best].isfinite()):
            raise AttackFailed("the posterior density is not finite at any start")
        inputs = self.coordinates.inputs(ended.points[best]).clamp(*victim.input_range)
        return Reconstruction(
            inputs=inputs.float(),
            labels=self.labels,
            matching_loss=float(ended.values[best]),
            steps=steps,
            finished=finished,
            snapshots=snapshots.end(steps, ended.points, ended.values),
            notes=self._notes(inputs),
        )

    def _notes(self, inputs: Tensor) -> dict[str, str | float]:
        victim, likelihood = self.victim, self.likelihood
        gradient = {n: g.detach() for n, g in victim.gradient(inputs, self.labels).items()}
        explained = likelihood.explains(gradient, victim.target, counts_of(victim))
        return {
            "noise": max(likelihood.deviation.values()),
            "explained": "yes" if explained else "no",
        }

    def _objective(self, likelihood: Likelihood, inputs_of: InputsOf) -> ValueAndGrad:
        victim, labels = self.victim, self.labels

        def value(point: Tensor, gradient: GradientOf) -> Tensor:
            inputs = inputs_of(point)
            return likelihood(gradient(inputs, labels), victim.target) + self.prior(inputs)

        return by_rows(value, victim)
