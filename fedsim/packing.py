"""Short forms of a tensor for the wire, without loss: what comes out has the bits that went in.

Defenses that compress leave tensors of few values, few digits or many zeros. A packed tensor says
so in fewer bytes; which form is the shortest is found by looking at the bits, so that no defense
has to describe itself. Nothing is guessed about values: each form is tried and compared bit by bit.

A packed tensor is one byte that names the form, and what that form needs, little endian. How many
values it stands for is not in it: who unpacks knows the shape, and a sender cannot make it larger.
"""

import struct
from collections.abc import Callable
from enum import IntEnum

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]
"""The bits of float32 values, flat."""

_CHUNK = 1 << 16
"""Values whose bits are spread out at once; a multiple of 8, so that chunks end on bytes."""
_LOOK = 4096
"""Values to look at before all of them are."""
_GLANCE = 64
"""Values, none of them zero, to look at before those."""
_PALETTE = 256
"""The most values that a palette has."""
_MOST_BITS = 16
"""Bits of the widest level."""
_DIVISORS = np.arange(1, 8, dtype=np.float32)
"""What part of the smallest magnitude is tried as the unit: level 1 may not occur."""
_BLOCKS = (0, *range(6, 14))
"""Sizes of blocks that have a unit each, as powers of two; 0 is one block of all."""


class Malformed(ValueError):
    """Bytes that are no packed tensor of the size expected."""


class Form(IntEnum):
    """How values are written down."""

    DENSE = 0
    """All four bytes of each."""
    HALF = 1
    """As IEEE half precision, where that loses nothing."""
    BRAIN = 2
    """As bfloat16, where that loses nothing."""
    PALETTE = 3
    """At most 256 different values, and which of them each is."""
    MULTIPLES = 4
    """Whole multiples of a unit, one unit for all values or one per block."""
    BITMAP = 5
    """Zero or not, one bit each, and a form of those that are not."""
    GAPS = 6
    """How many zeros stand before each value that is none, and a form of those."""


def pack(words: Words) -> bytes:
    """Return the shortest form, never more than one byte longer than the values.

    Args:
        words: Bits of float32 values, (N,).
    """
    nonzero = np.flatnonzero(words)
    forms = [_pack_values(words)]
    if len(nonzero) < len(words):
        values = _pack_values(words[nonzero])
        forms += [
            bytes([Form.BITMAP]) + np.packbits(words != 0, bitorder="little").tobytes() + values,
            bytes([Form.GAPS]) + _pack_gaps(nonzero) + values,
        ]
    return min(forms, key=len)


