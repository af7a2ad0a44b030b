"""Private texts and rows beside what attacks made of them, with what is right in them marked."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fedsim.data.vocabulary import BLANK
from fedsim.examples import Reader
from fedsim.quality import modality_of, scale_of
from fedsim.report.gallery import Images, Pair
from fedsim.report.wording import percent

Mark = Literal["hit", "near", "miss", ""]
"""A token at its place; one of the text, elsewhere; a wrong feature; nothing to be said."""

_CLOSERS = frozenset(".,:;!?)]}'%")
"""Before these no blank is written."""
_OPEN = "_"
"""Stands where an attack leaves a token open."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A token of a text, or a feature of a row.

    Attributes:
        text: As one reads it.
        mark: What is right or wrong with it.
        apart: Whether a blank stands before it.
        sure: How sure the attack is of it, if it says.
    """

    text: str
    mark: Mark = ""
    apart: bool = True
    sure: float | None = None


@dataclass(frozen=True, kw_only=True)
class Line:
    """A private example, or a guess at it.

    Attributes:
        label: Whose.
        pieces: Of what; empty if there is nothing.
        told: How close it came, or why there is nothing.
        strong: Whether it counts as recovered.
    """

    label: str
    pieces: Sequence[Piece] = ()
    told: str = ""
    strong: bool = False


@dataclass(frozen=True, kw_only=True)
class Specimen:
    """A private example and what attacks made of it.

    Attributes:
        where: Whose it is.
        lines: The private one, then the guesses.
        name: What it stands for, as "best".
    """

    where: str
    lines: Sequence[Line]
    name: str = ""


def specimen(
    images: Images, guesses: Sequence[tuple[str, Pair | None]], name: str = ""
) -> Specimen:
    """Return one private example with what several attacks made of it.

    Args:
        images: The tensors.
        guesses: (label, guess), all of one private example; None for one that did not attack it.
        name: What it stands for.
    """
    pairs = [pair for _, pair in guesses if pair is not None]
    score, place = pairs[0].score, pairs[0].key[1]
    where = f"{score['victim']}, round {score['round']}, {scale_of(score).noun} {place}"
    lines = [guessed_line(images, label, pair) for label, pair in guesses]
    return Specimen(name=name, where=where, lines=[private_line(images, pairs), *lines])


def private_line(images: Images, pairs: Sequence[Pair]) -> Line:
    """Return the private text or row of some guesses; of a single guess, marked with its hits."""
    score, place = pairs[0].score, pairs[0].key[1]
    truth = images.original(score, place)
    named = next((pair.image["label"] for pair in pairs if pair.image), None)
    names = images.reader.class_names
    label = "" if named is None else f"label {names[named] if named < len(names) else named}"
    if truth is None:
        return Line(label="Private", told="not kept in this run")
    if modality_of(score) == "table":
        return Line(label="Private", pieces=row_pieces(images.reader, truth), told=label)
    guesses = [guess for pair in pairs if (guess := images.guess(pair)) is not None]
    pieces = text_pieces(images.reader, truth, guesses[0] if len(guesses) == 1 else None, truth)
    return Line(label="Private", pieces=pieces, told=label)


def guessed_line(
    images: Images, label: str, pair: Pair | None, absent: str = "not attacked"
) -> Line:
    """Return a guess at a text or a row, or why there is none."""
    if pair is None:
        return Line(label=label, told=absent)
    if pair.image is None:
        return Line(label=label, told="failed")
    guess = images.guess(pair)
    if pair.value is None or guess is None:
        return Line(label=label, told="no guess")
    strong, told = pair.image["recovered"], _told(pair)
    if modality_of(pair.score) == "text":
        truth = images.original(pair.score, pair.key[1])
        pieces = text_pieces(images.reader, guess, truth, truth)
        return Line(label=label, pieces=pieces, told=told, strong=strong)
    wrong, sure = frozenset(pair.image["wrong"]), pair.image["confidence"]
    return Line(
        label=label,
        pieces=row_pieces(images.reader, guess, wrong=wrong, sure=sure),
        told=told,
        strong=strong,
    )


def _told(pair: Pair) -> str:
    scale, image = scale_of(pair.score), pair.image or {}
    told = f"{percent(pair.value)} of {scale.part}"
    if image.get("rouge1") is not None:
        parts = (image[name] for name in ("rouge1", "rouge2", "rouge_l"))
        told += f"; ROUGE-1, -2, -L {' / '.join(f'{100 * one:.0f}' for one in parts)}"
    if pair.data_mean is not None:
        told += f"; data mean {percent(pair.data_mean)}"
    if image.get("certified"):
        told += "; certified"
    return told


# texts


def text_pieces(
    reader: Reader, tokens: Tensor, other: Tensor | None, truth: Tensor | None
) -> list[Piece]:
    """Return a text piece by piece, without what is special in the private one.

    Args:
        reader: Of the run.
        tokens: Of the text, (T,).
        other: Marks tokens that stand at the same place here, and, of a guess, those that stand
            elsewhere in it; None to mark nothing.
        truth: Of the private text, which may be `tokens`; None if it is not there.
    """
    marks = _marks(tokens, other, private=truth is tokens, special=_special(reader))
    pieces: list[Piece] = []
    for place, token in enumerate(tokens.tolist()):
        if not _is_shown(reader, token, place, truth):
            continue
        word, apart = reader.word(token) if token >= 0 else _OPEN, True
        if word.startswith("##") and len(word) > 2:
            word, apart = word[2:], False
        elif reader.byte_level:
            apart = word.startswith(BLANK)
            word = word.replace(BLANK, "")
        elif word in _CLOSERS:
            apart = False
        pieces.append(Piece(text=word, mark=marks[place], apart=apart and bool(pieces)))
    return pieces


def at_place(reader: Reader, tokens: Tensor, truth: Tensor) -> tuple[int, int]:
    """Return how many private tokens stand at their place, and how many there are."""
    special, guess = _special(reader), tokens.tolist()
    private = [(place, one) for place, one in enumerate(truth.tolist()) if one not in special]
    return sum(guess[place : place + 1] == [one] for place, one in private), len(private)


def _marks(
    tokens: Tensor, other: Tensor | None, *, private: bool, special: frozenset[int]
) -> list[Mark]:
    own = tokens.tolist()
    if other is None:
        return [""] * len(own)
    beside = other.tolist()
    hits = [
        place < len(beside) and one == beside[place] and one not in special
        for place, one in enumerate(own)
    ]
    left = Counter(
        one
        for place, one in enumerate(beside)
        if one not in special and not (place < len(hits) and hits[place])
    )
    marks: list[Mark] = []
    for one, hit in zip(own, hits, strict=True):
        near = not hit and not private and left[one] > 0
        left[one] -= near
        marks.append("hit" if hit else "near" if near else "")
    return marks


def _is_shown(reader: Reader, token: int, place: int, truth: Tensor | None) -> bool:
    """Whether a token is part of a text; a special one is where it is wrong."""
    tokens = reader.tokens
    if tokens is None or token not in tokens.special:
        return True
    if token == tokens.pad:
        return False
    right = truth is None or (place < len(truth) and int(truth[place]) == token)
    return not right and token != tokens.end


def _special(reader: Reader) -> frozenset[int]:
    return frozenset() if reader.tokens is None else reader.tokens.special


@dataclass(frozen=True, kw_only=True)
class Step:
    """A text on its way.

    Attributes:
        name: Where it stood, as "0"; "private" for the end of the way.
        pieces: The guess so far.
        told: How many of its tokens are at their place.
    """

    name: str
    pieces: Sequence[Piece]
    told: str = ""


def steps_of(images: Images, pair: Pair, most: int) -> list[Step]:
    """Return how a guess at a text came about, the private text at last; empty if nobody looked."""
    end, truth = images.guess(pair), images.original(pair.score, pair.key[1])
    frames = [(str(step), tokens) for step, tokens in images.film(pair, most) if tokens.ndim == 1]
    if not frames or end is None:
        return []
    if frames[-1][1].tolist() != end.tolist():
        frames.append(("end", end))
    steps = list(_steps(images.reader, frames, truth))
    if truth is not None:
        private = text_pieces(images.reader, truth, end, truth)
        steps.append(Step(name="private", pieces=private))
    return steps


def _steps(
    reader: Reader, frames: Sequence[tuple[str, Tensor]], truth: Tensor | None
) -> Iterator[Step]:
    for name, tokens in frames:
        told = ""
        if truth is not None:
            right, private = at_place(reader, tokens, truth)
            told = f"{right} of {private}"
        yield Step(name=name, pieces=text_pieces(reader, tokens, truth, truth), told=told)


# rows


def row_pieces(
    reader: Reader,
    row: Tensor,
    *,
    wrong: frozenset[int] | None = None,
    sure: Sequence[float] = (),
) -> list[Piece]:
    """Return the features of a row, as one reads them.

    Args:
        reader: Of the run.
        row: Shape (D,).
        wrong: Features that are; None to mark nothing.
        sure: How sure the attack is of each; empty if it does not say.
    """
    cells = reader.cells(row) or [f"{value:.3g}" for value in row.tolist()]
    return [
        Piece(
            text=cell,
            mark="" if wrong is None else "miss" if place in wrong else "hit",
            sure=sure[place] if place < len(sure) else None,
        )
        for place, cell in enumerate(cells)
    ]


def features(reader: Reader) -> list[str]:
    """Return the names of the features of a table."""
    return [] if reader.columns is None else [column.name for column in reader.columns.columns]
