"""What an attack may return, and what ends that attack alone."""

from typing import Any

import pytest
import torch

from attacks.observation import Knowledge, Reconstruction, Snapshot
from attacks.text.tokens import Tokens
from fedsim.guesses import sound

IMAGES = torch.rand(2, 1, 8, 8)
LABELS = torch.tensor([0, 9])


def test_a_guess_of_the_right_form_is_returned_as_it_is() -> None:
    whole = Reconstruction(
        inputs=IMAGES,
        labels=LABELS,
        matching_loss=0.5,
        steps=3,
        certified=torch.tensor([True, False]),
        snapshots=(Snapshot(step=1, inputs=IMAGES, matching_loss=float("nan")),),
        notes={"chosen": "dlg", "distance": 0.1},
    )
    for guess in (
        whole,
        Reconstruction(inputs=IMAGES * float("nan"), labels=None),
        Reconstruction(inputs=IMAGES[:0].double(), labels=LABELS[:0]),
        Reconstruction(inputs=None, labels=LABELS[:1]),
        Reconstruction(inputs=None, labels=None),
    ):
        assert sound(guess, Knowledge(num_classes=10)) is guess


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"inputs": [[0.5]]}, r"inputs must be .* got list"),
        ({"inputs": IMAGES[0]}, r"inputs must be \(B, C, H, W\) .* got \(1, 8, 8\)"),
        ({"inputs": IMAGES.long()}, r"of floating point, got .* of torch.int64"),
        ({"inputs": IMAGES + 1j}, r"of floating point, got .* of torch.complex64"),
        ({"inputs": IMAGES.to_sparse()}, r"inputs must be"),
        ({"labels": [0, 1]}, r"labels must be .* got list"),
        ({"labels": LABELS.float()}, r"labels must be .* got \(2,\) of torch.float32"),
        ({"labels": torch.zeros(2, 10)}, r"labels must be .* got \(2, 10\)"),
        ({"labels": torch.zeros(2, 10, dtype=torch.int64)}, r"labels must be .* got \(2, 10\)"),
        ({"labels": LABELS[:1]}, r"labels must be one per input, 2 of them, got 1"),
        ({"labels": torch.tensor([0, -1])}, r"labels must be from 0 to 9, got -1"),
        ({"labels": torch.tensor([10, 0])}, r"labels must be from 0 to 9, got 10"),
        ({"certified": [True, True]}, r"certified must be one bool per guess, got list"),
        ({"certified": LABELS}, r"certified must be one bool per guess, got \(2,\) of torch.int64"),
        ({"inputs": None, "labels": None, "certified": LABELS == 0}, r"one bool per guess"),
        ({"matching_loss": torch.tensor(1.0)}, r"matching_loss must be a number"),
        ({"steps": 1.5}, r"steps must be a whole number from 0, got 1.5"),
        ({"seconds": float("nan")}, r"seconds must be a finite number from 0, got nan"),
        ({"notes": {"which": [1]}}, r"notes must be texts or numbers by name, got 'which'"),
        ({"notes": "found"}, r"notes must be a mapping, got str"),
        ({"snapshots": (IMAGES,)}, r"snapshots must be of Snapshot, got Tensor"),
        (
            {"snapshots": (Snapshot(step=0, inputs=IMAGES[0], matching_loss=0.0),)},
            r"inputs of a snapshot must be",
        ),
    ],
)
def test_a_guess_of_a_wrong_form_is_refused_with_what_came(
    parts: dict[str, Any], message: str
) -> None:
    guess = Reconstruction(**{"inputs": IMAGES, "labels": LABELS} | parts)

    with pytest.raises(TypeError, match=message):
        sound(guess, Knowledge(num_classes=10))


def test_where_the_classes_are_not_known_labels_are_numbers_from_zero() -> None:
    assert sound(Reconstruction(inputs=None, labels=torch.tensor([10_000])))

    with pytest.raises(TypeError, match="labels must be from 0 up, got -1"):
        sound(Reconstruction(inputs=None, labels=torch.tensor([-1])))


TEXT = Knowledge(tokens=Tokens(vocabulary_size=5, head="causal"), input_shape=(3,), num_classes=5)
ROWS = Knowledge(input_shape=(2,), num_classes=2)


def test_texts_are_tokens_and_rows_are_numbers() -> None:
    text = Reconstruction(inputs=torch.tensor([[0, 4, 2]]), labels=None)
    rows = Reconstruction(
        inputs=torch.rand(3, 2), labels=torch.tensor([0, 1, 1]), confidence=torch.ones(3, 2)
    )

    assert sound(text, TEXT) is text
    assert sound(rows, ROWS) is rows


@pytest.mark.parametrize(
    ("guess", "known", "message"),
    [
        (Reconstruction(inputs=torch.rand(1, 3), labels=None), TEXT, "must be tokens"),
        (Reconstruction(inputs=torch.tensor([[5]]), labels=None), TEXT, "from 0 to 4, got 5 to 5"),
        (Reconstruction(inputs=torch.tensor([[0]]), labels=None), ROWS, "floating point"),
        (
            Reconstruction(inputs=torch.rand(2, 2), labels=None, confidence=torch.ones(1, 2)),
            ROWS,
            "confidence must be",
        ),
        (
            Reconstruction(
                inputs=torch.rand(1, 2), labels=None, confidence=torch.full((1, 2), 2.0)
            ),
            ROWS,
            "confidence must be",
        ),
    ],
)
def test_what_is_no_text_and_no_row_is_refused(
    guess: Reconstruction, known: Knowledge, message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        sound(guess, known)
