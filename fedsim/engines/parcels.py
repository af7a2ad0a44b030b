"""Messages taken apart into plain values: they pickle in a fraction of the time that objects take.

What an array holds is not copied. What Flower may add one day, and arrays that hold bytes, go on as
the objects that they are.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedsim.engines.flower_private import metadata_from, plain_metadata
from fedsim.held_arrays import HeldArray, held_by

Content = list[tuple[str, str, Any]]
"""Records: name, kind, and plain values."""
Reply = tuple[dict[str, Any], Content | None, tuple[int, str | None] | None]
"""Metadata, content, and code and reason of an error; one of the two is None."""

_ARRAYS, _METRICS, _CONFIG, _OTHER = "arrays", "metrics", "config", "other"


class _Lent:
    """An array that lies in the object store, as one that PyTorch agrees to read where it lies.

    Ray marks what is in the store as read-only, and PyTorch has no such tensors: it would have to
    be copied. Nobody changes what a message holds.
    """

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self.array = array  # kept, or the store would take its memory back
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = array.__array_interface__ | {"data": (address, False)}


def take_apart(content: RecordDict) -> Content:
    """Return the records of a message as plain values, which must not change any more."""
    parts: Content = []
    for name, record in content.items():
        if type(record) is ArrayRecord:
            arrays = [(key, _plain(array)) for key, array in record.items()]
            parts.append((name, _ARRAYS, arrays))
        elif type(record) is MetricRecord:
            parts.append((name, _METRICS, dict(record.items())))
        elif type(record) is ConfigRecord:
            parts.append((name, _CONFIG, dict(record.items())))
        else:
            parts.append((name, _OTHER, record))
    return parts


def put_together(parts: Content) -> RecordDict:
    """Return the records that `take_apart` was given."""
    content = RecordDict()
    for name, kind, values in parts:
        if kind == _ARRAYS:
            record = ArrayRecord()
            for key, array in values:
                record[key] = _array(array)
            content[name] = record
        elif kind == _METRICS:
            content[name] = MetricRecord(values)
        elif kind == _CONFIG:
            content[name] = ConfigRecord(values)
        else:
            content[name] = values
    return content


def pack_replies(replies: Sequence[Message]) -> list[Reply]:
    """Return replies as plain values."""
    return [
        (plain_metadata(one.metadata), None, (one.error.code, one.error.reason))
        if one.has_error()
        else (plain_metadata(one.metadata), take_apart(one.content), None)
        for one in replies
    ]


def unpack_reply(reply: Reply) -> Message:
    """Return one of the replies that `pack_replies` was given."""
    metadata, parts, error = reply
    body = Error(*error) if parts is None and error is not None else put_together(parts or [])
    return Message(body, metadata=metadata_from(metadata))  # type: ignore[call-overload, no-any-return]


def _plain(array: Array) -> npt.NDArray[Any] | Array:
    held = held_by(array)
    return array if held is None else held


def _array(plain: npt.NDArray[Any] | Array) -> Array:
    if isinstance(plain, Array):
        return plain
    return HeldArray.of(plain if plain.flags.writeable else np.asarray(_Lent(plain)))
