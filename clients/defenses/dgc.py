"""Deep Gradient Compression (Lin et al., 2018, https://arxiv.org/abs/1712.01887).

A client sends the largest coordinates of a sum that it keeps. Momentum is applied before the sum
(momentum correction); what was sent leaves both the sum and the momentum (factor masking); updates
are clipped before they enter; the share that is sent falls over the first rounds (warm-up).
Differs from the paper: thresholds are exact, not sampled; plain momentum, not Nesterov's; rounds
take the place of epochs.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from attacks.defense import Family, add_noise, hide, length_of
from attacks.observation import Kind, Knowledge, Observation, Tensors
from clients.defenses.feedback import mixed_deviation
from clients.defenses.prune import dropped
from clients.defenses.zeros import moved, sent_of, zero_share
from fedsim.defenses import Place, Situation


@dataclass(frozen=True, kw_only=True)
class DGC:
    """Sends the largest coordinates of what a client has not sent yet.

    Attributes:
        share: Share of each parameter that is not sent, after the warm-up.
        momentum: Of the client's sum; the server and local training should have none then.
        warmup_rounds: Rounds over which the share that is sent falls, by the same factor each: with
            4 rounds to 0.1 % they are 25, 6.3, 1.6 and 0.4 %, as published.
        clip: Bound on the length of each update before it enters the sum; the paper's is that of
            plain training over the square root of the number of clients. Unset clips nothing.
    """

    share: float = 0.999
    momentum: float = 0.9
    warmup_rounds: int = 4
    clip: float | None = None

    place: ClassVar[Place] = Place.UPDATE

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not 0 <= self.share < 1:
            raise ValueError(f"share must be from 0 to below 1, got {self.share}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be from 0 to below 1, got {self.momentum}")
        if self.warmup_rounds < 0:
            raise ValueError(f"warmup_rounds must be 0 or more, got {self.warmup_rounds}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be above 0, got {self.clip}")

    def share_in(self, server_round: int) -> float:
        """Return the share that is not sent in a round, from 1."""
        way = min(1.0, server_round / (self.warmup_rounds + 1))
        return float(1 - (1 - self.share) ** way)

    def apply(self, update: Tensors, at: Situation) -> dict[str, Tensor]:
        """Add the update to the sum, and send the sum's largest coordinates."""
        momentum, waiting = {}, {}
        factor = self._clipping(update)
        for name, tensor in update.items():
            before = at.memory.get(f"momentum/{name}")
            momentum[name] = tensor * factor
            if before is not None:
                momentum[name] = momentum[name] + self.momentum * before.to(tensor)
            sums = at.memory.get(f"waiting/{name}")
            waiting[name] = momentum[name] if sums is None else momentum[name] + sums.to(tensor)
        kept_back = dropped(waiting, self.share_in(at.server_round), "layer")
        for name, gone in kept_back.items():
            at.memory[f"momentum/{name}"] = momentum[name].masked_fill(~gone, 0.0)
            at.memory[f"waiting/{name}"] = waiting[name].masked_fill(~gone, 0.0)
        return {name: tensor.masked_fill(kept_back[name], 0.0) for name, tensor in waiting.items()}

    def read(self, seen: Observation, known: Knowledge) -> tuple[Observation, Knowledge]:
        """Leave out what is zero, and take the rest for what it is: a sum over rounds.

        Coordinates that are sent seldom hold many batches, each with the momentum that it gathered
        since; the last batch is a small part. In a client's first round they hold that one alone,
        and are exact.
        """
        seen = moved(seen)
        if seen.kind is Kind.WEIGHTS:
            return seen, known
        share = self.share_in(seen.round)
        masks = sent_of(seen.update, known, dropped(seen.update, share, "layer"))
        if seen.round > 1:
            waits = min(seen.round, 1 / (1 - share))
            mixed = {
                name: mixed_deviation(tensor[masks[name]], waits, self.momentum)
                for name, tensor in seen.update.items()
            }
            known = add_noise(known, mixed, Family.GAUSSIAN)
        if self.clip is not None:
            known = replace(known, length_known=False)
        return hide(seen, masks), known

    def estimated(self, seen: Observation, known: Knowledge) -> "DGC":  # noqa: ARG002
        """Read the share of this round off the zeros; momentum is taken to be the usual."""
        share = min(zero_share(moved(seen).update), 1 - 1e-9)
        return DGC(share=share, warmup_rounds=0)

    def _clipping(self, update: Tensors) -> float:
        length = length_of(update) if self.clip is not None else 0.0
        return 1.0 if self.clip is None or length <= self.clip else self.clip / length
