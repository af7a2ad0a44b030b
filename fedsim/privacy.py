"""What differential privacy a defense gives, by Opacus' accountants."""

import math
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedsim.config import TrainingConfig
from fedsim.errors import ConfigError

Accountant = Literal["rdp", "prv", "gdp"]
"""Opacus' accountants: Renyi divergences (the default, an upper bound), privacy loss random
variables (tighter, an upper bound), and the central limit theorem (an approximation, which may say
too little)."""

Unit = Literal["example", "client"]
"""Whose presence nobody can tell: one example's, or all of a client's."""


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """Gaussian noise on a sum of clipped parts, used so many times.

    Attributes:
        noise_multiplier: Standard deviation of the noise over the sensitivity.
        sample_rate: Probability with which each unit is in a sum; 1 for no sampling.
        num_steps: How often.
        accountant: How its uses are added up.
    """

    noise_multiplier: float
    sample_rate: float
    num_steps: int
    accountant: Accountant = "rdp"


@dataclass(frozen=True, kw_only=True)
class Share:
    """One client's part in an experiment, as far as accounting asks.

    Attributes:
        num_examples: Examples it holds.
        batch_size: Examples per step.
        num_steps: Steps it takes in a round.
        num_epochs: Passes over its examples in a round, begun ones included: the most that one
            example is used.
        num_rounds: Rounds in which it takes part.
    """

    num_examples: int
    batch_size: int
    num_steps: int
    num_epochs: int
    num_rounds: int


@runtime_checkable
class Accounted(Protocol):
    """A defense that gives differential privacy."""

    unit: Unit
    """Whose presence it hides."""

    @property
    def delta(self) -> float:
        """The probability with which epsilon may be exceeded."""

    def tailored(self, share: Share) -> "Accounted":
        """Return the defense as a client with such a share uses it: its noise is settled.

        Args:
            share: Of the client, over all rounds of the experiment.
        """

    def mechanism(self, share: Share) -> Mechanism:
        """Return what was done to the client's data; only a tailored defense can say.

        Args:
            share: Of the client; `num_rounds` are those that are over.
        """


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a federation has given away.

    Attributes:
        epsilon: The largest of any client; infinite without noise.
        delta: The probability with which it may be exceeded.
        unit: Whose presence is hidden.
    """

    epsilon: float
    delta: float
    unit: Unit

    def record(self) -> dict[str, object]:
        """Return it as records hold it."""
        finite = math.isfinite(self.epsilon)
        return {
            "epsilon": self.epsilon if finite else None,
            "delta": self.delta,
            "privacy_unit": self.unit,
        }


@lru_cache(maxsize=4096)
def epsilon_of(mechanism: Mechanism, delta: float) -> float:
    """Return epsilon, by Opacus; 0 for a mechanism that was never used, infinite without noise."""
    if mechanism.num_steps == 0:
        return 0.0
    if mechanism.noise_multiplier == 0:
        return math.inf
    from opacus.accountants import RDPAccountant, create_accountant  # late: it takes seconds
    from opacus.accountants.analysis import rdp as renyi

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of orders and rounding; GDP's is in our documentation
        if mechanism.accountant == "rdp":  # the same sums, without the divergences anew each round
            orders = RDPAccountant.DEFAULT_ALPHAS
            once = _divergences(mechanism.sample_rate, mechanism.noise_multiplier)
            spent = renyi.get_privacy_spent(
                orders=orders, rdp=once * mechanism.num_steps, delta=delta
            )
            return float(spent[0])
        accountant = create_accountant(mechanism=mechanism.accountant)
        accountant.history = [
            (mechanism.noise_multiplier, mechanism.sample_rate, mechanism.num_steps)
        ]
        return float(accountant.get_epsilon(delta=delta))


@lru_cache(maxsize=4096)
def _divergences(sample_rate: float, noise_multiplier: float) -> NDArray[np.float64]:
    """Return the Renyi divergences of one step, one per order that Opacus looks at."""
    from opacus.accountants import RDPAccountant
    from opacus.accountants.analysis import rdp as renyi

    found: NDArray[np.float64] = renyi.compute_rdp(
        q=sample_rate,
        noise_multiplier=noise_multiplier,
        steps=1,
        orders=RDPAccountant.DEFAULT_ALPHAS,
    )
    return found


@lru_cache(maxsize=4096)
def noise_multiplier_for(
    epsilon: float, delta: float, *, sample_rate: float, num_steps: int, accountant: Accountant
) -> float:
    """Return a noise multiplier with which so many steps cost at most `epsilon`, by Opacus.

    Raises:
        ConfigError: No amount of noise is enough.
    """
    from opacus.accountants.utils import get_noise_multiplier

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return float(
                get_noise_multiplier(
                    target_epsilon=epsilon,
                    target_delta=delta,
                    sample_rate=sample_rate,
                    steps=num_steps,
                    accountant=accountant,
                    epsilon_tolerance=min(0.01, epsilon / 100),
                )
            )
        except ValueError as error:
            raise ConfigError(
                f"no noise gives epsilon {epsilon:g} at delta {delta:g} over {num_steps} steps: "
                f"{error} Ask for a larger epsilon, or for fewer rounds"
            ) from error


def share_of(training: TrainingConfig, num_examples: int, num_rounds: int) -> Share:
    """Return the share of a client that holds so many examples and takes part in so many rounds."""
    num_steps = training.num_local_steps(num_examples)
    steps_of_a_pass = -(-num_examples // training.batch_size)
    return Share(
        num_examples=num_examples,
        batch_size=training.batch_size,
        num_steps=num_steps,
        num_epochs=-(-num_steps // steps_of_a_pass),
        num_rounds=num_rounds,
    )


def settle_noise(
    noise_multiplier: float | None, epsilon: float | None, delta: float, mechanism: Mechanism
) -> float:
    """Return the noise multiplier to use: that asked for, or one that spends `epsilon` in the end.

    Args:
        noise_multiplier: As asked for; None where `epsilon` is.
        epsilon: As asked for; None where `noise_multiplier` is.
        delta: The probability with which epsilon may be exceeded.
        mechanism: What is done over all rounds, its noise aside.
    """
    if epsilon is None:
        return 1.0 if noise_multiplier is None else noise_multiplier
    if mechanism.num_steps == 0:
        return 1.0  # a client that never takes part
    return noise_multiplier_for(
        epsilon,
        delta,
        sample_rate=mechanism.sample_rate,
        num_steps=mechanism.num_steps,
        accountant=mechanism.accountant,
    )


def refuse_bad_budget(noise_multiplier: float | None, epsilon: float | None, delta: float) -> None:
    """Check the three settings that every accounted defense has.

    Raises:
        ValueError: One has no meaning, or noise is asked for in two ways.
    """
    if noise_multiplier is not None and epsilon is not None:
        raise ValueError("give noise_multiplier or epsilon, not both: one follows from the other")
    if noise_multiplier is not None and noise_multiplier < 0:
        raise ValueError(f"noise_multiplier must be 0 or more, got {noise_multiplier}")
    if epsilon is not None and not epsilon > 0:
        raise ValueError(f"epsilon must be above 0, got {epsilon}")
    if not 0 < delta < 1:
        raise ValueError(f"delta must be between 0 and 1, got {delta}")
