"""Which images a report shows."""

import pytest
import torch

from fedsim.records import RunDirectory
from fedsim.report.gallery import Images, best_median_worst, ranked, same_image, spread_over
from fedsim.truth import unseal
from tests.fedsim.conftest import MadeRun, Make


@pytest.mark.parametrize(
    ("length", "most", "expected"),
    [(0, 3, []), (1, 3, [0]), (3, 3, [0, 1, 2]), (9, 3, [0, 4, 8]), (5, 2, [0, 4])],
)
def test_a_spread_has_both_ends(length: int, most: int, expected: list[int]) -> None:
    assert spread_over(length, most) == expected


def test_the_worst_guess_is_shown_beside_the_best(finished_run: RunDirectory) -> None:
    pairs = ranked(finished_run.scores(), "dlg")

    (best, median, worst) = best_median_worst(pairs)

    values = sorted(pair.value or 0.0 for pair in pairs)
    assert [name for name, _ in (best, median, worst)] == ["best", "median", "worst"]
    assert best[1].value == values[-1]
    assert worst[1].value == values[0]
    assert values[0] < (median[1].value or 0.0) < values[-1]
    assert [name for name, _ in best_median_worst(pairs[:2])] == ["best", "worst"]
    assert [name for name, _ in best_median_worst(pairs[:1])] == ["only guess"]
    assert best_median_worst([]) == []


def test_a_guess_is_shown_beside_the_image_it_was_paired_with(finished_run: RunDirectory) -> None:
    images = Images(finished_run)
    best = ranked(finished_run.scores(), "dlg")[0]

    original = images.original(best.score, best.key[1])
    guess = images.guess(best)

    assert original is not None
    assert guess is not None
    error = (original - guess).square().mean()
    torch.testing.assert_close(float(-10 * error.log10()), best.value, atol=1e-3, rtol=0)


def test_another_attack_is_shown_on_the_same_private_image(finished_run: RunDirectory) -> None:
    scores = finished_run.scores()
    pair = ranked(scores, "dlg")[3]

    other = same_image(scores, "IG", pair)

    assert other is not None
    assert other.key == pair.key
    assert same_image(scores, "no such attack", pair) is None


def test_a_failed_attack_has_no_guess_at_the_image(make_run: Make) -> None:
    run = make_run(MadeRun(rounds=2, failing=(2,)))
    scores = run.scores()
    pair = ranked(scores, "dlg")[0]
    failed = next(score for score in scores if score["status"] == "failed")
    elsewhere = type(pair)(score=failed, image=None)

    other = same_image(scores, "IG", elsewhere)

    assert other is not None
    assert Images(run).guess(other) is None


def test_a_film_ends_at_the_guess_of_the_same_image(finished_run: RunDirectory) -> None:
    images = Images(finished_run)
    pair = ranked(finished_run.scores(), "dlg")[0]

    film = images.film(pair, most=3)

    assert [step for step, _ in film] == [0, 200, 400]
    guess = images.guess(pair)
    assert guess is not None
    assert torch.equal(film[-1][1], guess)


def test_a_run_whose_truth_was_taken_out_has_no_originals(finished_run: RunDirectory) -> None:
    score = finished_run.scores()[0]
    assert unseal(finished_run, score["round"], score["victim"]) is not None
    for path in (finished_run.root / "truth").iterdir():
        path.unlink()

    assert Images(finished_run).original(score, 0) is None
