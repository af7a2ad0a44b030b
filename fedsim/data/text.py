"""What every text data set is once it is loaded."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from attacks.text.tokens import IGNORED, Head, Tokens
from fedsim.data.images import SPLIT_SEED, Array, split
from fedsim.data.kinds import Modality
from fedsim.data.vocabulary import Vocabulary, learned_vocabulary, read_vocabulary
from fedsim.errors import ConfigError

logger = logging.getLogger(__name__)

FEWEST = 10
"""Texts of which a fifth can be the test split."""
Length = Annotated[int, Field(ge=4, le=4096)]
"""The option `length` of every text data set: tokens of an example, with special ones."""
VocabularySize = Annotated[int, Field(ge=50)]
MaskedShare = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True, eq=False)
class TextData:
    """Texts as tokens, in memory on the CPU: N examples of T tokens, a vocabulary of V.

    Attributes:
        name: As experiments write it.
        train_inputs: Tokens, int64, shape (N, T); what clients hold.
        train_labels: Classes (N,), or (N, T) what each position predicts: a token, or `IGNORED`.
        test_inputs: Of texts that no client holds, like `train_inputs`.
        test_labels: Like `train_labels`.
        class_names: K names; empty where tokens are predicted.
        tokens: What is public of the vocabulary and the task.
        words: V tokens as text.
    """

    modality: ClassVar[Modality] = "text"

    name: str
    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    tokens: Tokens
    words: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """K, or V where tokens are predicted: the width of the model's output."""
        return len(self.class_names) or self.tokens.vocabulary_size

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(T,)."""
        return (self.train_inputs.shape[1],)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How texts become examples; the options of every text data set.

    Attributes:
        task: What is predicted.
        length: T.
        vocabulary: A file or folder; empty to learn one from the training texts.
        vocabulary_size: V at most, where it is learned.
        masked_share: Share of the tokens that are masked.
        packed: Whether all texts are joined and cut into examples without pads.
        limit: Examples of each split at most.
    """

    task: Head
    length: int
    vocabulary: str = ""
    vocabulary_size: int = 2000
    masked_share: float = 0.15
    packed: bool = False
    limit: int | None = None


def text_data(
    name: str,
    texts: Sequence[str],
    wanted: Wanted,
    *,
    test: Sequence[str] | None = None,
    labels: Sequence[int] | None = None,
    test_labels: Sequence[int] | None = None,
    class_names: Sequence[str] = (),
    learn_from: Sequence[str] | None = None,
) -> TextData:
    """Return the data set made of texts.

    Args:
        name: As experiments write it.
        texts: For training; a fifth of them becomes the test split if `test` is None.
        wanted: How they become examples.
        test: Texts that no client holds.
        labels: Classes of `texts`; None if there are none.
        test_labels: Classes of `test`.
        class_names: K names.
        learn_from: Texts that a vocabulary is learned from; None for those for training.

    Raises:
        ConfigError: There are no classes, or too few texts.
    """
    if wanted.task == "classes" and labels is None:
        raise ConfigError(
            f"data '{name}' has no classes to predict; set data.options.task to 'masked' or "
            "'causal', or choose data 'tsv' with a column of labels"
        )
    if wanted.task == "classes" and wanted.packed:
        raise ConfigError(
            "data.options.packed joins texts, which have a class each; set it to false"
        )
    if wanted.task == "classes" and len(class_names) < 2:
        raise ConfigError(f"data '{name}' needs two classes or more, got {len(class_names)}")
    if test is None and len(texts) < FEWEST:
        raise ConfigError(f"data '{name}' needs at least {FEWEST} texts, got {len(texts)}")
    kept, classes = np.asarray(texts, dtype=object), _classes(wanted, len(texts), labels)
    if test is None:
        (kept, classes), (held_out, held_classes) = split(kept, classes)
    else:
        held_out = np.asarray(test, dtype=object)
        held_classes = _classes(wanted, len(test), test_labels)
    vocabulary = (
        read_vocabulary(Path(wanted.vocabulary).expanduser())
        if wanted.vocabulary
        else learned_vocabulary(learn_from or kept.tolist(), wanted.vocabulary_size)
    )
    tokens = vocabulary.tokens(wanted.task)
    train = _examples(vocabulary, kept.tolist(), tokens, wanted, classes, "training")
    held = _examples(vocabulary, held_out.tolist(), tokens, wanted, held_classes, "test")
    return TextData(
        name=name,
        train_inputs=train[0],
        train_labels=train[1],
        test_inputs=held[0],
        test_labels=held[1],
        class_names=tuple(class_names) if wanted.task == "classes" else (),
        tokens=tokens,
        words=vocabulary.words,
    )


