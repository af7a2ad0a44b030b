"""Epsilon, against Opacus' own accountants and closed forms."""

import math

import pytest
from opacus.accountants import PRVAccountant, RDPAccountant
from scipy.stats import norm

from fedsim.config import TrainingConfig
from fedsim.privacy import (
    Mechanism,
    Spent,
    epsilon_of,
    noise_multiplier_for,
    refuse_bad_budget,
    share_of,
)


@pytest.mark.parametrize("kind", [RDPAccountant, PRVAccountant])
@pytest.mark.parametrize("sample_rate", [0.05, 0.5])
def test_epsilon_is_that_of_opacus_own_accountant_step_by_step(
    kind: type[RDPAccountant], sample_rate: float
) -> None:
    accountant = kind()
    for _ in range(12):
        accountant.step(noise_multiplier=1.1, sample_rate=sample_rate)

    found = epsilon_of(
        Mechanism(
            noise_multiplier=1.1,
            sample_rate=sample_rate,
            num_steps=12,
            accountant="rdp" if kind is RDPAccountant else "prv",
        ),
        1e-5,
    )

    assert found == accountant.get_epsilon(delta=1e-5)


def exact_epsilon(mu: float, delta: float) -> float:
    """The Gaussian mechanism's, by bisection of Balle and Wang's formula (2018, 1805.06530)."""

    def exceeded(epsilon: float) -> float:
        rest = math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
        return float(norm.cdf(mu / 2 - epsilon / mu) - rest)

    low, high = 0.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if exceeded(middle) > delta else (low, middle)
    return high


@pytest.mark.parametrize("num_steps", [1, 30])
def test_epsilon_without_sampling_bounds_the_gaussian_mechanism_from_above(num_steps: int) -> None:
    exact = exact_epsilon(math.sqrt(num_steps) / 2.0, 1e-5)

    def found(accountant: str) -> float:
        mechanism = Mechanism(
            noise_multiplier=2.0,
            sample_rate=1.0,
            num_steps=num_steps,
            accountant=accountant,  # type: ignore[arg-type]
        )
        return epsilon_of(mechanism, 1e-5)

    assert exact <= found("prv") <= exact + 0.03  # the error that the accountant allows itself
    assert exact <= found("rdp") <= 1.2 * exact


def test_sampling_costs_less_than_taking_everybody() -> None:
    def found(rate: float) -> float:
        return epsilon_of(Mechanism(noise_multiplier=1.0, sample_rate=rate, num_steps=10), 1e-5)

    assert found(0.01) < 0.2 * found(1.0)


def test_the_noise_that_is_found_spends_what_may_be_spent_and_no_more() -> None:
    multiplier = noise_multiplier_for(3.0, 1e-5, sample_rate=0.1, num_steps=20, accountant="rdp")

    mechanism = Mechanism(noise_multiplier=multiplier, sample_rate=0.1, num_steps=20)
    assert 2.98 < epsilon_of(mechanism, 1e-5) <= 3.0


def test_nothing_is_spent_without_a_step_and_everything_without_noise() -> None:
    never = Mechanism(noise_multiplier=1.0, sample_rate=0.1, num_steps=0)
    bare = Mechanism(noise_multiplier=0.0, sample_rate=0.1, num_steps=1)

    assert epsilon_of(never, 1e-5) == 0.0
    assert epsilon_of(bare, 1e-5) == math.inf
    assert Spent(epsilon=math.inf, delta=1e-5, unit="example").record()["epsilon"] is None


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ((1.0, 1.0, 1e-5), "not both"),
        ((-1.0, None, 1e-5), "noise_multiplier must be 0 or more"),
        ((None, 0.0, 1e-5), "epsilon must be above 0"),
        ((None, None, 1.0), "delta must be between 0 and 1"),
    ],
)
def test_budgets_without_meaning_are_refused(
    budget: tuple[float | None, float | None, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        refuse_bad_budget(*budget)


def test_a_share_counts_steps_and_passes_of_a_round() -> None:
    fedsgd = share_of(TrainingConfig(batch_size=4), 10, 7)
    fedavg = share_of(
        TrainingConfig(algorithm="fedavg", batch_size=4, local_epochs=3, max_local_steps=4), 10, 7
    )

    assert (fedsgd.num_steps, fedsgd.num_epochs, fedsgd.num_rounds) == (1, 1, 7)
    assert (fedavg.num_steps, fedavg.num_epochs) == (4, 2)  # three steps are a pass
