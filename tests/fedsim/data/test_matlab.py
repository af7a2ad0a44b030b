"""The reader of MATLAB files, on files that promise or hold what they should not."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from fedsim.data import matlab
from fedsim.data.matlab import read_mat
from fedsim.errors import FedsimError

DOUBLE, BYTES, PACKED, MATRIX, INT32, UINT32, INT8 = 6, 2, 15, 14, 5, 6, 1


def part(kind: int, content: bytes) -> bytes:
    padding = b"" if kind == PACKED else bytes(-len(content) % 8)
    return kind.to_bytes(4, "little") + len(content).to_bytes(4, "little") + content + padding


def matrix(name: str, numbers: int, of_class: int = DOUBLE) -> bytes:
    """An array of so many zeros, stored as single bytes."""
    return part(
        MATRIX,
        part(UINT32, bytes([of_class]) + bytes(7))
        + part(INT32, np.array([numbers, 1], "<i4").tobytes())
        + part(INT8, name.encode())
        + part(BYTES, bytes(numbers)),
    )


def mat(folder: Path, *parts: bytes) -> Path:
    file = folder / "x.mat"
    file.write_bytes(bytes(124) + b"\x00\x01IM" + b"".join(parts))
    return file


def packed(content: bytes) -> bytes:
    return part(PACKED, zlib.compress(content))


def test_numbers_stored_as_bytes_come_back_as_the_class_says(tmp_path: Path) -> None:
    found = read_mat(mat(tmp_path, matrix("a", 5), packed(matrix("b", 3, of_class=9))))

    assert (found["a"].dtype.str, found["a"].shape) == ("<f8", (5, 1))
    assert (found["b"].dtype.str, found["b"].shape) == ("|u1", (3, 1))


@pytest.mark.parametrize(
    ("numbers", "parts", "good"),
    [(10_000, 1, True), (20_000, 1, False), (5_000, 2, True), (5_000, 4, False)],
)
def test_all_arrays_together_have_one_limit_that_counts_what_they_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: int, parts: int, good: bool
) -> None:
    monkeypatch.setattr(matlab, "LARGEST", 100_000)
    file = mat(tmp_path, *[packed(matrix("a", numbers))] * parts)

    if good:
        assert read_mat(file)["a"].nbytes == 8 * numbers
    else:
        with pytest.raises(FedsimError, match="more than 100000 bytes of numbers"):
            read_mat(file)


def test_a_packed_part_without_its_checksum_or_with_a_wrong_one_is_refused(tmp_path: Path) -> None:
    whole = zlib.compress(matrix("a", 50))
    read_mat(mat(tmp_path, part(PACKED, whole)))

    for cut in range(1, 5):
        with pytest.raises(FedsimError, match="a packed part has no end"):
            read_mat(mat(tmp_path, part(PACKED, whole[:-cut])))
    with pytest.raises(FedsimError, match="incorrect data check"):
        read_mat(mat(tmp_path, part(PACKED, whole[:-1] + bytes([whole[-1] ^ 1]))))


def test_a_packed_part_that_holds_more_than_it_says_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FedsimError, match="a packed part has no end"):
        read_mat(mat(tmp_path, packed(matrix("a", 5) + bytes(4096))))


@pytest.mark.parametrize("compressed", [False, True])
def test_what_scipy_writes_is_read(tmp_path: Path, compressed: bool) -> None:
    stream = io.BytesIO()
    numbers = np.random.default_rng(0).standard_normal((3, 4, 2))
    savemat(stream, {"x": numbers, "y": np.arange(3)}, do_compression=compressed)
    (tmp_path / "x.mat").write_bytes(stream.getvalue())

    found = read_mat(tmp_path / "x.mat")

    assert np.array_equal(found["x"], numbers)
    assert found["y"].tolist() == [[0, 1, 2]]
