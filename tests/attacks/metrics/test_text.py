"""Comparing texts."""

import itertools

import pytest
import torch

from attacks.metrics.text import (
    bag_recall,
    exact_match,
    match_texts,
    rouge,
    token_accuracy,
    typical_text,
    unigram_texts,
)

PAD, START, END = 0, 1, 2
SPECIAL = frozenset({PAD, START, END})


def texts(*tokens: list[int], length: int = 6) -> torch.Tensor:
    return torch.tensor([one + [PAD] * (length - len(one)) for one in tokens])


def test_a_token_counts_where_it_stands_and_pads_count_for_nothing() -> None:
    truth = texts([START, 7, 8, 9, END], [START, 5, END])
    guess = texts([START, 7, 9, 8, END, 4], [3, 5, 5, 5])

    assert token_accuracy(guess, truth, special=SPECIAL).tolist() == [pytest.approx(1 / 3), 1.0]
    assert token_accuracy(guess, truth).tolist() == [0.5, 0.5]  # pads that are there in both


def test_a_guess_may_be_shorter_or_longer_than_the_text() -> None:
    truth = torch.tensor([[7, 8, 9, 7]])

    assert token_accuracy(torch.tensor([[7, 8]]), truth).tolist() == [0.5]
    assert token_accuracy(torch.tensor([[7, 8, 9, 7, 5, 5]]), truth).tolist() == [1.0]


def test_a_match_is_exact_token_by_token_not_position_by_position() -> None:
    truth = texts([START, 7, 8, END], [START, 7, 8, END])
    guess = texts([7, 8], [7, 8, 8])

    assert exact_match(guess, truth, special=SPECIAL).tolist() == [True, False]


def test_the_bag_counts_a_token_as_often_as_it_is_there() -> None:
    truth = texts([7, 7, 8, 9])

    assert bag_recall(texts([9, 7]), truth, special=SPECIAL).tolist() == [0.5]
    assert bag_recall(texts([7, 7, 7, 7]), truth, special=SPECIAL).tolist() == [0.5]
    assert bag_recall(texts([9, 8, 7, 7]), truth, special=SPECIAL).tolist() == [1.0]


def test_rouge_is_the_f_measure_of_shared_tokens_pairs_and_the_longest_subsequence() -> None:
    truth = texts([START, 11, 12, 13, 14, END])
    guess = texts([START, 12, 13, 11, END])

    found = rouge(guess, truth, special=SPECIAL)

    def f_measure(hits: int, said: int, meant: int) -> float:
        return 2 * hits / (said + meant)

    assert found.one.item() == pytest.approx(f_measure(3, 3, 4))
    assert found.two.item() == pytest.approx(f_measure(1, 2, 3))  # (12, 13)
    assert found.longest.item() == pytest.approx(f_measure(2, 3, 4))  # 12 13


def test_rouge_of_the_text_itself_is_one_and_of_other_tokens_zero() -> None:
    truth = texts([11, 12, 13], [11, 12, 13])

    found = rouge(texts([11, 12, 13], [21, 22, 23]), truth, special=SPECIAL)

    for values in (found.one, found.two, found.longest):
        assert values.tolist() == [1, 0]


@pytest.mark.parametrize("num_guesses", [2, 4, 5])
def test_no_other_pairing_has_more_tokens_in_their_places(
    num_guesses: int, rng: torch.Generator
) -> None:
    truths = torch.randint(3, 5, (4, 6), generator=rng)
    guesses = torch.randint(3, 5, (num_guesses, 6), generator=rng)

    found = match_texts(guesses, truths, special=SPECIAL)

    table = token_accuracy(guesses[None], truths[:, None], special=SPECIAL)
    few = min(num_guesses, 4)
    best = max(
        sum(float(table[pair]) for pair in zip(some, chosen, strict=True))
        for some in itertools.combinations(range(4), few)
        for chosen in itertools.permutations(range(num_guesses), few)
    )
    assert sum(float(table[pair]) for pair in found) == pytest.approx(best)


def test_among_equal_places_the_guess_with_the_right_tokens_is_taken() -> None:
    truths = texts([11, 12, 13], [21, 22, 23])
    guesses = texts([22, 23, 21], [12, 13, 11])

    assert match_texts(guesses, truths, special=SPECIAL) == [(0, 1), (1, 0)]


def test_random_texts_have_tokens_as_often_as_the_sample(rng: torch.Generator) -> None:
    sample = texts([START, 7, 7, 7, 8, END])

    drawn = unigram_texts(sample, 1_000, length=4, special=SPECIAL, rng=rng)

    assert drawn.shape == (1_000, 4)
    assert set(drawn.flatten().tolist()) == {7, 8}
    assert float((drawn == 7).double().mean()) == pytest.approx(0.75, abs=0.03)  # 4 errors


def test_the_typical_text_has_the_most_frequent_token_of_each_place() -> None:
    sample = texts([START, 7, 8, END], [START, 7, 9, 7, END], [START, 6, 9, END])

    assert typical_text(sample, length=6, special=SPECIAL).tolist() == [7, 7, 9, 7, 7, 7]
    with pytest.raises(ValueError, match="holds no token but special ones"):
        typical_text(texts([START, END]), length=3, special=SPECIAL)
