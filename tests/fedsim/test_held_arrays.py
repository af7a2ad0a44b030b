"""Arrays that hold numbers say the same as Flower's, which hold bytes."""

import copy

import numpy as np
import pytest
import torch
from flwr.app import Array

from fedsim.held_arrays import HeldArray, content_of, held_by, size_of
from fedsim.wire import to_record, to_tensors

VALUES = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.array(2.5, dtype=np.float64),
    np.zeros((0, 4), dtype=np.float16),
    np.array([1, -2], dtype=np.int64),
    np.array([True, False]),
]


@pytest.mark.parametrize("values", VALUES, ids=lambda one: f"{one.dtype}-{one.shape}")
def test_a_held_array_says_to_the_byte_what_flowers_own_says(values: np.ndarray) -> None:
    held, plain = HeldArray.of(values), Array(values)

    assert size_of(held) == len(plain.data) == size_of(plain)
    assert held_by(held) is values  # nothing was written down for that
    assert (held.dtype, held.shape, held.stype) == (plain.dtype, plain.shape, plain.stype)
    assert held.data == plain.data
    assert held == plain
    assert plain == held
    np.testing.assert_array_equal(held.numpy(), plain.numpy())


def test_what_a_reader_changes_is_a_copy() -> None:
    held = HeldArray.of(np.zeros(3, dtype=np.float32))

    held.numpy()[0] = 7.0

    assert held.numpy()[0] == 0.0


def test_new_bytes_take_the_place_of_the_numbers() -> None:
    held = HeldArray.of(np.zeros(3, dtype=np.float32))
    other = Array(np.ones(3, dtype=np.float32))

    before = content_of(held)
    held.data = other.data

    assert held_by(held) is None
    assert content_of(held) is not before
    assert held == other


def test_an_array_that_claims_another_form_holds_bytes_of_the_old_one() -> None:
    held = HeldArray.of(np.zeros(4, dtype=np.float32))
    data = held.data

    held.shape = (2, 2)

    assert held_by(held) is None
    assert held.data == data


def test_a_copy_holds_numbers_of_its_own() -> None:
    values = np.arange(3, dtype=np.float32)

    again = copy.deepcopy(HeldArray.of(values))

    assert isinstance(again, HeldArray)
    assert held_by(again) is not values
    assert again == HeldArray.of(values)


def test_a_record_keeps_what_tensors_were_when_it_was_made() -> None:
    weights = torch.zeros(3)
    record = to_record({"w": weights})

    weights += 1
    to_tensors(record)["w"].add_(5)

    assert to_tensors(record)["w"].tolist() == [0.0, 0.0, 0.0]
