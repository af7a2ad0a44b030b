"""Arrays as Flower carries them, decoded without numpy's loader.

An array comes as bytes in numpy's file format, beside a type and a shape. A stranger may write
anything into either. Nothing here makes room for more than the bytes that came, and objects, which
numpy would unpickle, are refused.
"""

import io
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array

PLAIN = "numpy.ndarray"
"""Serialization of an array in numpy's file format."""

_TYPES = frozenset(
    {
        *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float16", "float32", "float64"),
    }
)
_MOST_AXES = 32
_LONGEST_HEADER = 4096

Plain = npt.NDArray[Any]


def decode(array: Array) -> Plain:
    """Return what an array holds; it may share the memory of its bytes, and be read-only.

    Raises:
        ValueError: It is of another form, or its bytes are not what it says that it is.
    """
    if array.stype != PLAIN:
        raise ValueError(f"expected an array as '{PLAIN}', got {str(array.stype)[:40]!r}")
    if array.dtype not in _TYPES:
        raise ValueError(f"{str(array.dtype)[:40]!r} is no type of numbers")
    shape = tuple(array.shape)
    if len(shape) > _MOST_AXES or not all(type(one) is int and one >= 0 for one in shape):
        raise ValueError(f"{str(shape)[:80]} is no shape")
    expected = header(array.dtype, shape)
    if array.data.startswith(expected):
        order, start = "C", len(expected)
    else:  # made by another version, or with axes the other way round
        order, start = _parse(array.data, np.dtype(array.dtype), shape)
    size = np.dtype(array.dtype).itemsize
    for one in shape:
        size *= one
    if len(array.data) - start != size:
        raise ValueError(f"{size} bytes were promised, {len(array.data) - start} came")
    flat: Plain = np.frombuffer(array.data, dtype=array.dtype, offset=start)
    return flat.reshape(shape, order="F" if order == "F" else "C")


@lru_cache(maxsize=4096)
def header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Return the header of a contiguous array of this form in numpy's own file format."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


def _parse(data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[str, int]:
    """Return the order of axes that a header tells, and its length.

    Raises:
        ValueError: It is none, or tells another type or shape.
    """
    stream = io.BytesIO(data[: 2 * _LONGEST_HEADER])
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(stream)
    if version not in read:
        raise ValueError(f"numpy's file format has no version {version}")
    try:
        told_shape, fortran, told = read[version](stream, max_header_size=_LONGEST_HEADER)
    except Exception as error:  # it is parsed as Python: tokenizer, parser and more may object
        raise ValueError(f"its header cannot be read: {type(error).__name__}") from error
    if told != dtype or told_shape != shape:
        raise ValueError(f"it says {shape} of {dtype}, its bytes say {told_shape} of {told}")
    return ("F" if fortran else "C"), stream.tell()
