"""What a safetensors file says that it holds, checked before anything is made of it.

Eight bytes give the length of a header of JSON; it gives each tensor a type, a shape and a place in
the bytes that follow. The library checks much of it, too; this check is ours, comes before any
tensor takes room, and has one error with the name of the file.
"""

import json
from pathlib import Path
from typing import Any

from fedsim.errors import Damaged

LARGEST_HEADER = 16 * 2**20
"""Bytes of a header."""
LARGEST_FILE = 64 * 2**30
"""Bytes of a file; a sparse file may promise more than there is room for."""
MOST_TENSORS = 100_000
LONGEST_NAME = 1024

_SIZE_OF = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}
"""Bytes of one entry, by type; fedsim writes no others."""


def check_tensor_file(path: Path) -> None:
    """Refuse a file that is no safetensors file, or promises more than it holds.

    Raises:
        Damaged: The message says what is wrong.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        held = file.seek(0, 2)
        if held > LARGEST_FILE:
            raise Damaged(f"{path}: {held} bytes are more than {LARGEST_FILE}")
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if held < 8 or length > min(LARGEST_HEADER, held - 8):
            raise Damaged(f"{path}: its header of {length} bytes is not there")
        header = file.read(length)
    try:
        entries = json.loads(header, object_pairs_hook=_once)
        if not isinstance(entries, dict):
            raise ValueError("its header is no object")
        _check_entries(entries, held - 8 - length)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path}: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("its header names something twice")
    return dict(pairs)


def _check_entries(entries: dict[str, Any], held: int) -> None:
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(one, str) for one in metadata.values()):
        raise ValueError("its metadata are no texts")
    if len(entries) > MOST_TENSORS:
        raise ValueError(f"{len(entries)} tensors are more than {MOST_TENSORS}")
    places = sorted(_place(name, entry) for name, entry in entries.items())
    end_before = 0
    for start, end in places:
        if start != end_before:
            raise ValueError("its tensors overlap, or leave gaps")
        end_before = end
    if end_before != held:
        raise ValueError(f"its tensors take {end_before} bytes, and {held} follow the header")


def _place(name: str, entry: Any) -> tuple[int, int]:
    """Return where a tensor begins and ends, if that fits its type and shape."""
    if len(name) > LONGEST_NAME or not name.isprintable():
        raise ValueError(f"{name[:40]!r} is no name of a tensor")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor '{name}' must have a type, a shape and offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _SIZE_OF:
        raise ValueError(f"tensor '{name}' has type {str(dtype)[:40]!r}")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2 or len(shape) > 16:
        raise ValueError(f"tensor '{name}' must have a shape and two offsets, from 0")
    size = _SIZE_OF[dtype]
    for length in shape:
        size *= length
        if length > LARGEST_FILE:
            raise ValueError(f"tensor '{name}' has {length} entries in a row")
    start, end = offsets
    if end - start != size:
        raise ValueError(f"tensor '{name}' takes {size} bytes, its offsets say {end - start}")
    return start, end


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)
