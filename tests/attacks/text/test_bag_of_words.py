"""The bag of words is exact, with tied weights and without."""

from dataclasses import replace

import pytest
import torch

from attacks.observation import AttackFailed
from attacks.text.bag_of_words import BagOfWords
from attacks.text.tokens import Head
from tests.attacks.text.sentences import (
    END,
    PAD,
    START,
    examples,
    hear,
    model_for,
    sentences,
    tokens,
)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", ["causal", "masked", "classes"])
def test_the_tokens_of_a_batch_are_told_exactly(
    head: Head, tied: bool, rng: torch.Generator
) -> None:
    of = tokens(head, 2_000)
    texts = sentences(2, 12, of, short=3)
    inputs, labels = examples(texts, of)
    seen, known = hear(model_for(of, 12, tied=tied), inputs, labels, of)

    found = BagOfWords()(seen, known, rng=rng)

    assert found.inputs is not None
    bag = set(found.inputs.flatten().tolist()) - {PAD}
    wanted = set(inputs.flatten().tolist()) - {PAD}
    if tied and head != "classes":
        wanted |= set(labels[labels >= 0].tolist())
    elif head == "causal":
        wanted -= {END}  # the last token is given to the model, but moves no loss
    assert bag == wanted
    assert found.inputs[0, 0] == START


def test_noise_alone_is_refused_in_words(rng: torch.Generator) -> None:
    of = tokens("causal")
    seen, known = hear(model_for(of, 12), *examples(sentences(2, 12, of), of), of)
    noise = {name: torch.randn(t.shape, generator=rng) for name, t in seen.update.items()}

    with pytest.raises(AttackFailed, match="no row stands out"):
        BagOfWords()(replace(seen, update=noise), known, rng=rng)


def test_an_update_without_the_embedding_is_refused_in_words(rng: torch.Generator) -> None:
    of = tokens("classes")
    seen, known = hear(model_for(of, 12), *examples(sentences(1, 12, of), of), of)
    rest = {name: t for name, t in seen.update.items() if "word_embeddings" not in name}

    with pytest.raises(AttackFailed, match="was not heard"):
        BagOfWords()(replace(seen, update=rest), known, rng=rng)
