"""What server and clients agree on before they sum anything in secret."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import torch

from fedsim.secure_sum.field import Quantiser
from fedsim.seeds import stream


class Stage(StrEnum):
    """The four exchanges of a round, in order."""

    KEYS = "keys"
    """Clients send public keys."""
    SHARES = "shares"
    """Clients deal out shares of their secrets, encrypted for each other."""
    MASKED = "masked"
    """Clients train, and send masked updates."""
    UNMASK = "unmask"
    """Clients reveal the shares that remove the masks of the sum."""


StageName = Literal["keys", "shares", "masked", "unmask"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a federation sums in secret.

    Attributes:
        clip: Largest coordinate of an update, in units of the update; larger ones are cut off.
        buffer_clip: The same for the change of a running statistic.
        bits: Bits per coordinate, sign included; the step between two levels is
            `clip / (2 ** (bits - 1) - 1)`.
        rounding: To the nearest level, or at random to one of the two nearest, right on average.
        field_bits: Sums are taken modulo 2 to this power; it sets the size of a message.
        threshold: Clients that must stay to the end, and of whom one fewer, together with the
            server, learn nothing but the sum; unset means more than two thirds of those drawn.
        randomness: Where keys and masks come from: the experiment's seed, so that a simulation can
            be repeated, or the operating system, as a deployment must.
        drop: Clients that stop answering at a stage, by stage, for tests and demonstrations.
        drop_probability: How likely each client is to stop answering at a stage, by stage.
    """

    clip: float = 8.0
    buffer_clip: float = 64.0
    bits: int = 20
    rounding: Literal["nearest", "stochastic"] = "stochastic"
    field_bits: Literal[32, 64] = 32
    threshold: int | None = None
    randomness: Literal["seed", "system"] = "seed"
    drop: Mapping[StageName, Sequence[int]] = field(default_factory=dict)
    drop_probability: Mapping[StageName, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what would be silently wrong."""
        for name in ("clip", "buffer_clip"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be greater than 0, got {getattr(self, name)}")
        if not 2 <= self.bits <= min(32, self.field_bits):
            raise ValueError(f"bits must be from 2 to 32, got {self.bits}")
        if self.threshold is not None and self.threshold < 2:
            raise ValueError(
                f"threshold must be at least 2, got {self.threshold}: the sum of one client is "
                "its update"
            )
        for stage, probability in self.drop_probability.items():
            if not 0 <= probability <= 1:
                raise ValueError(f"drop_probability.{stage} must be from 0 to 1, got {probability}")

    @property
    def quantiser(self) -> Quantiser:
        """How coordinates of an update become levels."""
        return Quantiser(self.clip, self.bits, self.rounding)

    @property
    def buffer_quantiser(self) -> Quantiser:
        """How changes of running statistics become levels."""
        return Quantiser(self.buffer_clip, self.bits, self.rounding)

    def threshold_of(self, num_clients: int) -> int:
        """Return how many of so many clients must stay to the end."""
        return self.threshold or num_clients * 2 // 3 + 1

    def drops(self, seed: int, server_round: int, client: int, stage: Stage) -> bool:
        """Whether a client is made to stop answering at this stage of this round."""
        if client in self.drop.get(stage.value, ()):
            return True
        probability = self.drop_probability.get(stage.value, 0.0)
        rng = stream(
            seed, "round", server_round, "client", client, "secure-aggregation", "drop", stage.value
        )
        return bool(torch.rand((), generator=rng) < probability)


def settings_of(chain: Mapping[str, object]) -> Settings | None:
    """Return how a chain of defenses sums in secret; None if it does not."""
    return next((link for link in chain.values() if isinstance(link, Settings)), None)
