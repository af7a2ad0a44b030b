"""TIGER reads sentences where rounding and noise leave DAGER nothing to check."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attacks.observation import AttackFailed
from attacks.text.dager import DAGER
from attacks.text.tiger import TIGER
from attacks.text.tokens import Head
from tests.attacks.text.sentences import (
    examples,
    hear,
    model_for,
    same_sentences,
    sentences,
    tokens,
)

LENGTH = 12


def _bf16(tensor: Tensor, _: torch.Generator) -> Tensor:
    return tensor.bfloat16().float()


def _int8(tensor: Tensor, _: torch.Generator) -> Tensor:
    scale = float(tensor.abs().max()) / 127
    return tensor if scale == 0 else (tensor / scale).round() * scale


def _noise(tensor: Tensor, rng: torch.Generator) -> Tensor:
    return tensor + 0.01 * float(tensor.std()) * torch.randn(tensor.shape, generator=rng)


@pytest.mark.parametrize("disturbed", [_bf16, _int8, _noise])
@pytest.mark.parametrize("head", ["causal", "masked"])
def test_a_disturbed_gradient_still_tells_the_sentence(
    head: Head, disturbed: Callable[[Tensor, torch.Generator], Tensor], rng: torch.Generator
) -> None:
    of = tokens(head)
    texts = sentences(1, LENGTH, of)
    seen, known = hear(model_for(of, LENGTH), *examples(texts, of), of)
    seen = replace(seen, update={name: disturbed(t, rng) for name, t in seen.update.items()})

    with pytest.raises(AttackFailed, match="or by noise"):
        DAGER()(seen, known, rng=rng)
    found = TIGER()(seen, known, rng=rng)

    assert same_sentences(found.inputs, texts)
    assert found.certified is not None
    assert not bool(found.certified.any())  # noise cannot be recomputed
    assert found.snapshots


def test_more_tokens_than_embeddings_are_wide_are_refused_in_words(rng: torch.Generator) -> None:
    of = tokens("causal")
    model = model_for(of, LENGTH, width=32)
    seen, known = hear(model, *examples(sentences(3, LENGTH, of), of), of)

    with pytest.raises(AttackFailed, match="up to 33 tokens"):
        TIGER()(seen, known, rng=rng)
