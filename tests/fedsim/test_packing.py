"""Packed tensors: the same bits, fewer bytes, and nothing that a stranger's bytes can do."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedsim.packing import Form, Malformed, Words, pack, unpack

SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1.0, 65504.0, 3.4e38, np.inf, -np.inf, np.nan, 0.1]
ANY_WORDS = arrays.arrays(np.uint32, st.integers(0, 300))
SPECIAL_WORDS = arrays.arrays(
    np.float32, st.integers(0, 300), elements=st.sampled_from([np.float32(x) for x in SPECIAL])
).map(lambda values: values.view(np.uint32))
FEW = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40)
OF_FEW = FEW.flatmap(
    lambda few: arrays.arrays(np.uint32, st.integers(0, 500), elements=st.sampled_from(few))
)


def words(values: object) -> Words:
    return np.asarray(values, dtype=np.float32).reshape(-1).view(np.uint32)


def draw(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


@given(st.one_of(ANY_WORDS, SPECIAL_WORDS, OF_FEW))
def test_what_is_unpacked_has_the_bits_that_were_packed(sent: Words) -> None:
    data = pack(sent)
    np.testing.assert_array_equal(unpack(data, len(sent)), sent)
    assert len(data) <= 4 * len(sent) + 1


@given(
    step=st.floats(2.0**-126, 2.0**100, width=32),
    levels=arrays.arrays(np.int32, st.integers(1, 300), elements=st.integers(-127, 127)),
)
def test_multiples_of_a_unit_have_the_bits_that_were_packed(
    step: float, levels: np.ndarray
) -> None:
    sent = words(levels.astype(np.float32) * np.float32(step))
    np.testing.assert_array_equal(unpack(pack(sent), len(sent)), sent)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 2**16 - 1, 2**16, 2**16 + 9, 200_000])
@pytest.mark.parametrize("kept", [0.0, 0.002, 0.3, 1.0])
@pytest.mark.parametrize("shape", ["any", "half", "brain", "sign", "multiples"])
def test_long_tensors_of_every_form_come_back(count: int, kept: float, shape: str) -> None:
    values = draw(count)
    made = {
        "any": values,
        "half": values.astype(np.float16).astype(np.float32),
        "brain": (values.view(np.uint32) & 0xFFFF0000).view(np.float32),
        "sign": np.sign(values) * np.float32(0.013),
        "multiples": np.rint(values * 30) * np.float32(0.013) + np.float32(0),
    }[shape]
    made = np.where(np.random.default_rng(1).random(count) < kept, made, 0).astype(np.float32)
    sent = words(made)
    np.testing.assert_array_equal(unpack(pack(sent), count), sent)


SIGNS = np.sign(draw(80_000)) * np.float32(0.02)
SPARSE = np.where(np.random.default_rng(3).random(80_000) < 0.01, draw(80_000), 0)
BUCKETS = (np.rint(3 * draw(80_000)).reshape(-1, 500) * 1.0).astype(np.float32)
BUCKETS = BUCKETS[:, :64] * np.abs(draw(160))[:, None] + np.float32(0)


@pytest.mark.parametrize(
    ("values", "form", "bits"),
    [
        (draw(80_000), Form.DENSE, 32),
        (draw(80_000).astype(np.float16), Form.HALF, 16),
        ((1e-6 * draw(80_000)).view(np.uint32) & 0xFFFF0000, Form.BRAIN, 16),
        (SIGNS, Form.PALETTE, 1),
        (np.rint(127 * np.clip(draw(80_000) / 4, -1, 1)) * np.float32(0.3) + 0.0, None, 8),
        (SPARSE, Form.GAPS, 0.01 * (32 + 10)),  # gaps are mostly below 2**10
        (np.sign(SPARSE) * np.float32(0.2), Form.GAPS, 0.01 * (1 + 10)),
        (np.where(draw(80_000, 5) < 0, draw(80_000), 0), Form.BITMAP, 1 + 16),
        (BUCKETS, Form.MULTIPLES, 5 + 32 / 64),
    ],
    ids=["dense", "half", "bfloat16", "sign", "int8", "sparse", "sparse sign", "half zero", "bins"],
)
def test_the_form_is_as_short_as_it_should_be(
    values: np.ndarray, form: Form | None, bits: float
) -> None:
    sent = values if values.dtype == np.uint32 else words(values)
    data = pack(sent)
    assert form is None or data[0] == form
    assert 8 * len(data) / len(sent) <= 1.15 * bits + 0.05


def test_minus_zero_is_a_value_and_no_gap() -> None:
    sent = words([0.0] * 50 + [-0.0] + [0.0] * 50)
    assert np.signbit(unpack(pack(sent), 101).view(np.float32)).sum() == 1


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "0 bytes where 1 are needed"),
        (b"\x09", "there is no form 9"),
        (bytes([Form.DENSE]) + bytes(15), "15 bytes where 16 are expected"),
        (bytes([Form.DENSE]) + bytes(17), "17 bytes where 16 are expected"),
        (bytes([Form.HALF]) + bytes(7), "7 bytes where 8 are expected"),
        (bytes([Form.BRAIN]) + bytes(9), "9 bytes where 8 are expected"),
        (bytes([Form.PALETTE]), "0 bytes where 1 are needed"),
        (bytes([Form.PALETTE, 1]) + bytes(7), "7 bytes where 8 are needed"),
        (bytes([Form.PALETTE, 2]) + bytes(12) + b"\xff", "value 3 of a palette of 3"),
        (bytes([Form.PALETTE, 1]) + bytes(10), "2 bytes where 1 are expected"),
        (bytes([Form.MULTIPLES, 0, 99]) + bytes(8), "levels of 99 bits"),
        (bytes([Form.MULTIPLES, 33, 1]) + bytes(8), r"blocks of 2\^33"),
        (bytes([Form.MULTIPLES, 0, 4]) + bytes(8), "0 bytes where 2 are expected"),
        (bytes([Form.BITMAP]), "0 bytes where 1 are needed"),
        (bytes([Form.BITMAP, 3, Form.BITMAP, 3]), "zeros are left out twice"),
        (bytes([Form.BITMAP, 3, Form.DENSE, 1]), "1 bytes where 8 are expected"),
        (bytes([Form.GAPS, 5, 0, 0, 0, 0]), "5 gaps of 0 bits among 4 values"),
        (bytes([Form.GAPS, 1, 0, 0, 0, 40]), "1 gaps of 40 bits among 4 values"),
        (bytes([Form.GAPS, 1, 0, 0, 0, 8, 4, Form.DENSE]) + bytes(4), "a value at place 4 of 4"),
        (bytes([Form.GAPS, 255, 255, 255, 255, 0]), "4294967295 gaps"),
    ],
)
def test_bytes_that_are_no_packed_tensor_are_refused(data: bytes, said: str) -> None:
    with pytest.raises(Malformed, match=said):
        unpack(data, 4)


@given(st.binary(max_size=60), st.integers(0, 40))
def test_any_bytes_are_either_so_many_values_or_refused(data: bytes, count: int) -> None:
    try:
        found = unpack(data, count)
    except Malformed:
        return
    assert found.shape == (count,)
