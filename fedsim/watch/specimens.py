"""Texts and rows of a run: originals, films of how guesses came about, and guesses so far."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.observation import Reconstruction
from fedsim.config import ScoreConfig
from fedsim.data.tables import MOST_COORDINATES
from fedsim.data.text import sentences
from fedsim.examples import Reader
from fedsim.files import Record
from fedsim.progress import MOST_IMAGES
from fedsim.report.specimens import Piece, features, row_pieces, text_pieces
from fedsim.schemas.scores import RowScore
from fedsim.stages.score_others import score_rows
from fedsim.watch.scores import scored
from fedsim.watch.tensors import (
    MOST_PRIVATE,
    Check,
    Missing,
    RunTensors,
    looks,
    or_missing,
    stamp,
)
from fedsim.watch.values import listed, number, text, whole

MOST_TOKENS = 240
"""Tokens of a text that are shown."""
MOST_FEATURES = 64
"""Features of a row that are shown."""
MOST_LETTERS = 40
"""Of one token, or of one value of a feature."""
LONGEST_TEXT = 4_096
"""Tokens of a text that is read."""
_KINDS = {torch.int64: "I64", torch.int32: "I32", torch.float32: "F32", torch.float64: "F64"}
"""Types of tensors that are shown, and what files call them."""


@dataclass(frozen=True)
class Case:
    """One private example.

    Attributes:
        observation: What was heard of it.
        round: In which round.
        victim: Of whom.
        place: In its batch.
    """

    observation: str
    round: int
    victim: str
    place: int


class Specimens:
    """Makes what is told of the texts or rows of one run, as JSON.

    An answer holds `frames`: of a text, lists of [token, mark, whether a blank stands before it];
    of a row, lists of [value, mark, how sure the attack is of it], in the order of `names`, which
    are null for a text. `more` counts what is left out of each. `fedsim.report.specimens` says what
    marks there are.

    Args:
        tensors: Of the run.
    """

    def __init__(self, tensors: RunTensors) -> None:
        self.tensors = tensors

    def original(self, reader: Reader, server_round: int, victim: str, place: int) -> bytes:
        """Return a private text or row.

        Raises:
            Missing: It is not there.
        """
        one = _Private(reader, self._batch(reader, server_round, victim)).at(place)
        if one is None:
            raise Missing
        if reader.modality == "text":
            return _told(reader, [text_pieces(reader, one, None, one)])
        return _told(reader, [row_pieces(reader, one)])

    def film(self, reader: Reader, case: Case, attack: str, guess: int, score: Record) -> bytes:
        """Return every look that an attack took at one of its guesses, the end at last.

        Args:
            reader: Of the run.
            case: The private example that it is paired with; what is right is marked.
            attack: Its label.
            guess: Which of its guesses.
            score: Of the attack, of which nothing is believed.

        Raises:
            Missing: There is none.
        """
        path = self.tensors.film(case.observation, attack)

        def make() -> bytes:
            frames = looks(path, guess, _check_of(reader))
            truth = self._private(reader, case).at(case.place)
            if reader.modality == "text":
                return _told(reader, [text_pieces(reader, one, truth, truth) for one in frames])
            rows = [_row(reader, one, truth, tolerance_of(score)) for one in frames[:-1]]
            return _told(reader, [*rows, _scored(reader, frames[-1], score, case.place)])

        key = (str(path), guess, case, reader, stamp(path), json.dumps(score))
        return self.tensors.kept(key, make)

    def so_far(self, reader: Reader, case: Case, worker: str, tolerance: float) -> bytes:
        """Return the guess at one private example that a worker has at the moment.

        Of a batch, guesses are paired with the private examples, as scoring does.

        Raises:
            Missing: There is none.
        """
        guesses = self.tensors.guesses(worker, case.observation, _check_of(reader))
        guesses, private = guesses[:MOST_IMAGES], self._private(reader, case)
        if len(guesses) == 1:
            guess = guesses[0]
        else:
            found = private.paired(guesses, tolerance).get(case.place)
            if found is None:
                raise Missing
            guess = guesses[found]
        truth = private.at(case.place)
        if reader.modality == "text":
            return _told(reader, [text_pieces(reader, guess, truth, truth)])
        return _told(reader, [_row(reader, guess, truth, tolerance)])

    def _private(self, reader: Reader, case: Case) -> "_Private":
        """Return a private batch, which is empty where it is not there."""
        try:
            return _Private(reader, self._batch(reader, case.round, case.victim))
        except Missing:
            return _Private(reader, None)

    def _batch(self, reader: Reader, server_round: int, victim: str) -> Tensor:
        inputs, labels = self.tensors.batch(server_round, victim)
        if inputs.dim() != 2:
            raise Missing
        _check_of(reader)(_KINDS.get(inputs.dtype, ""), inputs.shape[1:])
        with or_missing():
            return inputs if reader.tokens is None else sentences(inputs, labels, reader.tokens)


class _Private:
    """A private batch, or none.

    Args:
        reader: Of the run.
        batch: Texts (B, T) or rows (B, D); None if it is not there.
    """

    def __init__(self, reader: Reader, batch: Tensor | None) -> None:
        self.reader = reader
        self.batch = batch

    def at(self, place: int) -> Tensor | None:
        """Return one of them, if it is there."""
        return None if self.batch is None or place >= len(self.batch) else self.batch[place]

    def paired(self, guesses: Tensor, tolerance: float) -> dict[int, int]:
        """Return, by the place of a private example, that of the guess that goes with it best."""
        if self.batch is None or len(self.batch) > MOST_PRIVATE:
            raise Missing
        some = guesses[: len(self.batch)]
        with or_missing():
            if self.reader.modality == "text":
                return _paired(some, self.batch, self.reader)
            scores = _compared(some, self.batch, self.reader, tolerance)
        return {one.truth: one.guess for one in scores if one.guess is not None}


def tolerance_of(score: Record) -> float:
    """Return by how much of its range a number of a table may be off, as a score says."""
    told = number(score.get("tolerance"))
    return ScoreConfig().tolerance if told is None or not 0 <= told <= 1 else told


def _paired(guesses: Tensor, private: Tensor, reader: Reader) -> dict[int, int]:
    """Pair texts one to one, so that the largest share of tokens is at its place."""
    from scipy.optimize import linear_sum_assignment  # importing it takes a while

    special = frozenset() if reader.tokens is None else reader.tokens.special
    counts = ~torch.isin(private, torch.tensor(sorted(special), dtype=private.dtype))
    most = min(guesses.shape[1], private.shape[1])
    same = (guesses[None, :, :most] == private[:, None, :most]) & counts[:, None, :most]
    shares = same.sum(dim=-1) / counts.sum(dim=-1, keepdim=True).clamp_min(1)
    rows, columns = linear_sum_assignment(-shares.numpy())
    return {int(row): int(column) for row, column in zip(rows, columns, strict=True)}


def _compared(guesses: Tensor, private: Tensor, reader: Reader, tolerance: float) -> list[RowScore]:
    """Pair rows one to one and compare them, as scoring does."""
    nobody = Reconstruction(inputs=None, labels=None)
    labels = torch.zeros(len(private), dtype=torch.int64)
    usable = range(len(guesses))
    known = guesses.nan_to_num(torch.inf)  # a number that is none is far from all
    return score_rows(nobody, known, usable, private, labels, reader, 1.0, tolerance)


# what may be shown


def _check_of(reader: Reader) -> Check:
    """Return what refuses tensors that hold none of what the run is about."""

    def check(kind: str, shape: Sequence[int]) -> None:
        if reader.modality == "text":
            fits, most = kind in ("I64", "I32"), LONGEST_TEXT
        else:
            width = None if reader.columns is None else reader.columns.width
            fits = kind in ("F32", "F64") and (width is None or list(shape) == [width])
            most = MOST_COORDINATES
        if not fits or len(shape) != 1 or not 1 <= shape[0] <= most:
            raise Missing

    return check


# rows


def _row(reader: Reader, row: Tensor, truth: Tensor | None, tolerance: float) -> list[Piece]:
    """Return a guess on its way, whose features are compared with the private ones here."""
    wrong = None
    if truth is not None and reader.columns is not None:
        with or_missing():
            found = _compared(row[None], truth[None], reader, tolerance)
        wrong = frozenset(found[0].wrong)
    return row_pieces(reader, row, wrong=wrong)


def _scored(reader: Reader, row: Tensor, score: Record, place: int) -> list[Piece]:
    """Return the guess that an attack ended with, marked as its score says."""
    told = next((one for one in scored(score) if one.get("truth") == place), {})
    wrong = frozenset(one for one in map(whole, listed(told.get("wrong"))) if one is not None)
    sure = [number(one) for one in listed(told.get("confidence"))]
    said = [one for one in sure if one is not None and 0 <= one <= 1]
    return row_pieces(reader, row, wrong=wrong, sure=said if len(said) == len(sure) else [])


# as JSON


def _told(reader: Reader, frames: Sequence[Sequence[Piece]]) -> bytes:
    is_text = reader.modality == "text"
    most = MOST_TOKENS if is_text else MOST_FEATURES
    names = None if is_text else [_shown(one) for one in features(reader)[:most]]
    record: Record = {
        "names": names,
        "frames": [
            [[_shown(one.text), one.mark, one.apart if is_text else one.sure] for one in frame]
            for frame in (frame[:most] for frame in frames)
        ],
        "more": [max(0, len(frame) - most) for frame in frames],
    }
    return json.dumps(record, allow_nan=False, separators=(",", ":")).encode()


def _shown(word: str) -> str:
    """Return a word of a stranger's: never empty, nothing that moves what is around it."""
    found = text(word, MOST_LETTERS, instead="\ufffd")
    return found if found.strip() else "\u2423"
