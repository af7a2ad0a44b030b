"""Compare guesses at texts and rows of tables with the truth, each one to one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from attacks.metrics.tables import match_rows, random_rows, right, typical_row
from attacks.metrics.text import (
    exact_match,
    match_texts,
    rouge,
    token_accuracy,
    typical_text,
    unigram_texts,
)
from attacks.observation import Reconstruction
from attacks.tabular.columns import Columns
from attacks.text.tokens import Tokens
from fedsim.data.text import sentences
from fedsim.errors import Damaged
from fedsim.examples import Reader
from fedsim.schemas.document import Modality
from fedsim.schemas.scores import Baseline, RowScore, TextScore


def texts_of(truth: tuple[Tensor, Tensor], reader: Reader) -> Tensor:
    """Return the private texts as they were written, (B, T): masks filled in."""
    return sentences(*truth, _tokens(reader))


def misshapen(guess: Tensor, private: Tensor, modality: Modality) -> str | None:
    """Return why a guess cannot be compared; None if it can."""
    if modality == "text" and (guess.is_floating_point() or guess.ndim != 2):
        return f"the guess must be tokens (B, T), got {guess.dtype} of shape {tuple(guess.shape)}"
    if modality == "table" and guess.shape[1:] != private.shape[1:]:
        shapes = tuple(tuple(one.shape[1:]) for one in (guess, private))
        return f"the guessed rows have shape {shapes[0]}, the private ones {shapes[1]}"
    return None


def score_texts(
    guess: Reconstruction,
    inputs: Tensor,
    usable: Sequence[int],
    private: Tensor,
    labels: Tensor,
    reader: Reader,
    threshold: float,
) -> list[TextScore]:
    """Return one score per private text, in order; a text without a guess is a miss.

    Args:
        guess: What the attack said.
        inputs: Its tokens, (G, T).
        usable: Which of them count.
        private: Tokens, (B, T).
        labels: Classes (B,), or what places predict.
        reader: Of the run.
        threshold: Accuracy from which a text is recovered.
    """
    special = _tokens(reader).special
    tokens = inputs.cpu()
    pairs = {
        row: usable[column]
        for row, column in match_texts(tokens[list(usable)], private, special=special)
    }
    found = []
    for row in range(len(private)):
        place = pairs.get(row)
        label = int(labels[row]) if labels.ndim == 1 else None
        num_tokens = sum(one not in special for one in private[row].tolist())
        if place is None:
            found.append(TextScore(truth=row, num_tokens=num_tokens, label=label))
            continue
        one, true = tokens[place : place + 1], private[row : row + 1]
        accuracy = float(token_accuracy(one, true, special=special)[0])
        measures = rouge(one, true, special=special)
        found.append(
            TextScore(
                truth=row,
                guess=place,
                accuracy=accuracy,
                exact=bool(exact_match(one, true, special=special)[0]),
                rouge1=float(measures.one[0]),
                rouge2=float(measures.two[0]),
                rouge_l=float(measures.longest[0]),
                num_tokens=num_tokens,
                label=label,
                guessed_label=_label(guess, place, label),
                recovered=num_tokens > 0 and accuracy >= threshold,
                certified=_certified(guess, place),
            )
        )
    return found


def score_rows(
    guess: Reconstruction,
    inputs: Tensor,
    usable: Sequence[int],
    private: Tensor,
    labels: Tensor,
    reader: Reader,
    threshold: float,
    tolerance: float,
) -> list[RowScore]:
    """Return one score per private row, in order; a row without a guess is a miss.

    Args:
        guess: What the attack said.
        inputs: Its rows, (G, D).
        usable: Which of them count.
        private: Rows, (B, D).
        labels: Classes, (B,).
        reader: Of the run.
        threshold: Accuracy from which a row is recovered.
        tolerance: Share of its range by which a number may be off.
    """
    columns, rows = _columns(reader), inputs.cpu()
    pairs = {
        row: usable[column]
        for row, column in match_rows(rows[list(usable)], private, columns, tolerance=tolerance)
    }
    found = []
    for row in range(len(private)):
        place, label = pairs.get(row), int(labels[row])
        if place is None:
            found.append(RowScore(truth=row, label=label))
            continue
        same = right(rows[place], private[row], columns, tolerance=tolerance)
        accuracy = float(same.double().mean())
        sure = [] if guess.confidence is None else guess.confidence[place].clamp(0, 1).tolist()
        found.append(
            RowScore(
                truth=row,
                guess=place,
                accuracy=accuracy,
                exact=bool(same.all()),
                wrong=torch.nonzero(~same).flatten().tolist(),
                confidence=sure,
                label=label,
                guessed_label=_label(guess, place, label),
                recovered=accuracy >= threshold,
                certified=_certified(guess, place),
            )
        )
    return found


def text_baselines(
    truth: tuple[Tensor, Tensor], public_sample: Tensor, reader: Reader, rng: torch.Generator
) -> dict[Baseline, list[float]]:
    """Return how close guessing texts without the update comes; see `Score.baseline_accuracy`."""
    special, private = _tokens(reader).special, texts_of(truth, reader)
    length = private.shape[1]
    try:
        typical = typical_text(public_sample, length=length, special=special)
        drawn = unigram_texts(public_sample, len(private), length=length, special=special, rng=rng)
    except ValueError:  # nothing public to guess from
        return {}
    paired = dict(match_texts(drawn, private, special=special))
    nearest = token_accuracy(public_sample[None], private[:, None], special=special)
    return {
        "random_guess": [
            float(token_accuracy(drawn[paired[row]], private[row], special=special))
            for row in range(len(private))
        ],
        "data_mean": token_accuracy(typical.expand_as(private), private, special=special).tolist(),
        "nearest_public": nearest.amax(dim=1).tolist(),
    }


def row_baselines(
    private: Tensor,
    public_sample: Tensor,
    reader: Reader,
    tolerance: float,
    rng: torch.Generator,
) -> dict[Baseline, list[float]]:
    """Return how close guessing rows without the update comes; see `Score.baseline_accuracy`."""
    columns = _columns(reader)

    def accuracy(guess: Tensor, true: Tensor) -> Tensor:
        return right(guess, true, columns, tolerance=tolerance).double().mean(dim=-1)

    drawn = random_rows(public_sample, len(private), rng=rng)
    paired = dict(match_rows(drawn, private, columns, tolerance=tolerance))
    order = [paired[row] for row in range(len(private))]
    typical = typical_row(public_sample, columns)
    return {
        "random_guess": accuracy(drawn[order], private).tolist(),
        "data_mean": accuracy(typical.expand_as(private), private).tolist(),
        "nearest_public": accuracy(public_sample[None], private[:, None]).amax(dim=1).tolist(),
    }


def _tokens(reader: Reader) -> Tokens:
    if reader.tokens is None:
        raise Damaged("data.json: not as fedsim writes it: text without the facts of its tokens")
    return reader.tokens


def _columns(reader: Reader) -> Columns:
    if reader.columns is None:
        raise Damaged("data.json: not as fedsim writes it: a table without columns")
    return reader.columns


def _label(guess: Reconstruction, place: int, label: int | None) -> int | None:
    if label is None or guess.labels is None or guess.labels.ndim != 1:
        return None
    return int(guess.labels[place])


def _certified(guess: Reconstruction, place: int) -> bool | None:
    return None if guess.certified is None else bool(guess.certified[place])
