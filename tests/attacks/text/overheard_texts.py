"""Clients with tiny language models, and what is heard of them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.observation import Kind, Knowledge, Observation
from attacks.text.language import cross_entropy
from attacks.text.tokens import IGNORED, Head, Tokens
from fedsim.models.language_models import bert, gpt2

VOCABULARY = 60
LENGTH = 12
START, END, MASK = 1, 2, 3


def tokens_for(head: Head) -> Tokens:
    """A vocabulary of which the first five are special."""
    return Tokens(vocabulary_size=VOCABULARY, head=head, start=START, end=END, mask=MASK, unknown=4)


def transformer(head: Head, rng: torch.Generator, *, decoder: bool = False, **sizes: Any) -> Any:
    """A model of two small layers; twelve classes where it predicts classes."""
    make = gpt2 if decoder else bert
    sizes = {"layers": 2, "width": 64, "heads": 2} | sizes
    num_classes = 12 if head == "classes" else VOCABULARY
    return make((LENGTH,), num_classes, rng=rng, tokens=tokens_for(head), **sizes)


def sentences(rng: torch.Generator, *, num: int = 1, length: int = 8) -> Tensor:
    """Different tokens between start and end, (num, length)."""
    drawn = [5 + torch.randperm(VOCABULARY - 5, generator=rng)[: length - 2] for _ in range(num)]
    start, end = torch.full((num, 1), START), torch.full((num, 1), END)
    return torch.cat([start, torch.stack(drawn), end], dim=1)


def masked(texts: Tensor, *positions: int) -> tuple[Tensor, Tensor]:
    """Inputs and labels of texts with masks at the same positions of each."""
    inputs, labels = texts.clone(), torch.full_like(texts, IGNORED)
    inputs[:, positions] = MASK
    labels[:, positions] = texts[:, positions]
    return inputs, labels


def following(texts: Tensor) -> Tensor:
    """Labels of a causal model."""
    return torch.cat([texts[:, 1:], torch.full((len(texts), 1), IGNORED)], dim=1)


def gradient_heard(model: nn.Module, inputs: Tensor, labels: Tensor) -> Observation:
    """The gradient of one batch."""
    loss = cross_entropy(model(inputs), labels)
    named = dict(model.named_parameters())
    slopes = torch.autograd.grad(
        loss, list(named.values()), allow_unused=True, materialize_grads=True
    )
    return Observation(
        round=1,
        sender="client-0",
        receiver="server",
        kind=Kind.GRADIENT,
        update=dict(zip(named, slopes, strict=True)),
        weights={name: weight.detach() for name, weight in named.items()},
        num_examples=len(inputs),
    )


def known_of(model: nn.Module, head: Head, *, batch_size: int = 1, **more: Any) -> Knowledge:
    """What an adversary knows of such a client."""
    return Knowledge(
        model=model,
        loss=functional.cross_entropy if head == "classes" else cross_entropy,
        input_shape=(LENGTH,),
        num_classes=12 if head == "classes" else VOCABULARY,
        batch_size=batch_size,
        tokens=tokens_for(head),
        **more,
    )
