"""How well a guess explains what was heard: by distance, and by likelihood where there is noise.

No paper. Distances to a noisy gradient reward who fits the noise, too. Where the noise is known,
guesses are compared by their posterior density (`attacks.matching.posterior`), and one explains
what was heard when what is left looks like that noise, parameter by parameter.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from attacks.fedavg_epochs import each_epoch_its_own
from attacks.matching.posterior import Likelihood, counts_of, likelihood_of, prior_of
from attacks.matching.victim import Victim, rebuild
from attacks.observation import Kind, Knowledge, Observation, Reconstruction

_ORDERS = 30
"""Orders of later epochs, beside that of the first, in which a guess is judged."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What can be said of a guess without the truth.

    Attributes:
        distance: Of the guess's gradient to the one heard, relative to the latter; where lengths
            mean nothing, of the closest multiple of it.
        nats: Negative logarithm of its posterior density; None where what was heard is exact.
        explains: Whether noise explains the rest; None where what was heard is exact.
    """

    distance: float
    nats: float | None = None
    explains: bool | None = None


class Judge:
    """Judges guesses at one victim.

    Args:
        seen: What was heard, after reading defenses.
        known: What is known then.

    Raises:
        AttackFailed: The victim cannot be rebuilt, so nothing can be compared.
    """

    def __init__(self, seen: Observation, known: Knowledge) -> None:
        self.victim = rebuild(seen, known, dtype=torch.float64)
        self.likelihood = likelihood_of(self.victim, seen, known)
        self.prior = prior_of(known)
        noise = known.noise
        self.noisy = known.signs_only or (noise is not None and any(noise.deviation.values()))

    @property
    def noise(self) -> float:
        """Expected length of the noise, relative to what was heard; 0 where that is exact."""
        if not self.noisy:
            return 0.0
        counts = counts_of(self.victim)
        square = sum(counts[n] * d**2 for n, d in self.likelihood.deviation.items())
        return math.sqrt(square / self.victim.square_norm)

    def __call__(self, guess: Reconstruction) -> Verdict | None:
        """Judge a guess with an image for every example; None if it lacks inputs or labels."""
        if guess.inputs is None or guess.labels is None:
            return None
        victim = self.victim
        inputs = guess.inputs.to(victim.like)
        labels: Tensor = guess.labels.to(inputs.device)
        if not self.noisy and not self.likelihood.scaled:
            distance = relative_distance(victim, guess)
            return None if distance is None else Verdict(distance=distance)
        gradient = {n: g.detach() for n, g in victim.gradient(inputs, labels).items()}
        distance = _scaled_distance(victim, gradient, self.likelihood)
        if not self.noisy:
            return Verdict(distance=distance)
        return Verdict(
            distance=distance,
            nats=float(self.likelihood(gradient, victim.target) + self.prior(inputs)),
            explains=self.likelihood.explains(gradient, victim.target, counts_of(victim)),
        )


def _scaled_distance(victim: Victim, gradient: dict[str, Tensor], likelihood: Likelihood) -> float:
    """Return the relative distance, of the closest multiple where lengths mean nothing."""
    ones = replace(likelihood, deviation=dict.fromkeys(gradient, 1.0))
    errors = ones.errors(gradient, victim.target)
    square = sum(float(error.square().sum()) for error in errors.values())
    return math.sqrt(square / victim.square_norm)


def rest_of(
    seen: Observation, known: Knowledge, victim: Victim, guess: Reconstruction
) -> tuple[Observation, Knowledge] | None:
    """Take the proved part of a batch off what was heard.

    With n of B examples proved, the mean gradient of the others is (B g - n g') / (B - n), where
    g' is that of the n. None where nothing or everything is proved, or where examples share more
    than the mean: several steps, or a layer that normalises the batch.
    """
    if guess.inputs is None or guess.labels is None or guess.certified is None:
        return None
    number = int(guess.certified.sum())
    left = victim.batch_size - number
    if not 0 < left < victim.batch_size or victim.plan is not None:
        return None
    if any(
        isinstance(m, _BatchNorm) and (m.training or m.running_mean is None)
        for m in victim.model.modules()
    ):
        return None
    labels: Tensor = guess.labels[guess.certified]
    inputs = guess.inputs[guess.certified].to(victim.like)
    gradient = victim.gradient(inputs, labels.to(inputs.device))
    update = {
        name: (victim.batch_size * heard - number * gradient[name].detach()) / left
        for name, heard in victim.target.items()
    }
    remaining = replace(
        seen,
        kind=Kind.CHUNK if seen.kind is Kind.CHUNK else Kind.GRADIENT,
        update={name: tensor.to(seen.update[name].dtype) for name, tensor in update.items()},
        buffers_after=None,  # they tell of the whole batch
        num_examples=left,
    )
    told = known.labels
    if told is not None:
        told = _without(told, labels)
    noise = known.noise
    if noise is not None:
        share = victim.batch_size / left
        noise = replace(noise, deviation={n: share * d for n, d in noise.deviation.items()})
    return remaining, replace(known, batch_size=left, labels=told, noise=noise)


def _without(labels: Tensor, some: Tensor) -> Tensor:
    """Return labels without those in `some`, each as often as it is there."""
    remaining: list[int] = labels.tolist()
    for label in some.tolist():
        if label in remaining:
            remaining.remove(label)
    return labels.new_tensor(remaining)


def relative_distance(victim: Victim, guess: Reconstruction) -> float | None:
    """Return how far the gradient of a guess is from the one heard, relative to the latter.

    Over several epochs, in the best of a few orders after the first: nobody heard the right one.
    """
    if guess.inputs is None or guess.labels is None:
        return None
    inputs = guess.inputs.to(victim.like)
    labels: Tensor = guess.labels.to(inputs.device)
    whole = (0, victim.batch_size)
    if victim.plan is None or all(batch == whole for batch in victim.plan):
        return _distance_of(victim, inputs, labels)
    shuffled, num_epochs = each_epoch_its_own(victim, victim.plan)
    if num_epochs == 1:
        return _distance_of(victim, inputs, labels)
    rng = torch.Generator().manual_seed(0)  # the same orders for all guesses
    found = [_distance_of(victim, inputs, labels)]
    for _ in range(_ORDERS):
        further = [torch.randperm(victim.batch_size, generator=rng) for _ in range(num_epochs - 1)]
        order = torch.cat([torch.arange(victim.batch_size), *further]).to(inputs.device)
        found.append(_distance_of(shuffled, inputs[order], labels[order]))
    return min(found)


def _distance_of(victim: Victim, inputs: Tensor, labels: Tensor) -> float:
    square = 0.0
    for name, tensor in victim.gradient(inputs, labels).items():
        square += float((tensor.detach() - victim.target[name]).double().square().sum())
    return math.sqrt(square / victim.square_norm)
