"""What an attack may return: a guess that can be written down and scored.

Attacks may be the user's own code. A guess of a wrong form ends that attack on that observation,
never the run.
"""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, TypeGuard

import torch
from torch import Tensor

from attacks.observation import Knowledge, Reconstruction, Snapshot

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def sound(guess: object, known: Knowledge | None = None) -> Reconstruction:
    """Return `guess` if everything in it has the form that `Reconstruction` says.

    Inputs may hold NaN, and may have the wrong shape (C, H, W): scoring says so of each.

    Args:
        guess: What an attack returned.
        known: What it was granted: whether inputs are images, text or rows, and how many classes.

    Raises:
        TypeError: It has not; the message says what was expected and what came.
    """
    if not isinstance(guess, Reconstruction):  # an attack of the user's own may forget to return
        raise TypeError(f"it must return a Reconstruction, got {type(guess).__name__}")
    if guess.inputs is not None:
        _check_inputs("inputs", guess.inputs, known)
    if guess.labels is not None:
        _check_labels(guess.labels, guess.inputs, None if known is None else known.num_classes)
    if guess.certified is not None:
        _check_proofs(guess.certified, guess.labels if guess.inputs is None else guess.inputs)
    if guess.confidence is not None:
        _check_confidence(guess.confidence, guess.inputs)
    _check_numbers(guess)
    for snapshot in guess.snapshots:
        if not isinstance(snapshot, Snapshot):
            raise TypeError(f"snapshots must be of Snapshot, got {type(snapshot).__name__}")
        _check_inputs("inputs of a snapshot", snapshot.inputs, known)
        _check_count("step of a snapshot", snapshot.step)
        _check_loss("matching_loss of a snapshot", snapshot.matching_loss)
    return guess


def _check_inputs(what: str, inputs: object, known: Knowledge | None) -> None:
    if known is not None and known.tokens is not None:
        _check_tokens(what, inputs, known.tokens.vocabulary_size)
        return
    rows = known is not None and len(known.input_shape or ()) == 1
    shape, dim = ("(B, D)", 2) if rows else ("(B, C, H, W)", 4)
    if not _is_plain(inputs) or inputs.dim() != dim or inputs.dtype not in _FLOATS:
        raise TypeError(f"{what} must be {shape} of floating point, got {_form(inputs)}")


def _check_tokens(what: str, tokens: object, vocabulary_size: int) -> None:
    if not _is_plain(tokens) or tokens.dim() != 2 or tokens.dtype is not torch.int64:
        raise TypeError(f"{what} must be tokens (B, T) of torch.int64, got {_form(tokens)}")
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary_size:
        raise TypeError(
            f"{what} must be tokens from 0 to {vocabulary_size - 1}, got {int(tokens.min())} to "
            f"{int(tokens.max())}"
        )


def _check_confidence(confidence: object, inputs: Tensor | None) -> None:
    if (
        inputs is None
        or not _is_plain(confidence)
        or confidence.dim() != 2
        or len(confidence) != len(inputs)
        or confidence.dtype not in _FLOATS
        or not bool(((confidence >= 0) & (confidence <= 1)).all())
    ):
        raise TypeError(f"confidence must be (B, F) from 0 to 1, got {_form(confidence)}")


def _check_labels(labels: object, inputs: Tensor | None, num_classes: int | None) -> None:
    if not _is_plain(labels) or labels.dim() != 1 or labels.dtype is not torch.int64:
        raise TypeError(f"labels must be (B,) of torch.int64, got {_form(labels)}")
    if inputs is not None and len(labels) != len(inputs):
        raise TypeError(
            f"labels must be one per input, {len(inputs)} of them, got {len(labels)}; "
            "None says that they are not guessed"
        )
    if not len(labels):
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        last = "up" if num_classes is None else f"to {num_classes - 1}"
        raise TypeError(f"labels must be from 0 {last}, got {low if low < 0 else high}")


def _check_proofs(proofs: object, guessed: Tensor | None) -> None:
    if (
        guessed is None
        or not _is_plain(proofs)
        or proofs.dtype is not torch.bool
        or proofs.shape != guessed.shape[:1]
    ):
        raise TypeError(f"certified must be one bool per guess, got {_form(proofs)}")


def _check_numbers(guess: Reconstruction) -> None:
    _check_loss("matching_loss", guess.matching_loss)
    _check_count("steps", guess.steps)
    seconds: object = guess.seconds
    if not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise TypeError(f"seconds must be a finite number from 0, got {seconds!r}")
    notes: Any = guess.notes
    if not isinstance(notes, Mapping):
        raise TypeError(f"notes must be a mapping, got {type(notes).__name__}")
    for key, value in notes.items():
        if not isinstance(key, str) or not isinstance(value, str | Real):
            raise TypeError(f"notes must be texts or numbers by name, got {key!r}: {value!r}")


def _check_count(what: str, value: object) -> None:
    if not isinstance(value, int) or value < 0:
        raise TypeError(f"{what} must be a whole number from 0, got {value!r}")


def _check_loss(what: str, value: object) -> None:
    if value is not None and not isinstance(value, int | float):
        raise TypeError(f"{what} must be a number, got {value!r}")


def _is_plain(tensor: object) -> TypeGuard[Tensor]:
    return isinstance(tensor, Tensor) and tensor.layout is torch.strided


def _form(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{tuple(value.shape)} of {value.dtype}"
