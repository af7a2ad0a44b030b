"""Clients that train small language models, and what an adversary hears of them."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from attacks.observation import Kind, Knowledge, LocalRecipe, Observation
from attacks.text.language import cross_entropy
from attacks.text.tokens import IGNORED, Head, Tokens
from fedsim.models.language_models import bert, gpt2

PAD, START, END, MASK = 0, 1, 2, 3


def tokens(head: Head, size: int = 200) -> Tokens:
    """A vocabulary whose first four tokens are special."""
    return Tokens(
        vocabulary_size=size, head=head, pad=PAD, start=START, end=END, mask=MASK, unknown=None
    )


def model_for(of: Tokens, length: int, *, seed: int = 0, **options: Any) -> nn.Module:
    """GPT-2 for next tokens, else BERT, of two layers of width 128."""
    make = gpt2 if of.head == "causal" else bert
    classes = 2 if of.head == "classes" else of.vocabulary_size
    rng = torch.Generator().manual_seed(seed)
    return make((length,), classes, rng=rng, tokens=of, **options)


def sentences(number: int, length: int, of: Tokens, *, seed: int = 0, short: int = 0) -> Tensor:
    """Random sentences (N, T), the last of which is shorter by `short` tokens."""
    rng = torch.Generator().manual_seed(seed)
    found = torch.randint(4, of.vocabulary_size, (number, length), generator=rng)
    found[:, 0] = START
    for row in range(number):
        last = length - (short if row == number - 1 else 0)
        found[row, last - 1] = END
        found[row, last:] = PAD
    return found


def examples(texts: Tensor, of: Tokens) -> tuple[Tensor, Tensor]:
    """Return the inputs and labels of texts (N, T); two tokens of each are masked."""
    if of.head == "classes":
        return texts, torch.arange(len(texts)) % 2
    labels = torch.full_like(texts, IGNORED)
    if of.head == "causal":
        labels[:, :-1] = torch.where(texts[:, 1:] == PAD, IGNORED, texts[:, 1:])
        return texts, labels
    inputs = texts.clone()
    for row in range(len(texts)):
        for place in (2 + row % 2, 4 + row % 2):
            labels[row, place], inputs[row, place] = texts[row, place], MASK
    return inputs, labels


def trained(model: nn.Module, of: Tokens, length: int, *, steps: int) -> nn.Module:
    """Train a model on random sentences."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(steps):
        texts = sentences(8, length, of, seed=1_000 + step)
        inputs, labels = examples(texts, of)
        loss = cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model


def hear(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    of: Tokens,
    *,
    steps: int = 0,
    learning_rate: float = 0.01,
    momentum: float = 0.0,
) -> tuple[Observation, Knowledge]:
    """Return the gradient of one batch, or the change of weights after so many steps on it."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    client = copy.deepcopy(model)
    optimizer = torch.optim.SGD(client.parameters(), lr=learning_rate, momentum=momentum)
    for _ in range(max(1, steps)):
        optimizer.zero_grad()
        cross_entropy(client(inputs), labels).backward()  # type: ignore[no-untyped-call]
        if steps:
            optimizer.step()
    update = {
        name: p.detach() - before[name] if steps else p.grad
        for name, p in client.named_parameters()
        if p.grad is not None
    }
    recipe = LocalRecipe(
        num_steps=max(1, steps),
        num_epochs=max(1, steps),
        learning_rate=learning_rate if steps else None,
        momentum=momentum,
    )
    seen = Observation(
        round=1,
        sender="client-0",
        receiver="server",
        kind=Kind.DELTA if steps else Kind.GRADIENT,
        update={name: tensor for name, tensor in update.items() if tensor is not None},
        weights=before,
        num_examples=len(inputs),
    )
    known = Knowledge(
        model=model,
        loss=cross_entropy,
        input_shape=(inputs.shape[1],),
        num_classes=2 if of.head == "classes" else of.vocabulary_size,
        batch_size=len(inputs),
        recipe=recipe,
        tokens=of,
    )
    return seen, known


def same_sentences(found: Tensor | None, truth: Tensor) -> bool:
    """Whether both hold the same sentences, in any order."""
    assert found is not None
    return sorted(found.tolist()) == sorted(truth.tolist())
