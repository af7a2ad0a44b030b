"""Tokens that lie in a span are told from mixtures, and put together."""

import pytest
import torch
from torch import Tensor

from attacks.observation import Budget
from attacks.text.assembly import FITS, choices, gathered, improved, sieved, without
from attacks.text.dager import tokens_in_span
from attacks.text.evidence import Evidence, evidence_of
from tests.attacks.text.sentences import examples, hear, model_for, sentences, tokens

LENGTH = 12


@pytest.fixture
def batch() -> tuple[Evidence, Tensor]:
    """What is told of four sentences of an encoder, and their tokens as they were fed."""
    of = tokens("masked")
    inputs, labels = examples(sentences(4, LENGTH, of), of)
    return evidence_of(*hear(model_for(of, LENGTH), inputs, labels, of)), inputs


def test_most_mixtures_of_tokens_are_sieved_out_and_no_token_of_the_batch(
    batch: tuple[Evidence, Tensor], rng: torch.Generator
) -> None:
    evidence, inputs = batch
    pools = tokens_in_span(evidence, 0.0)

    few, seeds = sieved(evidence, pools, rng)

    assert max(map(len, pools)) > 12  # masks stand at several positions: mixtures are in the span
    assert max(map(len, few)) <= 12
    for place, pool in enumerate(few):
        assert set(inputs[:, place].tolist()) <= set(pool.tolist())
    real = {(place, token) for row in inputs.tolist() for place, token in enumerate(row)}
    assert set(seeds[:16]) <= real  # the surest first


def test_a_token_of_one_sentence_alone_gathers_that_sentence(
    batch: tuple[Evidence, Tensor], rng: torch.Generator
) -> None:
    evidence, inputs = batch
    few, _ = sieved(evidence, tokens_in_span(evidence, 0.0), rng)
    place = next(p for p in range(1, LENGTH) if len(set(inputs[:, p].tolist())) == 4)

    for row in inputs:
        assert gathered(evidence, few, place, int(row[place]), rng).tolist() == row.tolist()


def test_a_wrong_token_is_changed_back(batch: tuple[Evidence, Tensor]) -> None:
    evidence, inputs = batch
    pools = tokens_in_span(evidence, 0.0)
    wrong = inputs[0].clone()
    wrong[6] = inputs[1, 6]

    misfit, found = improved(evidence, pools, wrong, Budget())

    assert found == inputs[0].tolist()
    assert misfit <= FITS < float(evidence.misfit(wrong[None]).mean())


def test_tokens_of_sentences_that_were_found_are_left_out_where_others_are_left() -> None:
    pools = [torch.tensor([1]), torch.tensor([5, 6]), torch.tensor([3, 7])]

    left = without(pools, [[1, 5, 3], [9, 9]], frozenset({3}))

    assert [pool.tolist() for pool in left] == [[1], [6], [3, 7]]
    assert [part.tolist() for part in choices(left)] == [[0, 1, 2, 2], [1, 6, 3, 7]]
