"""Deep Leakage from Gradients with its published optimiser (Zhu et al., 2019, arXiv 1906.08935).

For comparison with the paper: `attacks.dlg` finds more. Images and label logits start at N(0, 1),
are searched for in pixels, and are moved together by PyTorch's L-BFGS with learning rate 1, a
memory of 100, up to 20 iterations a step and no line search. So some searches diverge. Differs
from the paper: what has diverged starts anew, as an attacker would have it do, and of several
starts the one closest to the gradient heard is returned.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from attacks.matching.differentiable import MatchingAttack, require_twice_differentiable
from attacks.matching.snapshots import Snapshots
from attacks.matching.starts import starting_inputs
from attacks.matching.victim import Victim, rebuild
from attacks.observation import (
    AttackFailed,
    Budget,
    Knowledge,
    Observation,
    Reconstruction,
    only,
)
from attacks.settings import require_counts, require_weights

_EXPLODED = 1e3
"""Distance, relative to that of the start, from which on a search has diverged."""


class _Guess(NamedTuple):
    """Inputs (B, ...), labels (B,), and their squared distance to the gradient heard."""

    inputs: Tensor
    labels: Tensor
    loss: float


@dataclass(frozen=True, kw_only=True)
class PublishedDLG(MatchingAttack):
    """Find inputs and labels as DLG was published: in pixels, without a line search.

    Attributes:
        steps: Most steps of one start, each of up to 20 iterations of L-BFGS.
        restarts: Most starts; another one follows only where the last did not reach `close`.
        tolerance: Distance to the gradient heard, relative to its norm, at which to stop.
        close: Relative distance from which on a start counts as a success.
        double: Compute in double precision; the published code computes in single.
    """

    steps: int = 300
    restarts: int = 8
    tolerance: float = 1e-4
    close: float = 1e-2
    double: bool = False

    def __post_init__(self) -> None:
        """Refuse settings without meaning."""
        require_counts(self, "steps", "restarts")
        require_weights(self, "tolerance", "close")

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
            AttackFailed: The victim cannot be rebuilt (`attacks.matching.victim.rebuild`), its
                gradient cannot be matched, or no start has a finite distance.
        """
        began = time.monotonic()
        victim = rebuild(only(seen), known, dtype=torch.float64 if self.double else torch.float32)
        require_twice_differentiable(victim)
        budget = budget or Budget()
        norm = math.sqrt(victim.square_norm)
        looks = Snapshots(
            lambda point: point,
            steps=self.steps * min(self.restarts, 2),
            input_range=victim.input_range,
            rng=rng,
        )
        best: _Guess | None = None
        steps, starts, finished = 0, 0, True
        while starts < self.restarts and not (best and best.loss <= (self.close * norm) ** 2):
            if starts > 0 and budget.spent:
                finished = False
                break
            starts += 1
            for found in self._search(victim, (self.tolerance * norm) ** 2, rng=rng):
                steps += 1
                if best is None or found.loss < best.loss:
                    best = found
                looks.look(steps, best.inputs[None], torch.tensor([best.loss]))
                if budget.spent:
                    finished = False
                    break
        if best is None:
            raise AttackFailed("the distance to the gradient heard is not finite at any start")
        return Reconstruction(
            inputs=best.inputs.clamp(*victim.input_range).float(),
            labels=best.labels,
            matching_loss=best.loss,
            steps=steps,
            seconds=time.monotonic() - began,
            finished=finished,
            snapshots=looks.end(steps, best.inputs[None], torch.tensor([best.loss])),
            notes={"relative_distance": math.sqrt(best.loss) / norm, "starts": starts},
        )

    def _search(self, victim: Victim, enough: float, *, rng: torch.Generator) -> Iterator[_Guess]:
        """Yield where one start is after each step, until near enough, at rest or diverged."""
        shape = victim.batch_size, victim.num_classes
        inputs = starting_inputs(
            "normal", victim.batch_size, victim.input_shape, victim.input_range, rng=rng
        )
        inputs = inputs.to(victim.like).requires_grad_()
        logits = torch.randn(shape, generator=rng).to(victim.like).requires_grad_()
        optimizer = torch.optim.LBFGS([inputs, logits])

        def distance() -> Tensor:
            guess = victim.gradient(inputs, logits.softmax(dim=-1))
            apart = [(guess[name] - heard).square().sum() for name, heard in victim.target.items()]
            return torch.stack(apart).sum()

        def closure() -> float:
            optimizer.zero_grad()
            value = distance()
            inputs.grad, logits.grad = torch.autograd.grad(value, [inputs, logits])
            return float(value.detach())

        first = float(distance().detach())
        last = first
        for _ in range(self.steps):
            optimizer.step(closure)  # type: ignore[no-untyped-call]
            value = float(distance().detach())
            if not value < _EXPLODED * first:
                return
            yield _Guess(inputs.detach().clone(), logits.detach().argmax(dim=1), value)
            if value <= enough or value == last:
                return
            last = value
