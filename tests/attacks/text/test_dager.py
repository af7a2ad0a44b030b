"""DAGER reads sentences exactly, or says why it cannot."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from attacks.observation import AttackFailed, Kind
from attacks.text.dager import DAGER
from attacks.text.tokens import Head, Tokens
from fedsim.data.vocabulary import read_vocabulary
from tests.attacks.text.sentences import (
    examples,
    hear,
    model_for,
    same_sentences,
    sentences,
    tokens,
    trained,
)

LENGTH = 16


@pytest.mark.parametrize(
    ("head", "number"),
    [("causal", 1), ("masked", 1), ("classes", 1), ("causal", 2), ("classes", 2), ("masked", 4)],
)
def test_sentences_of_a_random_model_are_read_exactly_and_proved(
    head: Head, number: int, rng: torch.Generator
) -> None:
    of = tokens(head)
    texts = sentences(number, LENGTH, of)
    inputs, labels = examples(texts, of)
    seen, known = hear(model_for(of, LENGTH), inputs, labels, of)

    found = DAGER()(seen, known, rng=rng)

    assert same_sentences(found.inputs, texts)
    assert found.certified is not None
    assert bool(found.certified.all())
    assert found.matching_loss is not None
    assert found.matching_loss <= 1e-4
    if head == "classes":
        assert found.labels is not None
        assert found.inputs is not None
        told = dict(zip(map(tuple, found.inputs.tolist()), found.labels.tolist(), strict=True))
        assert [told[tuple(text)] for text in texts.tolist()] == labels.tolist()
    else:
        assert found.labels is None


@pytest.mark.parametrize(("head", "number"), [("causal", 2), ("masked", 2)])
def test_sentences_of_a_trained_model_are_read_exactly(
    head: Head, number: int, rng: torch.Generator
) -> None:
    of = tokens(head)
    model = trained(model_for(of, LENGTH), of, LENGTH, steps=60)
    texts = sentences(number, LENGTH, of)
    seen, known = hear(model, *examples(texts, of), of)

    found = DAGER()(seen, known, rng=rng)

    assert same_sentences(found.inputs, texts)
    assert found.certified is not None
    assert bool(found.certified.all())


@pytest.mark.parametrize("head", ["causal", "masked"])
def test_sentences_of_different_lengths_are_told_apart(head: Head, rng: torch.Generator) -> None:
    of = tokens(head)
    texts = sentences(2, LENGTH, of, short=5)
    seen, known = hear(model_for(of, LENGTH), *examples(texts, of), of)

    found = DAGER()(seen, known, rng=rng)

    assert same_sentences(found.inputs, texts)


@pytest.mark.parametrize("kind", [Kind.DELTA, Kind.WEIGHTS])
@pytest.mark.parametrize(("number", "steps", "momentum"), [(1, 1, 0.0), (2, 4, 0.0), (1, 4, 0.9)])
def test_a_decoders_sentences_are_read_off_several_local_steps(
    number: int, steps: int, momentum: float, kind: Kind, rng: torch.Generator
) -> None:
    of = tokens("causal")
    texts = sentences(number, LENGTH, of)
    seen, known = hear(
        model_for(of, LENGTH), *examples(texts, of), of, steps=steps, momentum=momentum
    )
    if kind is Kind.WEIGHTS:
        assert seen.weights is not None
        after = {name: seen.weights[name] + delta for name, delta in seen.update.items()}
        seen = replace(seen, kind=kind, update=after)

    found = DAGER()(seen, known, rng=rng)

    assert same_sentences(found.inputs, texts)


def test_four_sentences_with_a_vocabulary_of_30522_take_seconds(
    real_data: Path, rng: torch.Generator
) -> None:
    vocabulary = read_vocabulary(real_data / "text" / "bert-base-uncased")
    of = vocabulary.tokens("causal")
    lines = (real_data / "text" / "cola" / "in_domain_dev.tsv").read_text().splitlines()
    pieces = vocabulary.encode([line.split("\t")[3] for line in lines])
    long = [piece[: LENGTH - 2] for piece in pieces if len(piece) >= LENGTH - 2][:4]
    texts = torch.tensor([[of.start, *piece, of.end] for piece in long])
    labels = torch.full_like(texts, -100)
    labels[:, :-1] = texts[:, 1:]
    seen, known = hear(model_for(of, LENGTH), texts, labels, of)

    start = time.process_time()
    found = DAGER()(seen, known, rng=rng)

    assert same_sentences(found.inputs, texts)
    assert time.process_time() - start < 15  # of one processor: the page says so


class _Adapted(nn.Module):
    """A linear layer that is not trained, and an adapter of low rank that is (LoRA)."""

    def __init__(self, layer: nn.Module, width: int, outputs: int, rank: int) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=False)
        with torch.no_grad():
            for part in (self.down, self.up):
                part.weight.copy_(0.1 * torch.randn(part.weight.shape, generator=rng))

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.layer(inputs) + self.up(self.down(inputs))
        return found


def _adapted(of: Tokens, rank: int) -> nn.Module:
    model = model_for(of, LENGTH)
    for name, module in list(model.named_modules()):
        if name.endswith(".attn"):
            module.c_attn = _Adapted(module.c_attn, 128, 384, rank)
    return model


def test_the_lower_halves_of_adapters_tell_all_tokens_but_the_last(rng: torch.Generator) -> None:
    of = tokens("causal")
    texts = sentences(2, LENGTH, of)
    seen, known = hear(_adapted(of, rank=48), *examples(texts, of), of)
    seen = replace(seen, update={n: t for n, t in seen.update.items() if "down" in n})

    found = DAGER()(seen, known, rng=rng)

    assert found.inputs is not None
    assert same_sentences(found.inputs[:, :-1], texts[:, :-1])


@pytest.mark.parametrize("upper", [0.1, 0.0], ids=["trained", "as published"])
def test_adapters_of_query_and_value_tell_an_encoders_sentence(
    upper: float, rng: torch.Generator
) -> None:
    """Upper halves start at zero; then lower ones have no gradient, and the upper ones tell."""
    of = tokens("masked")
    inputs, labels = examples(sentences(1, LENGTH, of), of)
    model = model_for(of, LENGTH)
    for name, module in list(model.named_modules()):
        if name.endswith("attention.self"):
            module.query = _Adapted(module.query, 128, 128, rank=48)
            module.value = _Adapted(module.value, 128, 128, rank=48)
            for part in (module.query, module.value):
                part.up.weight.data *= upper / 0.1
    seen, known = hear(model, inputs, labels, of)
    halves = {n: t for n, t in seen.update.items() if ".down." in n or ".up." in n}

    found = DAGER()(replace(seen, update=halves), known, rng=rng)

    assert found.inputs is not None
    assert bool(((found.inputs == inputs) | (inputs == of.mask)).all())


def test_an_adapter_of_too_low_rank_tells_no_token(rng: torch.Generator) -> None:
    of = tokens("causal")
    seen, known = hear(_adapted(of, rank=8), *examples(sentences(2, LENGTH, of), of), of)
    seen = replace(seen, update={n: t for n, t in seen.update.items() if "down" in n})

    with pytest.raises(AttackFailed, match="the rank of an adapter"):
        DAGER()(seen, known, rng=rng)


def test_as_many_tokens_as_embeddings_are_wide_are_refused_in_words(rng: torch.Generator) -> None:
    of = tokens("causal")
    texts = sentences(4, LENGTH, of)
    model = model_for(of, LENGTH, width=32)
    seen, known = hear(model, *examples(texts, of), of)

    with pytest.raises(AttackFailed, match=r"4 examples of up to 16.*fewer tokens than embeddings"):
        DAGER()(seen, known, rng=rng)


def test_noise_is_refused_in_words(rng: torch.Generator) -> None:
    of = tokens("causal")
    seen, known = hear(model_for(of, LENGTH), *examples(sentences(2, LENGTH, of), of), of)
    noised = {
        name: t + 0.1 * float(t.std()) * torch.randn(t.shape, generator=rng)
        for name, t in seen.update.items()
    }

    with pytest.raises(AttackFailed, match="noise"):
        DAGER()(replace(seen, update=noised), known, rng=rng)


def test_an_update_without_attention_is_refused_in_words(rng: torch.Generator) -> None:
    of = tokens("causal")
    seen, known = hear(model_for(of, LENGTH), *examples(sentences(1, LENGTH, of), of), of)
    rest = {name: t for name, t in seen.update.items() if "attn" not in name}

    with pytest.raises(AttackFailed, match="query, key or value"):
        DAGER()(replace(seen, update=rest), known, rng=rng)
