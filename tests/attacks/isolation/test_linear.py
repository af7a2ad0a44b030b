"""What is exact is in the row space, and the error of estimates is the one that is predicted."""

import numpy as np
import pytest
import torch

from attacks.isolation.linear import Problem, Reading
from attacks.isolation.prior import LEAST, MOST, Prior, learned
from attacks.isolation.unknowns import Unknowns


def random_problem(
    rng: np.random.Generator, *, prior: Prior | None = None, num_rows: int = 6
) -> Problem:
    """Return sparse rows of small whole numbers about three rounds of four peers."""
    unknowns = Unknowns(num_peers=4, rounds=3)
    rows = rng.integers(-1, 2, size=(num_rows, len(unknowns))) * (
        rng.random((num_rows, len(unknowns))) < 0.4
    )
    return Problem(
        unknowns=unknowns,
        rows=rows.astype(float),
        known=(0, *unknowns.of_peers([0])),
        sizes=np.ones(num_rows),
        precision=1e-9,
        prior=prior or Prior(),
    )


def drawn(problem: Problem, rng: np.random.Generator, num_draws: int) -> np.ndarray:
    """Return unknowns as the prior has them, (U, num_draws), and no noise."""
    independent = rng.standard_normal((len(problem.unknowns), num_draws))
    factor = problem.prior.factor(problem.unknowns, np.eye(len(problem.unknowns)))
    return np.asarray(factor @ independent)


def computed(reading: Reading, heard: np.ndarray, unknowns: np.ndarray) -> np.ndarray:
    """Carry a reading out."""
    return np.asarray(
        reading.weights @ heard[reading.heard] + reading.known_weights @ unknowns[reading.known]
    )


def test_exact_is_what_the_rank_says() -> None:
    rng = np.random.default_rng(0)
    found = set()
    for _ in range(200):
        problem = random_problem(rng)
        free = ~problem.is_known
        rows = problem.rows[:, free]
        readings = problem.exact(np.eye(len(problem.unknowns)))
        for column in np.flatnonzero(free):
            unit = np.eye(len(problem.unknowns))[column, free]
            grows = np.linalg.matrix_rank(np.vstack([rows, unit])) > np.linalg.matrix_rank(rows)
            assert (readings[column] is None) == grows
            found.add(grows)

    assert found == {True, False}


def test_an_exact_reading_gives_the_unknown_whatever_the_others_are() -> None:
    rng = np.random.default_rng(1)
    checked = 0
    for _ in range(50):
        problem = random_problem(rng, num_rows=8)
        unknowns = 1e3 * rng.standard_normal((len(problem.unknowns), 5))
        for column, reading in enumerate(problem.exact(np.eye(len(problem.unknowns)))):
            if reading is not None:
                guess = computed(reading, problem.rows @ unknowns, unknowns)
                np.testing.assert_allclose(guess, unknowns[column], rtol=1e-8, atol=1e-6)
                checked += not problem.is_known[column]

    assert checked > 20  # or the test says nothing


@pytest.mark.parametrize(
    "prior",
    [
        Prior(),
        Prior(update_std=3.0, start_std=0.1),
        Prior(round_change=0.4),
        Prior(round_change=0.7, peer_correlation=0.5),
        Prior(round_change=0.3, change_correlation=0.9, peer_correlation=0.2),
    ],
    ids=["independent", "scaled", "rounds alike", "rounds and peers alike", "drift"],
)
def test_estimates_err_as_much_as_predicted_on_gaussian_unknowns(prior: Prior) -> None:
    rng = np.random.default_rng(2)
    problem = random_problem(rng, prior=prior, num_rows=4)
    unknowns = drawn(problem, rng, 20_000)
    heard = problem.rows @ unknowns
    targets = np.flatnonzero(~problem.is_known)

    readings = problem.read(np.eye(len(problem.unknowns))[targets])

    kinds = {reading.how for reading in readings}
    assert "estimated" in kinds
    for column, reading in zip(targets, readings, strict=True):
        error = computed(reading, heard, unknowns) - unknowns[column]
        measured = np.sqrt(np.mean(error**2)) / reading.prior_std
        # 20 000 draws tell a standard deviation to half a percent
        assert measured == pytest.approx(reading.expected_error, rel=0.03, abs=1e-6)


