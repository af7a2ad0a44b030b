"""Arrays for messages that make their bytes when somebody asks for them, and only then.

Flower's own `Array` writes down its bytes at once, and each reader reads them anew. Where sender
and receiver are one process nobody needs them. What is held must not change any more.
"""

from functools import lru_cache
from typing import Any

from flwr.app import Array

from fedsim.plain_arrays import PLAIN, Plain, header

_HELD, _BYTES = "_held", "_bytes"


class HeldArray(Array):
    """An `Array` that holds numbers in place of bytes; it says, and is worth, the same."""

    @classmethod
    def of(cls, held: Plain) -> "HeldArray":
        """Return an array that holds this one, contiguous, which must not change any more."""
        one = cls.__new__(cls)
        one.__dict__.update(
            {"dtype": _name(held.dtype), "shape": held.shape, "stype": PLAIN, _HELD: held}
        )
        return one

    @property
    def data(self) -> bytes:
        """The bytes, in numpy's file format; made at the first call."""
        data: bytes | None = self.__dict__.get(_BYTES)
        if data is None:
            held = self.__dict__[_HELD]
            data = header(self.dtype, self.shape) + held.tobytes()
            self.__dict__[_BYTES] = data
        return data

    @data.setter
    def data(self, value: bytes) -> None:
        self.__dict__[_BYTES] = value
        self.__dict__.pop(_HELD, None)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("dtype", "shape", "stype") and _HELD in self.__dict__:
            self.data = self.data  # from now on it is what its fields say
        super().__setattr__(name, value)

    def numpy(self) -> Plain:
        """Return a copy, which the caller may change."""
        held: Plain | None = self.__dict__.get(_HELD)
        return super().numpy() if held is None else held.copy()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Array):
            return NotImplemented
        mine, others = ((one.dtype, tuple(one.shape), one.stype, one.data) for one in (self, other))
        return mine == others

    __hash__ = None  # type: ignore[assignment]  # as its parent: it can change

    def __reduce__(self) -> tuple[Any, ...]:
        # what Ray and `copy` take: numbers go on as numbers
        held = self.__dict__.get(_HELD)
        if held is None:
            return Array, (self.dtype, self.shape, self.stype, self.data)
        return HeldArray.of, (held,)


@lru_cache(maxsize=64)
def _name(dtype: Any) -> str:
    return str(dtype)  # numpy looks it up anew each time


def held_by(array: Array) -> Plain | None:
    """Return the numbers that an array holds, not to be changed; None if it holds bytes."""
    held: Plain | None = array.__dict__.get(_HELD)
    return held


def size_of(array: Array) -> int:
    """Return the number of bytes of an array on the wire, without making them."""
    held = held_by(array)
    if held is None:
        return len(array.data)
    return len(header(array.dtype, array.shape)) + held.nbytes


def content_of(array: Array) -> object:
    """Return the object that an array's values lie in: the same object, the same values."""
    held = held_by(array)
    return array.data if held is None else held
