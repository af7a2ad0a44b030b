"""How the four stages of secure aggregation travel: names of messages, records and arrays.

Everything that takes room is an array, so that it is counted with the rest of the traffic.
"""

from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict

from fedsim.plain_arrays import Plain, decode
from fedsim.secure_sum.coordinator import Revealed
from fedsim.secure_sum.field import Elements, Layout
from fedsim.secure_sum.keys import KEY_BYTES, SEALED_BYTES, SEED_BYTES, PublicKeys
from fedsim.wire import BadReply

ADVERTISE_KEYS = "secure_keys"
"""Action of a query: send your public keys."""
SHARE_KEYS = "secure_shares"
"""Action of a query: here are everybody's public keys, send encrypted shares."""
UNMASK = "secure_unmask"
"""Action of a query: here are the survivors and what was dealt to you, reveal your shares."""

SECURE = "secure"
"""Record of keys, shares and names of clients; masked updates are asked for with it beside the
weights, in an ordinary message of training."""
MASKED = "masked"
"""Record of a masked update, in place of the update."""

DROPPED = 301
"""Error code of a client that an experiment makes drop out."""

_CLIENTS, _ENCRYPTION, _MASK, _SEALED = "clients", "encryption-keys", "mask-keys", "sealed"
_SEEDS, _MASK_KEYS = "seeds", "mask-key-shares"


def pack_keys(keys: Mapping[int, PublicKeys]) -> ArrayRecord:
    """Pack the public keys of clients."""
    encryption = {client: one.encryption for client, one in keys.items()}
    return ArrayRecord(
        {
            **_table(_ENCRYPTION, encryption),
            **_table(_MASK, {client: one.mask for client, one in keys.items()}),
        }
    )


def read_keys(content: RecordDict) -> dict[int, PublicKeys]:
    """Return the public keys in a message, by client.

    Raises:
        BadReply: It holds none, or not of this form.
    """
    encryption = _rows(content, _ENCRYPTION, KEY_BYTES)
    mask = _rows(content, _MASK, KEY_BYTES)
    if encryption.keys() != mask.keys():
        raise BadReply("public keys must come in pairs")
    return {client: PublicKeys(encryption[client], mask[client]) for client in encryption}


def pack_sealed(sealed: Mapping[int, bytes]) -> ArrayRecord:
    """Pack encrypted shares, by their receivers on the way up, by their senders on the way down."""
    return ArrayRecord(_table(_SEALED, sealed))


def read_sealed(content: RecordDict) -> dict[int, bytes]:
    """Return the encrypted shares in a message, by client.

    Raises:
        BadReply: It holds none, or not of this form.
    """
    return _rows(content, _SEALED, SEALED_BYTES)


def pack_clients(clients: list[int]) -> dict[str, Array]:
    """Pack the numbers of clients."""
    return {_CLIENTS: Array(np.array(clients, dtype=np.int64))}


def read_clients(content: RecordDict) -> list[int]:
    """Return the numbers of clients in a message.

    Raises:
        BadReply: It holds none.
    """
    return _integers(_array(content, SECURE, _CLIENTS))


def pack_unmasking(survivors: list[int], sealed: Mapping[int, bytes]) -> ArrayRecord:
    """Pack what a client is asked for in the end, and what it needs for it."""
    return ArrayRecord({**pack_clients(survivors), **_table(_SEALED, sealed)})


def pack_revealed(revealed: Revealed) -> ArrayRecord:
    """Pack what a client reveals."""
    return ArrayRecord({**_table(_SEEDS, revealed.seeds), **_table(_MASK_KEYS, revealed.mask_keys)})


def read_revealed(content: RecordDict, survivors: list[int], gone: list[int]) -> Revealed:
    """Return what a client revealed: of each survivor and of each that is gone, what was asked.

    Raises:
        BadReply: It revealed less, more, or not in this form.
    """
    revealed = Revealed(_rows(content, _SEEDS, SEED_BYTES), _rows(content, _MASK_KEYS, SEED_BYTES))
    found = sorted(revealed.seeds), sorted(revealed.mask_keys)
    if found != (sorted(survivors), sorted(gone)):
        raise BadReply(
            f"shares of seeds of {survivors} and of mask keys of {gone} were asked for, got those "
            f"of {found[0]} and of {found[1]}"
        )
    return revealed


def pack_masked(vector: Elements) -> ArrayRecord:
    """Pack a masked update."""
    return ArrayRecord({MASKED: Array(vector)})


def read_masked(content: RecordDict, layout: Layout) -> Elements | None:
    """Return a masked update, (layout.length,); None if the message holds something else.

    Raises:
        BadReply: It is not of this form.
    """
    if MASKED not in content.array_records:
        return None
    array = _array(content, MASKED, MASKED)
    if array.dtype not in ("uint32", "uint64") or tuple(array.shape) != (layout.length,):
        raise BadReply(
            f"a masked update must be {layout.length} of uint32 or uint64, got "
            f"{tuple(array.shape)} of {array.dtype}"
        )
    vector: Elements = _decoded(array)
    return vector


def _table(name: str, rows: Mapping[int, bytes]) -> dict[str, Array]:
    width = len(next(iter(rows.values()), b""))
    data = np.frombuffer(b"".join(rows.values()), dtype=np.uint8).reshape(len(rows), width)
    return {f"{name}-of": Array(np.array(list(rows), dtype=np.int64)), name: Array(data)}


def _rows(content: RecordDict, name: str, width: int) -> dict[int, bytes]:
    clients = _integers(_array(content, SECURE, f"{name}-of"))
    data = _array(content, SECURE, name)
    shape = (len(clients), width if clients else 0)
    if data.dtype != "uint8" or tuple(data.shape) != shape:
        raise BadReply(f"'{name}' must be {shape} bytes, got {tuple(data.shape)} of {data.dtype}")
    if len(set(clients)) < len(clients):
        raise BadReply(f"'{name}' names a client twice")
    return {client: row.tobytes() for client, row in zip(clients, _decoded(data), strict=True)}


def _integers(array: Array) -> list[int]:
    if array.dtype != "int64" or len(array.shape) != 1:
        raise BadReply(f"clients must be a list of int64, got {array.shape} of {array.dtype}")
    return [int(one) for one in _decoded(array)]


def _decoded(array: Array) -> Plain:
    try:
        return decode(array)
    except ValueError as error:
        raise BadReply(f"an array of secure aggregation cannot be decoded: {error}") from error


def _array(content: RecordDict, record: str, name: str) -> Array:
    found = content.array_records.get(record)
    if found is None or name not in found:
        raise BadReply(f"the message has no '{name}' in a record '{record}'")
    return found[name]