def test_known_updates_help_to_estimate_those_that_are_like_them() -> None:
    unknowns = Unknowns(num_peers=2, rounds=1)
    problem = Problem(
        unknowns=unknowns,
        rows=np.zeros((0, 3)),
        known=(0, 1),
        sizes=np.zeros(0),
        prior=Prior(peer_correlation=0.8),
    )

    (reading,) = problem.read(unknowns.unit(unknowns.update(1, 1))[None])

    assert reading.known.tolist() == [1]
    assert reading.known_weights == pytest.approx([0.8], abs=1e-6)
    assert reading.expected_error == pytest.approx(0.6, abs=1e-6)  # sqrt(1 - 0.8^2)


def test_updates_that_never_change_are_told_by_two_sums() -> None:
    unknowns = Unknowns(num_peers=2, rounds=2)
    rows = np.array([[0.0, 1, 1, 0, 0], [0.0, 0, 0, 1, 2]])  # a + b, then a + 2 b
    problem = Problem(
        unknowns=unknowns,
        rows=rows,
        known=(0,),
        sizes=np.ones(2),
        prior=Prior(round_change=0.0),
    )

    readings = problem.read(np.eye(5)[1:])

    assert problem.exact(np.eye(5)[1:2]) == [None]
    assert all(reading.expected_error < 1e-6 for reading in readings)
    np.testing.assert_allclose(readings[0].weights, [2, -1], atol=1e-6)


def test_noise_gain_is_what_rounding_grows_to() -> None:
    rng = np.random.default_rng(3)
    unknowns = Unknowns(num_peers=3, rounds=1)
    rows = np.array([[0.0, 1, 1, 1], [0.0, 1, 1, 0.99], [0.0, 0, 1, 0]])
    problem = Problem(
        unknowns=unknowns, rows=rows, known=(0,), sizes=np.full(3, 1.7), precision=1e-7
    )
    truth = rng.standard_normal((4, 20_000))
    heard = rows @ truth + 1e-7 * 1.7 * rng.standard_normal((3, 20_000))

    (reading,) = problem.exact(unknowns.unit(3)[None])

    assert reading is not None
    measured = np.sqrt(np.mean((computed(reading, heard, truth) - truth[3]) ** 2))
    assert measured == pytest.approx(reading.noise_gain * 1e-7, rel=0.03)
    assert reading.noise_gain == pytest.approx(100 * 2**0.5 * 1.7, rel=1e-6)


def test_what_would_drown_in_rounding_is_estimated_instead() -> None:
    unknowns = Unknowns(num_peers=2, rounds=1)
    problem = Problem(
        unknowns=unknowns,
        rows=np.array([[0.0, 1, 1], [0.0, 1, 1 + 1e-8]]),
        known=(0,),
        sizes=np.ones(2),
        precision=1e-7,
    )

    (reading,) = problem.read(unknowns.unit(2)[None])

    assert reading.how == "estimated"
    assert reading.expected_error == pytest.approx(0.5**0.5, rel=1e-2)


def test_of_multiples_of_one_vector_the_least_noisy_is_read() -> None:
    unknowns = Unknowns(num_peers=1, rounds=1)
    problem = Problem(
        unknowns=unknowns,
        rows=np.array([[0.0, 0.5], [0.0, 2.0], [0.0, 1.0]]),
        known=(0,),
        sizes=np.array([1.0, 3.0, 1.0]),
    )

    (reading,) = problem.exact(unknowns.unit(1)[None])

    assert reading is not None
    assert reading.heard.tolist() == [2]
    assert reading.weights.tolist() == [1.0]


def test_a_prior_is_learned_from_updates_that_are_known() -> None:
    rng = np.random.default_rng(4)
    unknowns = Unknowns(num_peers=6, rounds=8)
    truth = Prior(update_std=0.3, round_change=0.6, peer_correlation=0.4)
    factor = truth.factor(unknowns, np.eye(len(unknowns)))
    values = torch.from_numpy(factor @ rng.standard_normal((len(unknowns), 5_000)))
    updates = {
        (peer, one): values[unknowns.update(peer, one)] for peer in range(6) for one in range(1, 9)
    }

    found = learned(updates, start_std=2.0)

    assert found.start_std == 2.0
    assert found.update_std == pytest.approx(0.3, rel=0.05)
    assert found.round_change == pytest.approx(0.6, abs=0.02)
    assert found.change_correlation == 0.0
    assert found.peer_correlation == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize("change", [1e-3, 1e-9, 1e-13])