def _classes(wanted: Wanted, num: int, labels: Sequence[int] | None) -> Array:
    """Return a class per text, zeros where none is predicted."""
    told = labels if wanted.task == "classes" else np.zeros(num)
    return np.asarray(told, dtype=np.int64)


def _examples(
    vocabulary: Vocabulary,
    texts: list[str],
    tokens: Tokens,
    wanted: Wanted,
    classes: Array,
    part: str,
) -> tuple[Tensor, Tensor]:
    """Return inputs (N, T) and labels, (N,) or (N, T)."""
    if not wanted.packed:
        texts, classes = texts[: wanted.limit], classes[: wanted.limit]
    before = [] if tokens.start is None else [tokens.start]
    after = [] if tokens.end is None else [tokens.end]
    room = wanted.length - len(before) - len(after)
    pieces = vocabulary.encode(texts)
    if wanted.packed:
        stream = [token for one in pieces for token in one]
        pieces = [stream[first : first + room] for first in range(0, len(stream) - room + 1, room)][
            : wanted.limit
        ]
        if not pieces:
            raise ConfigError(
                f"the {part} texts hold {len(stream)} tokens, fewer than one example of "
                f"data.options.length = {wanted.length}"
            )
    kept = [place for place, piece in enumerate(pieces) if piece]
    if blank := len(pieces) - len(kept):
        logger.info("%d of %d %s texts have no token: left out", blank, len(pieces), part)
        pieces, classes = [pieces[place] for place in kept], classes[kept]
    if not pieces:
        raise ConfigError(f"there must be {part} texts that have a token, got none")
    inputs = torch.full((len(pieces), wanted.length), tokens.pad)
    for row, piece in zip(inputs, pieces, strict=True):
        line = torch.tensor([*before, *piece[:room], *after])
        row[: len(line)] = line
    if wanted.task == "classes":
        return inputs, torch.from_numpy(classes)
    if wanted.task == "causal":
        labels = torch.full_like(inputs, IGNORED)
        labels[:, :-1] = torch.where(inputs[:, 1:] == tokens.pad, IGNORED, inputs[:, 1:])
        return inputs, labels
    return masked(inputs, tokens, wanted.masked_share)


def masked(inputs: Tensor, tokens: Tokens, share: float) -> tuple[Tensor, Tensor]:
    """Return inputs with some tokens masked, and labels (N, T): what they were.

    Which, is drawn once and for all. At least one token of each text is masked, and every one that
    is drawn is replaced by the mask (BERT keeps or changes a fifth of them).

    Args:
        inputs: Shape (N, T).
        tokens: Of the data.
        share: Of the tokens that are not special.
    """
    plain = torch.ones_like(inputs, dtype=torch.bool)
    for token in tokens.special:
        plain &= inputs != token
    order = torch.rand(inputs.shape, generator=torch.Generator().manual_seed(SPLIT_SEED))
    order = order.masked_fill(~plain, 2.0)  # special ones last
    counts = (plain.sum(dim=1) * share).round().clamp(min=1).minimum(plain.sum(dim=1))
    chosen = order.argsort(dim=1).argsort(dim=1) < counts[:, None]
    labels = torch.where(chosen, inputs, torch.tensor(IGNORED))
    mask = tokens.pad if tokens.mask is None else tokens.mask
    return torch.where(chosen, torch.tensor(mask), inputs), labels


def sentences(inputs: Tensor, labels: Tensor, tokens: Tokens) -> Tensor:
    """Return the tokens (N, T) of examples as their authors wrote them: masks filled in."""
    if tokens.head != "masked" or labels.shape != inputs.shape:
        return inputs
    return torch.where(labels == IGNORED, inputs, labels)
