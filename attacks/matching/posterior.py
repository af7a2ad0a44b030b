"""How likely a guess is, given what was heard and how exact that is: likelihood and prior.

The Bayesian view of gradient inversion (Balunovic et al., 2022, https://arxiv.org/abs/2111.04706):
each kind of noise has the distance that fits it: Gaussian noise squared distances in units of its
deviation, Laplacian noise absolute ones. What images look like before anything was heard is the
other half: neighbouring pixels differ little, by a Laplacian law (total variation). Both are
logarithms of densities, so no weight between them is left to choose.

Differs from the paper: rounding gives squared distances, too. Its density is flat inside the
interval that was rounded to one value, but a search for the smoothest image there ends at the
walls, which was measured to be worse (36.9 against 38.0 dB, deviation 1e-3); errors of many
coordinates together are about Gaussian. Behind a change of signs alone, magnitudes with the wrong
sign are what counts.

Everything is in nats, lower is likelier. Constants that are the same for all guesses are left out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.defense import Family, Noise
from attacks.matching.signs import sign_distance
from attacks.matching.victim import Victim
from attacks.observation import Kind, Knowledge, Observation, Tensors

_EXACT = 1e-4
"""Deviation taken for what is exact, as a fraction of the root mean square of what was heard."""
_NEARLY = 1e-2
"""The same as a fraction of the smallest real deviation: more would only make the search slow."""
_ROUNDED = 0.1
"""Width of the corner of the absolute error, in deviations."""
_WALL = 0.05
"""How far outside the pixel range, as a fraction of it, a pixel is as unlikely as one deviation."""
_WRONG_SIGN = 20.0
"""Nats for a wrong sign of a coordinate of mean magnitude."""
_CORNER = 0.01
"""Width of the corner of total variation, as a fraction of the input range."""
_NATURAL = 0.06
"""Mean absolute difference of neighbouring pixels of photographs of 32 x 32, as a fraction of the
range; between half and twice that the guesses are about as good."""
_SHARPEST = 0.02
_SQUARES = {Family.GAUSSIAN: 2.0, Family.LAPLACIAN: 5.0, Family.UNIFORM: 0.8}
"""Variance of a squared error, in squared variances of the error."""
_ERRORS = 4.0
"""Standard errors by which a mean square may be above what noise explains."""


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """How far the gradient of a guess may be from the one heard.

    Attributes:
        deviation: Standard deviation per coordinate, by name as in `Victim.target`; above 0.
        family: Of the errors.
        scaled: Whether the length of what was heard means nothing: it is fitted to each guess.
        signs: Whether nothing but signs was heard.
    """

    deviation: Mapping[str, float]
    family: Family = Family.GAUSSIAN
    scaled: bool = False
    signs: bool = False

    def __call__(self, guess: Tensors, heard: Tensors) -> Tensor:
        """Return the negative logarithm of the likelihood, a scalar.

        Args:
            guess: Gradient of the guess, by name, zero where nothing was heard.
            heard: The same of what was heard.
        """
        if self.signs:
            count = torch.stack([heard[name].count_nonzero() for name in guess]).sum()
            return _WRONG_SIGN * count * sign_distance(guess, heard)
        errors = self.errors(guess, heard)
        return torch.stack([_surprise(error, self.family) for error in errors.values()]).sum()

    def errors(self, guess: Tensors, heard: Tensors) -> dict[str, Tensor]:
        """Return how far a guess is from what was heard, in deviations, by name."""
        length: Tensor | float = self._length(guess, heard) if self.scaled else 1.0
        return {n: (length * guess[n] - heard[n]) / self.deviation[n] for n in guess}

    def _length(self, guess: Tensors, heard: Tensors) -> Tensor:
        """Return the factor on a guess's gradient that brings it closest to what was heard."""
        along, own = (
            torch.stack([(guess[n] * other[n]).sum() / self.deviation[n] ** 2 for n in guess]).sum()
            for other in (heard, guess)
        )
        return (along / own.clamp_min(torch.finfo(own.dtype).tiny)).clamp_min(0)

    def explains(self, guess: Tensors, heard: Tensors, counts: Mapping[str, int]) -> bool:
        """Whether noise explains what is left between a guess and what was heard.

        Every parameter must be explained by itself: in the sum, the noise of a large one would
        hide what a small one tells.

        Args:
            guess: Gradient of the guess, by name.
            heard: The gradient heard.
            counts: How many coordinates of each parameter were heard.
        """
        if self.signs:
            return bool(sign_distance(guess, heard) <= 0)
        spread = _SQUARES[self.family]
        for name, error in self.errors(guess, heard).items():
            beyond = float(error.detach().double().square().sum()) / counts[name] - 1
            if not beyond <= _ERRORS * math.sqrt(spread / counts[name]):
                return False
        return True


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What images look like before anything was heard.

    Attributes:
        input_range: Lowest and highest value of an input.
        smoothness: Mean absolute difference of neighbouring pixels, as a fraction of the range;
            None for inputs that are no images.
        rougher: Whether images may be rougher than that throughout, which nobody told. What was
            heard then decides: the law is fitted to a guess that is rougher, whose logarithm takes
            the place of its total variation.
    """

    input_range: tuple[float, float] = (0.0, 1.0)
    smoothness: float | None = _NATURAL
    rougher: bool = False

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the negative logarithm of the density of inputs (B, C, H, W), a scalar.

        Differences count by a quarter: there are twice as many as pixels, and those of the colours
        tell much the same. Half or twice as much made guesses little better or worse (1 dB).
        """
        low, high = self.input_range
        shares = (inputs - low) / (high - low)
        total = ((shares - shares.clamp(0, 1)) / _WALL).square().sum() / 2
        if self.smoothness is None:
            return total
        every = [shares.diff(dim=axis).flatten() for axis in (-1, -2)]
        steps = torch.cat(every)
        rounded = (steps.square() + _CORNER**2).sqrt() - _CORNER
        variation = rounded.sum() / self.smoothness
        if self.rougher and len(steps):
            # the density at the scale that makes it highest, from `smoothness` upwards
            ratio = variation / len(steps)
            fitted = len(steps) * (1 + ratio.clamp_min(1).log())
            variation = torch.where(ratio > 1, fitted, variation)
        return total + variation / 4


