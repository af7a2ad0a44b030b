"""The one place that reads pickle: arrays of bytes and plain values, and nothing else.

The published files of CIFAR are pickle, which can name any function and call it. Here nothing that
a file names is ever called but stand-ins of our own, instructions are checked before the first
is carried out, and no more room is made than the file has bytes.
"""

import io
import math
import pickle
import pickletools
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fedsim.errors import FedsimError

LARGEST = 2**28
"""Bytes of a file; the largest of these sets has 155 million."""
_MOST_TUPLES = 20
"""Tuples in a file; an array takes six. Of many, nested ones can be made that take for ever."""
_MOST_AXES = 4
_LONGEST_AXIS = 2**32
_OPCODES = """
    PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1
    FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_LIST APPEND APPENDS LIST EMPTY_DICT DICT SETITEM
    SETITEMS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT
    MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD
""".split()  # noqa: SIM905 (a list of fifty names is no easier to read)
"""What pickle may be told to do here: make plain values, and arrays as numpy writes them."""


class _StandIn:
    """Stands for what a file names; does one thing at most, and nothing about it can be changed.

    Args:
        do: What is done where the file calls it; None if it must not be called.
    """

    __slots__ = ("_do",)

    def __init__(self, do: Callable[..., Any] | None) -> None:
        self._do = do

    def __call__(self, *args: object) -> Any:
        if self._do is None:
            raise pickle.UnpicklingError("it calls what is none of its functions")
        return self._do(*args)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it would change what it names")


def _empty(kind: object, shape: object, code: object) -> Any:
    """Begin an array as numpy's own files do: empty, to be filled with the bytes that follow."""
    if kind is not _NDARRAY or shape != (0,) or code not in (b"b", "b"):
        raise pickle.UnpicklingError("it begins an array as numpy never does")
    return _Array()


def _dtype(code: object, *_: object) -> Any:
    if code not in ("u1", b"u1"):
        raise pickle.UnpicklingError(f"it asks for an array of {reprlib.repr(code)}, not of bytes")
    return _Bytes()


class _Bytes:
    """The type of an array of bytes; what is said of it besides changes nothing."""

    def __setstate__(self, state: object) -> None:
        del state


class _Array:
    """An array of bytes while it is read."""

    value: Any = None

    def __setstate__(self, state: Any) -> None:
        """Take the bytes, if they are as many as the shape says.

        Raises:
            UnpicklingError: They are not.
        """
        _, shape, kind, fortran, data = state
        if isinstance(data, str):  # Python 2 wrote bytes as text
            data = data.encode("latin1")
        if not isinstance(kind, _Bytes) or not isinstance(data, bytes):
            raise pickle.UnpicklingError("an array must hold bytes")
        if not _is_shape(shape) or math.prod(shape) != len(data):
            said = reprlib.repr(shape)
            raise pickle.UnpicklingError(f"an array of shape {said} has {len(data)} bytes")
        flat = np.frombuffer(data, dtype=np.uint8)
        self.value = flat.reshape(shape, order="F" if fortran else "C")


def _is_shape(shape: object) -> bool:
    return (
        type(shape) is tuple
        and len(shape) <= _MOST_AXES
        and all(type(one) is int and 0 <= one < _LONGEST_AXIS for one in shape)
    )


_NDARRAY = _StandIn(None)
_DTYPE = _StandIn(_dtype)
_RECONSTRUCT = _StandIn(_empty)


class _ArraysOnly(pickle.Unpickler):
    """Builds arrays and plain values; nothing else can be named, so nothing else can run."""

    allowed: ClassVar = {
        ("numpy", "dtype"): _DTYPE,
        ("numpy", "ndarray"): _NDARRAY,
        ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return what stands for the object of that name, if it is allowed.

        Raises:
            UnpicklingError: It is not.
        """
        if (module_name, global_name) not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")
        return self.allowed[module_name, global_name]


def _check_opcodes(data: bytes) -> None:
    """Refuse what asks for more than plain values and arrays, or for room beyond its own size.

    Raises:
        UnpicklingError: It does.
    """
    tuples = 0
    for number, (opcode, argument, _) in enumerate(pickletools.genops(io.BytesIO(data))):
        if opcode.name not in _OPCODES:
            raise pickle.UnpicklingError(f"it holds the instruction {opcode.name}")
        tuples += opcode.name.startswith("TUPLE")
        if tuples > _MOST_TUPLES:
            raise pickle.UnpicklingError(f"it holds more than {_MOST_TUPLES} tuples")
        # places are handed out one after the other; a high one would make room for all below it
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > number:
            raise pickle.UnpicklingError(f"it puts something in place {argument}")


def read_pickled_arrays(file: Path) -> dict[str, Any]:
    """Return the dictionary pickled in `file`, if it holds arrays of bytes and plain values alone.

    Raises:
        FedsimError: It holds anything else, or cannot be read.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise pickle.UnpicklingError(f"it has more than {LARGEST} bytes")
        _check_opcodes(data)
        content = _ArraysOnly(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a broken pickle may raise anything
        raise FedsimError(
            f"{file} is refused: {str(error)[:300]}; only numpy arrays and plain values are read "
            "from pickle"
        ) from error
    if not isinstance(content, dict):
        raise FedsimError(f"{file} is refused: expected a dictionary, got {type(content).__name__}")
    return {
        key: one.value if isinstance(one, _Array) else one
        for key, one in content.items()
        if isinstance(key, str)
    }
