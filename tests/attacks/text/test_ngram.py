import math

import pytest
import torch

from attacks.text.ngram import NGrams, count_ngrams, ngrams_of

from .overheard_texts import tokens_for

VOCABULARY = 7


@pytest.fixture
def counted() -> NGrams:
    """Trigrams of two short texts."""
    return count_ngrams([[1, 2, 3, 4], [1, 2, 3, 5]], order=3, vocabulary_size=VOCABULARY)


@pytest.mark.parametrize("context", [(), (2,), (2, 3), (6,), (6, 6), (6, 3)])
def test_the_chances_of_all_tokens_add_up_to_one(counted: NGrams, context: tuple[int, ...]) -> None:
    total = sum(counted.chance(context, token) for token in range(VOCABULARY))

    assert total == pytest.approx(1)


def test_a_chance_is_that_of_witten_and_bell() -> None:
    counted = count_ngrams([[1, 2]], order=2, vocabulary_size=4)

    alone = (1 + 2 / 4) / (2 + 2)  # seen once of two, and two different ones
    assert counted.chance((), 2) == pytest.approx(alone)
    assert counted.chance((1,), 2) == pytest.approx((1 + alone) / (1 + 1))
    assert counted.nats([1, 2]) == pytest.approx(-math.log((1 + alone) / 2))


def test_text_in_order_is_likelier_than_out_of_order(counted: NGrams) -> None:
    assert counted.nats([1, 2, 3, 4]) < counted.nats([4, 2, 1, 3])
    assert counted.nats([1]) == 0


def test_pads_are_no_part_of_a_text() -> None:
    padded = torch.tensor([[1, 7, 2, 0, 0]])

    counted = ngrams_of(padded, tokens_for("causal"), order=2)

    assert (0,) not in counted.followers
    assert counted.followers[(7,)] == {2: 1}