def test_changes_far_below_the_rounding_of_a_cosine_are_learned(change: float) -> None:
    rng = torch.Generator().manual_seed(0)
    first, new = torch.randn(2, 1000, generator=rng, dtype=torch.float64)
    new -= torch.dot(first, new) / torch.dot(first, first) * first
    new *= change * first.norm() / new.norm()

    found = learned({(0, 1): first, (0, 2): first + new}, start_std=1.0)

    assert found.round_change == pytest.approx(change, rel=0.02)


def test_updates_that_stayed_the_same_to_the_last_bit_still_may_change() -> None:
    same = torch.ones(5)
    assert learned({(0, 1): same, (0, 2): same}, start_std=1.0).round_change == LEAST


def test_updates_that_shrink_do_not_stay_the_same() -> None:
    first = torch.randn(1000, generator=torch.Generator().manual_seed(0))

    found = learned({(0, 1): first, (0, 2): 0.9 * first}, start_std=1.0)

    assert found.round_change == pytest.approx((1 - (1.8 / 1.81) ** 2) ** 0.5)


def test_whether_updates_drift_or_jump_is_learned_from_three_in_a_row() -> None:
    rng = torch.Generator().manual_seed(0)
    start, drift = torch.randn(2, 1000, generator=rng, dtype=torch.float64)
    jumps = torch.randn(5, 1000, generator=rng, dtype=torch.float64)
    drifting = {(0, number): start + 1e-9 * number * drift for number in range(1, 6)}
    jumping = {(0, number + 1): start + 1e-9 * jumps[number] for number in range(5)}
    two_of_each = {(peer, number): jumps[number + 2 * peer] for peer in (0, 1) for number in (1, 2)}

    learnt = [learned(one, start_std=1.0) for one in (drifting, jumping, two_of_each)]

    assert [one.change_correlation for one in learnt] == [MOST, 0.0, 0.0]


def test_updates_that_drift_have_one_size_and_changes_that_resemble_each_other() -> None:
    unknowns = Unknowns(num_peers=1, rounds=12)
    prior = Prior(update_std=2.0, round_change=1e-3, change_correlation=0.8)

    factor = prior.factor(unknowns, np.eye(len(unknowns)))[1:]
    covariance, changes = factor @ factor.T, np.diff(factor, axis=0)

    assert np.diag(covariance) == pytest.approx(np.full(12, 4.0))
    assert np.linalg.norm(changes, axis=1) == pytest.approx(np.full(11, 2e-3), rel=0.02)
    for lag in (1, 2):
        assert changes[0] @ changes[lag] / 4e-6 == pytest.approx(0.8**lag, rel=0.02)


def test_the_covariance_of_a_prior_is_the_one_that_it_states() -> None:
    unknowns = Unknowns(num_peers=3, rounds=4)
    prior = Prior(update_std=2.0, start_std=5.0, round_change=0.8, peer_correlation=0.3)

    factor = prior.factor(unknowns, np.eye(len(unknowns)))
    covariance = factor @ factor.T

    assert covariance[0, 0] == pytest.approx(25)
    for one in range(1, len(unknowns)):
        for other in range(1, len(unknowns)):
            (peer, number), (peer_2, number_2) = map(unknowns.peer_and_round, (one, other))
            expected = 4 * 0.6 ** abs(number - number_2) * (1 if peer == peer_2 else 0.3)
            assert covariance[one, other] == pytest.approx(expected)


def test_rows_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rows must have shape \(M, 3\), got \(1, 4\)"):
        Problem(
            unknowns=Unknowns(num_peers=2, rounds=1),
            rows=np.zeros((1, 4)),
            known=(),
            sizes=np.ones(1),
        )


@pytest.mark.parametrize(
    "setting", ["update_std", "round_change", "change_correlation", "peer_correlation"]
)
def test_priors_that_are_none_are_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} must be"):
        Prior(**{setting: -0.1})