def prior_of(known: Knowledge, smoothness: float | None = None) -> Prior:
    """Return the prior that fits what is known of inputs.

    Where nothing tells, they are taken for photographs, or for something rougher if what was heard
    says so: pixels of drawings and digits differ by four times as much.

    Args:
        known: A public sample tells how smooth its kind is; without one, photographs are expected.
        smoothness: Mean absolute difference of neighbouring pixels, where it is told.
    """
    low, high = known.input_range
    if known.input_shape is None or len(known.input_shape) != 3:
        return Prior(input_range=known.input_range, smoothness=None)
    public = known.public_sample
    if smoothness is None and (public is None or not len(public)):
        return Prior(input_range=known.input_range, rougher=True)
    if smoothness is None and public is not None and len(public):
        found = [public.double().diff(dim=axis).abs().flatten() for axis in (-1, -2)]
        smoothness = max(float(torch.cat(found).mean()) / (high - low), _SHARPEST)
    return Prior(input_range=known.input_range, smoothness=smoothness or _NATURAL)


def likelihood_of(
    victim: Victim, seen: Observation, known: Knowledge, noise: Noise | None = None
) -> Likelihood:
    """Return the likelihood of one observation.

    Args:
        victim: As rebuilt from it.
        seen: The observation.
        known: What was granted, and what reading defenses left.
        noise: How exact what was heard is; None takes `known.noise`.
    """
    noise = noise or known.noise or Noise()
    unit = 1.0
    if seen.kind in (Kind.DELTA, Kind.WEIGHTS) and known.recipe is not None:
        unit = known.recipe.learning_rate or 1.0
    own = {name: noise.deviation.get(name, 0.0) / unit for name in victim.target}
    total = sum(counts_of(victim).values())
    least = _EXACT * math.sqrt(victim.square_norm / total)
    least = max(least, _NEARLY * min((d for d in own.values() if d > 0), default=0.0))
    return Likelihood(
        deviation={name: max(deviation, least) for name, deviation in own.items()},
        family=noise.family,
        scaled=not known.length_known,
        signs=known.signs_only,
    )


def joined(likelihoods: Sequence[Likelihood]) -> Likelihood:
    """Return the likelihood of several rounds together, named as `attacks.temporal.join` does."""
    last = likelihoods[-1]
    deviation = {
        f"{number}/{name}": its
        for number, one in enumerate(likelihoods)
        for name, its in one.deviation.items()
    }
    return Likelihood(deviation=deviation, family=last.family, scaled=last.scaled, signs=last.signs)


def counts_of(victim: Victim) -> dict[str, int]:
    """Return how many coordinates of each parameter were heard."""
    return {
        name: int(victim.visible[name].sum()) if name in victim.visible else target.numel()
        for name, target in victim.target.items()
    }


def _surprise(errors: Tensor, family: Family) -> Tensor:
    """Return the negative logarithm of the density of errors in deviations, a scalar."""
    if family is Family.LAPLACIAN:
        rounded = (errors.square() + _ROUNDED**2).sqrt() - _ROUNDED
        return math.sqrt(2) * rounded.sum()
    return errors.square().sum() / 2
