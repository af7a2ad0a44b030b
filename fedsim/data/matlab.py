"""Arrays of numbers in MATLAB files of version 5, as SVHN comes in; nothing else of that format.

A file is a head of 128 bytes and then parts: a type, a length, and as many bytes, packed or not.
An array is a part of parts: flags, shape, name, numbers. No more room is made than the numbers of
its shape take, and no part may say that it is longer than what it lies in.

Parsing is left to libraries everywhere else; not here, because damaged files end scipy's reader,
and the process with it, by a segmentation fault that nothing can catch.
"""

import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.data.images import Array
from fedsim.errors import FedsimError

LARGEST = 2**28
"""Bytes of a file, and of all its arrays; the training images of SVHN have 225 million."""

_PACKED, _MATRIX, _INT32 = 15, 14, 5
_STORED = {
    1: "<i1",
    2: "<u1",
    3: "<i2",
    4: "<u2",
    5: "<i4",
    6: "<u4",
    7: "<f4",
    9: "<f8",
    12: "<i8",
    13: "<u8",
}
"""How numbers are written down, by type of part."""
_CLASSES = {
    6: "f8",
    7: "f4",
    8: "i1",
    9: "u1",
    10: "i2",
    11: "u2",
    12: "i4",
    13: "u4",
    14: "i8",
    15: "u8",
}
"""What they are, by class of array."""
_COMPLEX = 0x08
_MOST_AXES = 8


def read_mat(file: Path) -> dict[str, Array]:
    """Return the arrays of numbers in a MATLAB file, by name.

    Raises:
        FedsimError: It is no such file, holds anything else, or promises more than it holds.
    """
    try:
        if file.stat().st_size > LARGEST:
            raise ValueError(f"more than {LARGEST} bytes")
        return _arrays(memoryview(file.read_bytes()))
    except (OSError, ValueError, zlib.error) as error:
        raise FedsimError(f"{file} cannot be read: {error}; place the published file there") from (
            error
        )


def _arrays(data: memoryview) -> dict[str, Array]:
    if len(data) < 128 or bytes(data[124:128]) != b"\x00\x01IM":
        raise ValueError("no MATLAB file of version 5, little endian")
    found: dict[str, Array] = {}
    rest, room = data[128:], LARGEST
    while rest:
        kind, part, rest = _part(rest)
        if kind == _PACKED:
            kind, part = _unpacked(part, room)
        if kind != _MATRIX:
            raise ValueError(f"a part of type {kind} is no array")
        name, array = _matrix(part, room)
        found[name] = array
        room -= max(len(part), array.nbytes)
    return found


def _part(data: memoryview) -> tuple[int, memoryview, memoryview]:
    """Return type and bytes of the part that comes first, and what follows it."""
    if len(data) < 8:
        raise ValueError("it ends in the middle of a part")
    kind, length = (int.from_bytes(data[at : at + 4], "little") for at in (0, 4))
    if short := kind >> 16:  # type, length and at most four bytes in eight
        if short > 4:
            raise ValueError(f"a short part of {short} bytes")
        return kind & 0xFFFF, data[4 : 4 + short], data[8:]
    if length > len(data) - 8:
        raise ValueError(f"a part says {length} bytes, and {len(data) - 8} follow")
    end = 8 + length if kind == _PACKED else 8 + -(-length // 8) * 8
    return kind, data[8 : 8 + length], data[end:]


def _unpacked(packed: memoryview, room: int) -> tuple[int, memoryview]:
    """Return type and bytes of the part that is packed in another, if there is room for them."""
    stream = zlib.decompressobj()
    head = stream.decompress(packed, 8)
    kind, length = (int.from_bytes(head[at : at + 4], "little") for at in (0, 4))
    if len(head) < 8 or length > room:
        raise ValueError(f"a packed part says {length} bytes")
    # as it comes: what is said of its length makes no room
    content = stream.decompress(stream.unconsumed_tail, length) if length else b""
    if len(content) < length:
        raise ValueError(f"a packed part says {length} bytes and holds {len(content)}")
    stream.decompress(stream.unconsumed_tail, 8)  # nothing but what fills it up, and its checksum
    if not stream.eof:
        raise ValueError("a packed part has no end")
    return kind, memoryview(content)


def _matrix(data: memoryview, room: int) -> tuple[str, Array]:
    _, flags, data = _part(data)
    kind, axes, data = _part(data)
    _, name, data = _part(data)
    stored, numbers, _ = _part(data)
    if len(flags) != 8 or flags[0] not in _CLASSES or flags[1] & _COMPLEX:
        raise ValueError("an array of anything else than real numbers")
    if kind != _INT32 or len(axes) % 4 or not 2 <= len(axes) // 4 <= _MOST_AXES:
        raise ValueError("an array without a shape")
    shape = [int(one) for one in np.frombuffer(axes, dtype="<i4")]
    if min(shape) < 0 or stored not in _STORED:
        raise ValueError(f"an array of shape {shape}, stored as type {stored}")
    written: np.dtype[Any] = np.dtype(_STORED[stored])
    if math.prod(shape) * written.itemsize != len(numbers):
        raise ValueError(f"an array of shape {shape} has {len(numbers)} bytes")
    wanted: np.dtype[Any] = np.dtype(_CLASSES[flags[0]])
    if math.prod(shape) * wanted.itemsize > room:
        raise ValueError(f"more than {LARGEST} bytes of numbers")
    flat = np.frombuffer(numbers, dtype=written).astype(wanted, copy=False)
    return bytes(name).decode("latin1"), flat.reshape(shape, order="F")