def unpack(data: bytes, count: int) -> Words:
    """Return the bits of `count` float32 values, (count,).

    Raises:
        Malformed: The bytes are no packed form of so many values.
    """
    form, rest = _form_of(data)
    if form not in (Form.BITMAP, Form.GAPS):
        return _UNPACK[form](rest, count)
    if form is Form.BITMAP:
        bitmap, rest = _split(rest, -(-count // 8))
        places = np.flatnonzero(_spread(bitmap, count, 1))
    else:
        places, rest = _unpack_gaps(rest, count)
    words = np.zeros(count, dtype=np.uint32)
    inner, values = _form_of(rest)
    if inner not in _UNPACK:
        raise Malformed(f"zeros are left out twice: form {inner.name} within {form.name}")
    words[places] = _UNPACK[inner](values, len(places))
    return words


def _pack_values(words: Words) -> bytes:
    forms = [bytes([Form.DENSE]) + words.astype("<u4").tobytes()]
    found = {
        Form.HALF: _pack_half(words),
        Form.BRAIN: _pack_brain(words),
        Form.PALETTE: _pack_palette(words),
        Form.MULTIPLES: _pack_multiples(words),
    }
    forms += [bytes([form]) + data for form, data in found.items() if data is not None]
    return min(forms, key=len)


def _form_of(data: bytes) -> tuple[Form, bytes]:
    code, rest = _split(data, 1)
    try:
        return Form(code[0]), rest
    except ValueError as error:
        raise Malformed(f"there is no form {code[0]}") from error


def _unpack_dense(data: bytes, count: int) -> Words:
    _require_size(data, 4 * count)
    return np.frombuffer(data, dtype="<u4").astype(np.uint32)


def _pack_half(words: Words) -> bytes | None:
    def narrow(some: Words) -> npt.NDArray[np.float16]:
        with np.errstate(all="ignore"):
            return some.view(np.float32).astype(np.float16)

    def same(some: Words) -> bool:
        return bool((narrow(some).astype(np.float32).view(np.uint32) == some).all())

    if not same(words[:_LOOK]) or not same(words):
        return None
    return narrow(words).astype("<f2").tobytes()


def _unpack_half(data: bytes, count: int) -> Words:
    _require_size(data, 2 * count)
    return np.frombuffer(data, dtype="<f2").astype(np.float32).view(np.uint32)


def _pack_brain(words: Words) -> bytes | None:
    if (words[:_LOOK] & 0xFFFF).any() or (words & 0xFFFF).any():
        return None
    return (words >> 16).astype("<u2").tobytes()


def _unpack_brain(data: bytes, count: int) -> Words:
    _require_size(data, 2 * count)
    return np.frombuffer(data, dtype="<u2").astype(np.uint32) << np.uint32(16)


def _pack_palette(words: Words) -> bytes | None:
    if not len(words) or len(np.unique(words[: 2 * _PALETTE])) > _PALETTE:
        return None
    palette = np.unique(words)
    if len(palette) > _PALETTE:
        return None
    which = np.searchsorted(palette, words).astype(np.uint32)
    head = bytes([len(palette) - 1]) + palette.astype("<u4").tobytes()
    return head + _gather(which, _bits(len(palette) - 1))


def _unpack_palette(data: bytes, count: int) -> Words:
    size, rest = _split(data, 1)
    colours, rest = _split(rest, 4 * (size[0] + 1))
    palette = np.frombuffer(colours, dtype="<u4").astype(np.uint32)
    which = _spread(rest, count, _bits(size[0]))
    if count and int(which.max()) >= len(palette):
        raise Malformed(f"value {which.max()} of a palette of {len(palette)}")
    return palette[which]


def _pack_multiples(words: Words) -> bytes | None:
    values = words.view(np.float32)
    if not len(values) or not np.isfinite(values).all():
        return None
    for exponent in _BLOCKS:
        if exponent and (1 << exponent) >= len(values):
            return None
        found = _levels(values, exponent)
        if found is not None:
            units, levels = found
            low = int(levels.min())
            width = _bits(int(levels.max()) - low)
            head = struct.pack("<BBi", exponent, width, low) + units.astype("<f4").tobytes()
            return head + _gather((levels - low).astype(np.uint32), width)
    return None


def _levels(
    values: npt.NDArray[np.float32], exponent: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]] | None:
    """Return the unit of each block and how many of them each value is, (N,); None if it is not."""
    size = 1 << exponent if exponent else len(values)
    if not _may_have_unit(values[:size]):
        return None
    look = max(size, _LOOK)
    if exponent and len(values) > 2 * look and _levels(values[:look], exponent) is None:
        return None
    padded = np.zeros(-(-len(values) // size) * size, dtype=np.float32)
    padded[: len(values)] = values
    blocks = padded.reshape(-1, size)
    magnitude = np.abs(blocks)
    smallest = np.where(magnitude > 0, magnitude, np.inf).min(axis=1)
    smallest[np.isinf(smallest)] = 1.0  # a block of zeros
    if not exponent and not _units(blocks[:, :_LOOK], smallest)[1]:
        return None
    units, fits = _units(blocks, smallest)
    if not fits:
        return None
    return units, _whole(blocks, units).reshape(-1)[: len(values)].astype(np.int64)


def _may_have_unit(block: npt.NDArray[np.float32]) -> bool:
    """Whether a glance does not rule out that all of a block, (S,), are multiples of a unit."""
    some = block[np.flatnonzero(block)[:_GLANCE]]
    if not len(some):
        return True
    smallest = np.abs(block).min(where=block != 0, initial=np.inf)
    tried = (smallest / _DIVISORS)[:, None]
    tried[tried == 0] = 1.0
    with np.errstate(over="ignore"):
        again = np.rint(some.astype(np.float64) / tried).astype(np.float32) * tried
    return bool((again == some).all(axis=1).any())


def _units(
    blocks: npt.NDArray[np.float32], smallest: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], bool]:
    """Return a unit per block, and whether all values of all blocks are multiples of theirs."""
    units = smallest.astype(np.float32)
    open_ = np.arange(len(blocks))
    for divisor in _DIVISORS:
        tried = smallest[open_] / divisor
        tried[tried == 0] = 1.0
        whole = _whole(blocks[open_], tried)
        with np.errstate(over="ignore"):
            again = whole.astype(np.float32) * tried[:, None]
        same = again.view(np.uint32) == blocks[open_].view(np.uint32)
        fits = same.all(axis=1) & (np.abs(whole) < 1 << (_MOST_BITS - 1)).all(axis=1)
        units[open_[fits]] = tried[fits]
        open_ = open_[~fits]
        if not len(open_):
            return units, True
    return units, False


def _whole(
    blocks: npt.NDArray[np.float32], units: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    return np.rint(blocks.astype(np.float64) / units[:, None]) + 0.0  # minus zero is no level


def _unpack_multiples(data: bytes, count: int) -> Words:
    head, rest = _split(data, struct.calcsize("<BBi"))
    exponent, width, low = struct.unpack("<BBi", head)
    if exponent not in _BLOCKS or width > _MOST_BITS or abs(low) > 1 << _MOST_BITS:
        raise Malformed(f"levels of {width} bits from {low} in blocks of 2^{exponent}")
    size = 1 << exponent if exponent else max(count, 1)
    written, rest = _split(rest, 4 * -(-count // size))
    units = np.frombuffer(written, dtype="<f4").astype(np.float32)
    levels = _spread(rest, count, width).astype(np.int64) + low
    with np.errstate(all="ignore"):
        values = levels.astype(np.float32) * np.repeat(units, size)[:count]
    words: Words = values.view(np.uint32)
    return words


def _pack_gaps(places: npt.NDArray[np.intp]) -> bytes:
    gaps = (np.diff(places, prepend=-1) - 1).astype(np.uint32)
    width = _bits(int(gaps.max())) if len(gaps) else 0
    return struct.pack("<IB", len(gaps), width) + _gather(gaps, width)


def _unpack_gaps(data: bytes, count: int) -> tuple[npt.NDArray[np.int64], bytes]:
    head, rest = _split(data, struct.calcsize("<IB"))
    number, width = struct.unpack("<IB", head)
    if number > count or width > 32:
        raise Malformed(f"{number} gaps of {width} bits among {count} values")
    written, rest = _split(rest, -(-number * width // 8))
    places = np.cumsum(_spread(written, number, width).astype(np.int64) + 1) - 1
    if number and places[-1] >= count:
        raise Malformed(f"a value at place {places[-1]} of {count}")
    return places, rest


def _bits(largest: int) -> int:
    """Return how many bits numbers up to `largest` take; 0 where there is only 0."""
    return largest.bit_length()


def _gather(numbers: npt.NDArray[np.uint32], width: int) -> bytes:
    """Write numbers of `width` bits one after the other."""
    places = np.arange(width, dtype=np.uint32)
    parts = [
        np.packbits(
            ((numbers[at : at + _CHUNK, None] >> places) & 1).astype(np.uint8), bitorder="little"
        ).tobytes()
        for at in range(0, len(numbers) if width else 0, _CHUNK)
    ]
    return b"".join(parts)


def _spread(data: bytes, count: int, width: int) -> npt.NDArray[np.uint32]:
    """Read `count` numbers of `width` bits; the inverse of `_gather`."""
    _require_size(data, -(-count * width // 8))
    numbers = np.zeros(count, dtype=np.uint32)
    raw = np.frombuffer(data, dtype=np.uint8)
    step = _CHUNK * width // 8
    for index in range(-(-count // _CHUNK) if width else 0):
        some = numbers[index * _CHUNK : (index + 1) * _CHUNK]
        part = raw[index * step : (index + 1) * step]
        bits = np.unpackbits(part, count=len(some) * width, bitorder="little")
        for place, column in enumerate(bits.reshape(-1, width).T):
            some |= column.astype(np.uint32) << np.uint32(place)
    return numbers


def _split(data: bytes, size: int) -> tuple[bytes, bytes]:
    if len(data) < size:
        raise Malformed(f"{len(data)} bytes where {size} are needed")
    return data[:size], data[size:]


def _require_size(data: bytes, size: int) -> None:
    if len(data) != size:
        raise Malformed(f"{len(data)} bytes where {size} are expected")


_UNPACK: dict[Form, Callable[[bytes, int], Words]] = {
    Form.DENSE: _unpack_dense,
    Form.HALF: _unpack_half,
    Form.BRAIN: _unpack_brain,
    Form.PALETTE: _unpack_palette,
    Form.MULTIPLES: _unpack_multiples,
}
