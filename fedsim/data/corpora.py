"""Texts: the Python documentation, which is always there, files, and the Hugging Face hub."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from attacks.text.tokens import Head
from fedsim.data.files import MOST_BYTES
from fedsim.data.images import Limit
from fedsim.data.text import (
    FEWEST,
    Length,
    MaskedShare,
    TextData,
    VocabularySize,
    Wanted,
    text_data,
)
from fedsim.errors import ConfigError, DataMissing

_SHORTEST, _LONGEST = 20, 400
_WIDE = "\u3002\uff01\uff1f"
"""Full stop, exclamation and question mark of Chinese and Japanese."""
_FIRST = r"[^\W\d_a-z]"
"""What begins a sentence: a letter of any script, but no small one of ASCII."""


def python_docs(
    *,
    task: Head = "masked",
    length: Length = 16,
    vocabulary: str = "",
    vocabulary_size: VocabularySize = 2000,
    masked_share: MaskedShare = 0.15,
    packed: bool = False,
    limit: Limit = None,
) -> TextData:
    """Sentences of the Python documentation that is inside the standard library.

    Real English about Python, in every installation; it differs a little between versions of
    Python. A fifth of the sentences is the test split.

    Args:
        task: Predict masked tokens (bert), or each next one (gpt2).
        length: Tokens of an example, with those that open and close it; longer ones are cut.
        vocabulary: `vocab.txt` or `tokenizer.json`; empty to learn WordPieces from the texts.
        vocabulary_size: Tokens at most, where they are learned.
        masked_share: Share of tokens that are masked.
        packed: Join all sentences and cut them into examples without pads.
        limit: Keep only so many examples of each split, the first ones.
    """
    wanted = Wanted(
        task=task,
        length=length,
        vocabulary=vocabulary,
        vocabulary_size=vocabulary_size,
        masked_share=masked_share,
        packed=packed,
        limit=limit,
    )
    return text_data("python-docs", _documentation(), wanted)


def own_sentences(
    *,
    texts: tuple[str, ...],
    task: Head = "masked",
    length: Length = 16,
    vocabulary: str = "",
    vocabulary_size: VocabularySize = 2000,
    masked_share: MaskedShare = 0.15,
) -> TextData:
    """Sentences written in the experiment itself, to see what becomes of one's own.

    Clients hold these alone. The test split, and the texts that a vocabulary is learned from, are
    the sentences of the Python documentation.

    Args:
        texts: One or more.
        task: Predict masked tokens (bert), or each next one (gpt2).
        length: Tokens of an example, with those that open and close it; longer ones are cut.
        vocabulary: `vocab.txt` or `tokenizer.json`; empty to learn WordPieces.
        vocabulary_size: Tokens at most, where they are learned.
        masked_share: Share of tokens that are masked.

    Raises:
        ConfigError: There is no text.
    """
    if not texts or not all(text.strip() for text in texts):
        raise ConfigError("data.options.texts must hold at least one sentence, and no empty one")
    wanted = Wanted(
        task=task,
        length=length,
        vocabulary=vocabulary,
        vocabulary_size=vocabulary_size,
        masked_share=masked_share,
    )
    public = _documentation()
    return text_data("sentences", texts, wanted, test=public, learn_from=[*public, *texts])


def text_folder(
    *,
    root: Path,
    folder: str = "text",
    task: Head = "masked",
    length: Length = 16,
    vocabulary: str = "",
    vocabulary_size: VocabularySize = 2000,
    masked_share: MaskedShare = 0.15,
    packed: bool = False,
    limit: Limit = None,
) -> TextData:
    """Sentences of all .txt files in a folder, read as UTF-8.

    Args:
        root: Folder of data sets.
        folder: The folder of the files, inside `root` or absolute.
        task: Predict masked tokens (bert), or each next one (gpt2).
        length: Tokens of an example, with those that open and close it; longer ones are cut.
        vocabulary: `vocab.txt` or `tokenizer.json`; empty to learn WordPieces from the texts.
        vocabulary_size: Tokens at most, where they are learned.
        masked_share: Share of tokens that are masked.
        packed: Join all sentences and cut them into examples without pads.
        limit: Keep only so many examples of each split, the first ones.

    Raises:
        DataMissing: There are no such files.
        ConfigError: One is no text, or they are too large.
    """
    place = root / Path(folder).expanduser()
    files = sorted(place.rglob("*.txt")) if place.is_dir() else []
    if not files:
        raise DataMissing(
            f"data 'text-folder' found no .txt files in '{place}'; set data.root and "
            "data.options.folder"
        )
    texts = list(_unique(one for file in files for one in sentences_of(_read(file))))
    if len(texts) < FEWEST:
        raise ConfigError(
            f"data 'text-folder' needs at least {FEWEST} sentences, got {len(texts)} in "
            f"{len(files)} files of '{place}'; one begins with a letter that is no small one, ends "
            f"with a full stop, question or exclamation mark, has {_SHORTEST} to {_LONGEST} "
            "characters and none of code"
        )
    wanted = Wanted(
        task=task,
        length=length,
        vocabulary=vocabulary,
        vocabulary_size=vocabulary_size,
        masked_share=masked_share,
        packed=packed,
        limit=limit,
    )
    return text_data("text-folder", texts, wanted)


def tsv(
    *,
    root: Path,
    file: str,
    test_file: str = "",
    text_column: str = "sentence",
    label_column: str = "label",
    header: bool = True,
    task: Head = "classes",
    length: Length = 32,
    vocabulary: str = "",
    vocabulary_size: VocabularySize = 2000,
    masked_share: MaskedShare = 0.15,
    packed: bool = False,
    limit: Limit = None,
) -> TextData:
    """Texts of a file of tab-separated columns, such as CoLA or SST-2, with classes if it has them.

    Args:
        root: Folder of data sets.
        file: The file, inside `root` or absolute; quotes mean nothing in it.
        test_file: Another of the same form; without one, a fifth of `file` is the test split.
        text_column: Name of the column of texts, or its number from 1.
        label_column: Name of the column of classes, or its number from 1.
        header: Whether the first line names the columns.
        task: Predict the class, masked tokens (bert), or each next one (gpt2).
        length: Tokens of an example, with those that open and close it; longer ones are cut.
        vocabulary: `vocab.txt` or `tokenizer.json`; empty to learn WordPieces from the texts.
        vocabulary_size: Tokens at most, where they are learned.
        masked_share: Share of tokens that are masked.
        packed: Join all texts and cut them into examples without pads.
        limit: Keep only so many examples of each split, the first ones.

    Raises:
        DataMissing: There is no such file.
        ConfigError: A column is not there, or a line is short.
    """
    wanted = Wanted(
        task=task,
        length=length,
        vocabulary=vocabulary,
        vocabulary_size=vocabulary_size,
        masked_share=masked_share,
        packed=packed,
        limit=limit,
    )
    columns = [text_column, label_column] if task == "classes" else [text_column]
    rows = list(_rows(root / Path(file).expanduser(), columns, header=header))
    held = (
        list(_rows(root / Path(test_file).expanduser(), columns, header=header))
        if test_file
        else None
    )
    if task != "classes":
        texts = None if held is None else [row[0] for row in held]
        return text_data("tsv", [row[0] for row in rows], wanted, test=texts)
    names = sorted({row[1] for row in rows})
    number = {name: place for place, name in enumerate(names)}
    if held is not None and (strange := {row[1] for row in held} - set(names)):
        raise ConfigError(f"'{test_file}' has classes that '{file}' lacks: {sorted(strange)[:5]}")
    return text_data(
        "tsv",
        [row[0] for row in rows],
        wanted,
        test=None if held is None else [row[0] for row in held],
        labels=[number[row[1]] for row in rows],
        test_labels=None if held is None else [number[row[1]] for row in held],
        class_names=names,
    )


def hugging_face_text(
    name: str,
    *,
    root: Path,
    revision: str | None = None,
    subset: str | None = None,
    text_column: str = "text",
    label_column: str = "label",
    task: Head = "masked",
    length: Length = 32,
    vocabulary: str = "",
    vocabulary_size: VocabularySize = 2000,
    masked_share: MaskedShare = 0.15,
    packed: bool = False,
    limit: Limit = None,
) -> TextData:
    """Any text data set of the Hugging Face hub by its name there, as `hf-text:stanfordnlp/sst2`.

    Args:
        name: As the hub writes it.
        root: Where the download is kept.
        revision: A tag or commit; pin it for results that must be repeatable.
        subset: The configuration, where the data set has several.
        text_column: Name of the column of texts.
        label_column: Name of the column of classes.
        task: Predict the class, masked tokens (bert), or each next one (gpt2).
        length: Tokens of an example, with those that open and close it; longer ones are cut.
        vocabulary: `vocab.txt` or `tokenizer.json`; empty to learn WordPieces from the texts.
        vocabulary_size: Tokens at most, where they are learned.
        masked_share: Share of tokens that are masked.
        packed: Join all texts and cut them into examples without pads.
        limit: Keep only so many examples of each split, the first ones.

    Raises:
        DataMissing: The hub cannot be reached, or has no such data set.
        ConfigError: A column is not there.
    """
    import datasets

    try:
        source = datasets.load_dataset(name, subset, revision=revision, cache_dir=str(root))
    except (OSError, ValueError) as error:  # no network, no such data set, no such configuration
        raise DataMissing(
            f"hf-text:{name} could not be loaded: {error}; it needs a network unless a copy is "
            f"already in '{root}' (data.root); embedded text: python-docs"
        ) from error
    if "train" not in source:
        raise ConfigError(f"hf-text:{name} has no split called 'train'; it has {', '.join(source)}")
    columns = [text_column, label_column] if task == "classes" else [text_column]
    for column in columns:
        if column not in source["train"].column_names:
            raise ConfigError(
                f"hf-text:{name} has no column '{column}'; it has "
                f"{', '.join(source['train'].column_names)}"
            )
    wanted = Wanted(
        task=task,
        length=length,
        vocabulary=vocabulary,
        vocabulary_size=vocabulary_size,
        masked_share=masked_share,
        packed=packed,
        limit=limit,
    )
    # test splits of the hub often have no labels; one of our own always has
    part: Any = source["train"]
    texts = [str(one) for one in part[text_column]]
    if task != "classes":
        return text_data(f"hf-text:{name}", texts, wanted)
    told, names = list(part[label_column]), getattr(part.features[label_column], "names", None)
    if names is None:  # of what they are called in the data, as text or as numbers
        values = sorted(set(told))
        names, told = [str(one) for one in values], [values.index(one) for one in told]
    labels = [int(one) for one in told]
    return text_data(f"hf-text:{name}", texts, wanted, labels=labels, class_names=names)


def _documentation() -> list[str]:
    """Return the sentences of the Python documentation that is inside the standard library."""
    from pydoc_data.topics import topics

    return list(_unique(one for text in topics.values() for one in sentences_of(text)))


def sentences_of(text: str) -> Iterator[str]:
    """Yield the sentences of a text whose paragraphs are parted by empty lines; no code."""
    for paragraph in re.split(r"\n\s*\n", text):
        lines = paragraph.strip("\n").splitlines()
        if not lines or any(re.match(r"\s*(>>>|[-*=~+|]{2,}|\.\. )", line) for line in lines):
            continue
        joined = " ".join(line.strip() for line in lines)
        joined = re.sub(r"[*`_]+", "", joined)
        for sentence in re.split(rf"(?<=[.!?])\s+(?={_FIRST})|(?<=[{_WIDE}])", joined):
            if (
                _SHORTEST <= len(sentence) <= _LONGEST
                and re.match(rf"{_FIRST}.*[^\W\d_A-Z][.!?{_WIDE}]$", sentence)
                and not re.search(r"[{}<>=\\|\[\]@#]", sentence)
            ):
                yield sentence


def _unique(texts: Iterable[str]) -> Iterator[str]:
    return iter(dict.fromkeys(texts))


def _read(file: Path) -> str:
    if file.stat().st_size > MOST_BYTES:
        raise ConfigError(f"'{file}' is larger than {MOST_BYTES >> 20} MiB; cut it into parts")
    try:
        return file.read_text(encoding="utf-8-sig")  # without the mark of byte order, if it has one
    except UnicodeDecodeError as error:
        raise ConfigError(f"'{file}' is no UTF-8 text: {error}") from error


def _rows(file: Path, columns: Sequence[str], *, header: bool) -> Iterator[list[str]]:
    if not file.is_file():
        raise DataMissing(f"data 'tsv' found no file '{file}'; set data.root and data.options.file")
    # a line ends as in any text file, whatever else Unicode has for it; quotes mean nothing
    lines = [line.split("\t") for line in _read(file).split("\n")]
    names = lines[0] if header else []
    places = [_place(file, column, names) for column in columns]
    for number, line in enumerate(lines[header:], start=1 + header):
        if line == [""]:
            continue
        if len(line) <= max(places):
            raise ConfigError(
                f"'{file}', line {number}: expected at least {max(places) + 1} columns, got "
                f"{len(line)}"
            )
        yield [line[place] for place in places]


def _place(file: Path, column: str, names: Sequence[str]) -> int:
    if column in names:
        return list(names).index(column)
    if column.isdecimal() and int(column) >= 1:
        return int(column) - 1
    raise ConfigError(
        f"'{file}' has no column '{column}'; it has {', '.join(names) or 'no header'}: give a "
        "name, or a number from 1, as data.options.text_column and label_column"
    )
