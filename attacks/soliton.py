"""The cascade with a server's help: degrees by the robust soliton law (arXiv 2609.09659, 2026).

The cascade peels a batch off the first layer: a row with one active example shows it, and taking
it off leaves further rows with one. It is the decoder of a fountain code, and it stops early when
the degrees of the rows, the numbers of active examples, are as they happen to be. A server that
may change the biases chooses them by the law that is best for such codes (Luby, 2002, "LT codes"):
a few rows with one active example, half with two, and a tail that covers everybody.

Differs from the paper: the weights of the layer stay as they are, only its biases are set; a
row's threshold is the quantile of a Gaussian with the moments of its outputs on the public sample,
or on noise that looks like images. (Quantiles of the sample itself were measured to be no better.)
Decoding is `attacks.cascade`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.active import KeepsArchitecture
from attacks.cascade import Cascade
from attacks.linear import layer_that_sees_the_input
from attacks.network import known_architecture, trace
from attacks.observation import (
    AttackFailed,
    Budget,
    Knowledge,
    Observation,
    Reconstruction,
    Tensors,
)
from attacks.stand_ins import images_to_plan_with
from attacks.threats import Capability

_PLANNED = 512
"""Images of noise to plan with, where there is no public sample."""


@dataclass(frozen=True, kw_only=True)
class Soliton(KeepsArchitecture):
    """Set the first layer's biases so that the cascade does not stop, and run it.

    Attributes:
        width: c of the robust soliton law: how many rows with one example are kept in reserve.
        failure: delta of the law: the probability with which decoding may stop early.
        copies: How often one image may be in the batch; see `Cascade`.
    """

    width: float = 0.1
    failure: float = 0.5
    copies: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.width < math.inf:
            raise ValueError(f"width must be above 0, got {self.width}")
        if not 0 < self.failure < 1:
            raise ValueError(f"failure must be between 0 and 1, got {self.failure}")
        Cascade(copies=self.copies)

    @property
    def needs(self) -> frozenset[Capability]:
        """What the cascade needs, and to send other weights."""
        return Cascade(copies=self.copies).needs | {Capability.CHANGE_WEIGHTS}

    def check(self, known: Knowledge) -> None:
        """Refuse what the cascade refuses."""
        Cascade(copies=self.copies).check(known)

    def tamper(
        self,
        weights: Tensors,
        known: Knowledge,
        *,
        receiver: str,  # noqa: ARG002 - everybody is sent the same
        target: str,  # noqa: ARG002
        earlier: Sequence[Observation],  # noqa: ARG002 - nothing is learnt from round to round
        rng: torch.Generator,
    ) -> dict[str, Tensor]:
        """Return `weights` with the first layer's biases set."""
        if known.batch_size is None:
            raise AttackFailed("choosing degrees needs the batch size; grant 'batch-size'")
        layer, constants = layer_that_sees_the_input(trace(*known_architecture(known)))
        images = images_to_plan_with(known, count=_PLANNED, rng=rng).double()
        if constants is not None:
            mean, std = (constant.cpu().double() for constant in constants)
            images = (images - mean) / std
        matrix = weights[layer.parameter("weight")].detach().cpu().double()
        outputs = images.flatten(1) @ matrix.T
        law = robust_soliton(known.batch_size, width=self.width, failure=self.failure)
        rates = degrees(law, len(matrix), rng=rng).double() / known.batch_size
        rates = rates.clamp(max=1 - 0.5 / known.batch_size)
        name = layer.parameter("bias")
        thresholds = outputs.mean(0) + outputs.std(0) * torch.special.ndtri(1 - rates)
        return {**weights, name: (-thresholds).to(weights[name])}

    def __call__(
        self,
        seen: Observation | Sequence[Observation],
        known: Knowledge,
        *,
        rng: torch.Generator,
        budget: Budget | None = None,
    ) -> Reconstruction:
        """Peel the batch off the first layer; see `Cascade`.

        Raises:
            AttackFailed: As `Cascade`.
        """
        return Cascade(copies=self.copies)(seen, known, rng=rng, budget=budget)


def robust_soliton(size: int, *, width: float, failure: float) -> Tensor:
    """Return the probabilities of degrees 1 to `size`, (size,) float64.

    The ideal law, 1/B for degree 1 and 1/(d (d-1)) for the others, keeps one row of degree one
    in hand at every step, on average; the robust law adds a reserve and a spike.
    """
    degree = torch.arange(1, size + 1, dtype=torch.float64)
    ideal = 1 / (degree * (degree - 1)).clamp_min(1)
    ideal[0] = 1 / size
    reserve = width * math.log(size / failure) * math.sqrt(size)
    spike = min(size, max(1, round(size / reserve)))
    extra = torch.where(degree < spike, reserve / (degree * size), 0.0)
    extra[spike - 1] = max(0.0, reserve * math.log(max(reserve / failure, 1.0)) / size)
    law: Tensor = ideal + extra
    return law / law.sum()


def degrees(law: Tensor, count: int, *, rng: torch.Generator) -> Tensor:
    """Return `count` degrees that follow the law as closely as whole numbers can, shuffled."""
    levels = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    drawn = torch.searchsorted(law.cumsum(0), levels).clamp(max=len(law) - 1) + 1
    return drawn[torch.randperm(count, generator=rng)]
