"""Vocabularies: of the user's own, or learned from the texts."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attacks.text.tokens import Head, Tokens
from fedsim.errors import ConfigError, DataMissing

_NAMES = {
    "pad": ("[PAD]", "<pad>"),
    "unknown": ("[UNK]", "<unk>"),
    "start": ("[CLS]", "<s>", "<bos>", "<|endoftext|>"),
    "end": ("[SEP]", "</s>", "<eos>", "<|endoftext|>"),
    "mask": ("[MASK]", "<mask>"),
}
MOST_TOKENS = 2**20
"""Of a vocabulary; those of today's language models have a quarter of it."""
BLANK = "\u0120"
"""How byte-level vocabularies write a blank."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Vocabulary:
    """How text becomes tokens.

    Attributes:
        tokenizer: Of the `tokenizers` library.
        words: V tokens as text, by number.
    """

    tokenizer: Any
    words: tuple[str, ...]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text, without special ones."""
        encoded = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [one.ids for one in encoded]

    def tokens(self, head: Head) -> Tokens:
        """Return the facts of the vocabulary; special tokens are known by their usual names.

        Raises:
            ConfigError: There is no token to pad with, or to mask with where that is the task.
        """
        number = {word: place for place, word in enumerate(self.words)}
        found = {
            role: next((number[name] for name in names if name in number), None)
            for role, names in _NAMES.items()
        }
        if found["pad"] is None:  # as GPT-2 has none; nobody attends to it, whatever it is
            found["pad"], found["end"] = found["end"], None
        if found["pad"] is None:
            raise ConfigError(
                "data.options.vocabulary has no token to pad with; name one of "
                f"{', '.join(_NAMES['pad'])}"
            )
        if head == "masked" and found["mask"] is None:
            raise ConfigError(
                "data.options.vocabulary has no token to mask with, as data.options.task 'masked' "
                f"needs; name one of {', '.join(_NAMES['mask'])}, or set the task to 'causal'"
            )
        return Tokens(vocabulary_size=len(self.words), head=head, **found)  # type: ignore[arg-type]


def read_vocabulary(path: Path) -> Vocabulary:
    """Return the vocabulary of a file, or of the one that a folder holds.

    Args:
        path: `tokenizer.json` of the `tokenizers` library, or `vocab.txt`: a WordPiece token per
            line, in lower case.

    Raises:
        DataMissing: There is no such file.
        ConfigError: It is none.
    """
    from tokenizers import BertWordPieceTokenizer, Tokenizer

    names = ("tokenizer.json", "vocab.txt")
    files = [path / name for name in names] if path.is_dir() else [path]
    file = next((one for one in files if one.is_file()), None)
    if file is None:
        raise DataMissing(
            f"data.options.vocabulary: '{path}' holds no {' or '.join(names)}; leave it out to "
            "learn a vocabulary from the texts"
        )
    try:
        if file.suffix == ".json":
            tokenizer = Tokenizer.from_file(str(file))
            tokenizer.no_padding()  # texts are cut and padded by us
            tokenizer.no_truncation()
        else:
            tokenizer = BertWordPieceTokenizer(str(file), lowercase=True)
        found = _vocabulary(tokenizer)
        found.encode(["\u2603"])  # some fail at the first word that they do not know
        return found
    except Exception as error:  # the library raises no more than that
        raise ConfigError(f"data.options.vocabulary: '{file}' is no vocabulary: {error}") from error


def learned_vocabulary(texts: Iterable[str], size: int) -> Vocabulary:
    """Return a WordPiece vocabulary in lower case, learned from texts.

    It holds the special tokens, every character that occurs, and the pieces that merging the most
    frequent pairs gives (Wu et al., 2016, https://arxiv.org/abs/1609.08144).

    Args:
        texts: As many as there are.
        size: Tokens at most; characters stay, however many there are.
    """
    from tokenizers import BertWordPieceTokenizer

    texts = list(texts)
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    characters = sorted({one for text in texts for one in tokenizer.normalize(text) if one > " "})
    special = [names[0] for names in _NAMES.values()]
    # The trainer numbers pieces inside words in the order of a hash, and numbers decide between
    # pairs that are equally frequent. Given as special ones, they have their numbers beforehand.
    numbered = [*special, *(f"##{one}" for one in characters)]
    tokenizer.train_from_iterator(
        texts,
        vocab_size=max(size, len(numbered) + len(characters)),
        min_frequency=2,
        show_progress=False,
        special_tokens=numbered,
    )
    learned = tokenizer.get_vocab()
    return _vocabulary(BertWordPieceTokenizer(learned, lowercase=True))


def _vocabulary(tokenizer: Any) -> Vocabulary:
    numbers = tokenizer.get_vocab(with_added_tokens=True)
    if (last := max(numbers.values())) >= MOST_TOKENS:  # a file may number its tokens as it likes
        raise ConfigError(f"numbers of tokens must be below {MOST_TOKENS}, got {last}")
    words = ["" for _ in range(1 + max(numbers.values()))]
    for word, number in numbers.items():
        words[number] = word
    return Vocabulary(tokenizer=tokenizer, words=tuple(words))


def written(words: Sequence[str]) -> str:
    """Return tokens of a WordPiece or byte-level vocabulary as one reads them."""
    text = " ".join(words).replace(" ##", "")
    if BLANK in text:
        text = "".join(words).replace(BLANK, " ")
    text = re.sub(r" ' (s|t|d|m|re|ve|ll)\b", r"'\1", text)
    return re.sub(r" ([.,:;!?)\]])", r"\1", text).strip()
