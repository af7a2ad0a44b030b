"""What may happen to the content of a message on its way."""

import random
from collections.abc import Callable

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict

DAMAGES = ("truncated", "flipped", "nan", "infinite", "shape", "type", "name", "giant", "metadata")
"""How content can be damaged. A bit flipped in a number may leave another number: all others
make the content unsound."""

GIANTS: tuple[int | float, ...] = (10**400, 2**63 - 1, 1e308, -(10**400))
"""Numbers of examples that nobody has."""


def damaged(content: RecordDict, how: str, rng: random.Random) -> RecordDict | None:
    """Return a damaged copy of `content`; None if it holds nothing that can be damaged so."""
    copy = RecordDict({name: type(record)(dict(record)) for name, record in content.items()})  # type: ignore[arg-type]
    if how == "metadata":
        return copy if _spoil_metadata(copy, rng) else None
    if how == "giant" and copy.metric_records and rng.random() < 0.5:
        next(iter(copy.metric_records.values()))["num-examples"] = rng.choice(GIANTS)
        return copy
    places = [
        (record, name)
        for record in copy.array_records.values()
        for name, array in record.items()
        if 0 not in array.shape
        and (how not in ("nan", "infinite") or array.dtype.startswith("float"))
    ]
    if not places:
        return None
    record, name = rng.choice(places)
    if how == "name":
        record[name[:-1] + chr(ord(name[-1]) ^ 1)] = record.pop(name)
    else:
        record[name] = _ARRAYS[how](record[name], rng)
    return copy


def _spoil_metadata(content: RecordDict, rng: random.Random) -> bool:
    """Take an entry that somebody must read away, or give it another type."""
    for records in (content.metric_records, content.config_records):
        for record in records.values():
            wanted = [
                key
                for key in record
                if key in ("num-examples", "train_loss", "trained", "refused", "reasons")
            ]
            if not wanted:
                continue
            key = rng.choice(wanted)
            if rng.random() < 0.5 or key in ("num-examples", "train_loss", "trained"):
                del record[key]
            else:
                record[key] = 3
            return True
    return False


def _truncated(array: Array, rng: random.Random) -> Array:
    cut = rng.randrange(1, max(2, len(array.data)))
    return Array(array.dtype, array.shape, array.stype, array.data[:-cut])


def _flipped(array: Array, rng: random.Random) -> Array:
    data = bytearray(array.data)
    place = rng.randrange(8 * len(data))
    data[place // 8] ^= 1 << (place % 8)
    return Array(array.dtype, array.shape, array.stype, bytes(data))


def _holding(value: float) -> Callable[[Array, random.Random], Array]:
    def put(array: Array, rng: random.Random) -> Array:
        numbers = array.numpy().copy()
        numbers.reshape(-1)[rng.randrange(numbers.size)] = value
        return Array(numbers)

    return put


def _longer(array: Array, rng: random.Random) -> Array:
    numbers = array.numpy()
    return Array(np.concatenate([numbers.reshape(-1), numbers.reshape(-1)[:1]]))


def _cast(array: Array, rng: random.Random) -> Array:
    numbers = array.numpy()
    return Array(numbers.astype(np.float64 if numbers.dtype != np.float64 else np.float32))


def _giant(array: Array, rng: random.Random) -> Array:
    return Array(array.dtype, (2 ** rng.randrange(30, 60),), array.stype, array.data)


_ARRAYS = {
    "truncated": _truncated,
    "flipped": _flipped,
    "nan": _holding(float("nan")),
    "infinite": _holding(float("-inf")),
    "shape": _longer,
    "type": _cast,
    "giant": _giant,
}


def payload(record: ArrayRecord) -> tuple[tuple[str, bytes], ...]:
    """Return what an array record holds, to be compared."""
    return tuple((name, bytes(array.data)) for name, array in record.items())
