"""Parcels between peers, encrypted: what one looks like to the relay, and the way back.

The relay reads from whom to whom, and how long. What a parcel holds, of which kind it is, which
chunk and whose sums, all of it is inside.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedsim.end_to_end import KEY_BYTES, Keyring, Where
from fedsim.peer_wire import SEALED, Addressed, describe, put_raw
from fedsim.wire import BadReply, check_tensor

TELL_KEY = "peer_tell_key"
"""Message type, after `query.`: tell a public key."""
MEET = "peer_meet"
"""Message type, after `query.`: take the public keys of all."""
FOR = "for-peer"
"""Whom the model that a peer is asked for is meant for: it is encrypted for it."""

_KEYS = "public-keys"
_PEERS = "peers"
_PUBLIC = "public-key"
_SIZE_BYTES = 4
_PLACE, _ABOUT, _ARRAYS = "place", "about", "arrays"


# keys


def put_public(content: RecordDict, key: bytes) -> None:
    """Put a peer's public key into its reply."""
    content[_KEYS] = ConfigRecord({_PUBLIC: key})


def public_of(content: RecordDict) -> bytes:
    """Return the public key of a reply.

    Raises:
        BadReply: There is none.
    """
    key = content.config_records.get(_KEYS, ConfigRecord()).get(_PUBLIC)
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        raise BadReply(f"a peer must tell a public key of {KEY_BYTES} bytes")
    return key


def put_roster(content: RecordDict, keys: Mapping[int, bytes]) -> None:
    """Put the public keys of peers, by number, into a message."""
    content[_KEYS] = ConfigRecord({_PEERS: list(keys), _PUBLIC: list(keys.values())})


def roster_of(content: RecordDict) -> dict[int, bytes]:
    """Return the public keys of peers, by number.

    Raises:
        BadReply: They are none.
    """
    told = content.config_records.get(_KEYS, ConfigRecord())
    peers, keys = told.get(_PEERS), told.get(_PUBLIC)
    if not isinstance(peers, list) or not isinstance(keys, list) or len(peers) != len(keys):
        raise BadReply("the public keys must be two lists, of peers and of a key for each")
    roster: dict[int, bytes] = {}
    for peer, key in zip(peers, keys, strict=True):
        if not isinstance(peer, int) or isinstance(peer, bool) or not isinstance(key, bytes):
            raise BadReply("the public keys must be bytes, of peers by their numbers")
        if len(key) != KEY_BYTES or peer in roster:
            raise BadReply(f"peer {peer} must have one public key of {KEY_BYTES} bytes")
        roster[peer] = key
    return roster


# parcels


def put_sealed(
    content: RecordDict, said: Iterable[Addressed], ring: Keyring, where: Where
) -> list[int]:
    """Put what a peer says into its reply, encrypted for each receiver.

    Returns the receivers whose keys are not known: they are told nothing.
    """
    strangers = []
    place = 0
    for one in said:
        for receiver in one.to:
            if receiver not in ring.known:
                strangers.append(receiver)
                continue
            sealed = ring.seal(_to_bytes(one, place), receiver, where)
            array = Array(np.frombuffer(sealed, dtype=np.uint8))
            put_raw(content, place, (receiver,), ArrayRecord({SEALED: array}))
            place += 1
    return strangers


def unsealed(one: Addressed, ring: Keyring, where: Where) -> tuple[Addressed, int]:
    """Return a parcel as its sender packed it, and its place among those of the same hop.

    Raises:
        Unreadable: It was changed, or belongs elsewhere.
        BadReply: It is not encrypted, or no parcel is inside.
    """
    if one.kind != SEALED or set(one.arrays) != {SEALED}:
        raise BadReply("it is not encrypted, and protocol.encrypted asks for it")
    array = one.arrays[SEALED]
    shape = tuple(array.shape)
    if len(shape) != 1 or type(shape[0]) is not int or not 0 <= shape[0] <= len(array.data):
        raise BadReply(f"an encrypted message must be a row of bytes, got shape {shape}")
    template = torch.empty(shape, dtype=torch.uint8, device="meta")
    sealed = check_tensor(SEALED, array, template).numpy().tobytes()
    return _from_bytes(one, ring.unseal(sealed, one.sender, where))


def _to_bytes(one: Addressed, place: int) -> bytes:
    """Return a header of JSON, after its length, and then the bytes of the arrays."""
    arrays = [
        [name, array.dtype, list(array.shape), array.stype, len(array.data)]
        for name, array in one.arrays.items()
    ]
    header = json.dumps(
        {_PLACE: place, _ABOUT: dict(describe(one.about)), _ARRAYS: arrays}
    ).encode()
    size = len(header).to_bytes(_SIZE_BYTES, "big")
    return b"".join([size, header, *(array.data for array in one.arrays.values())])


def _from_bytes(one: Addressed, plain: bytes) -> tuple[Addressed, int]:
    """Return what `_to_bytes` wrote; its author is known, and need not be honest.

    Raises:
        BadReply: It is nothing of the kind.
    """
    start = _SIZE_BYTES + int.from_bytes(plain[:_SIZE_BYTES], "big")
    try:
        header = json.loads(plain[_SIZE_BYTES:start])
        place, told = header[_PLACE], header[_ABOUT]
        arrays: dict[str, Array] = {}
        for name, dtype, shape, stype, size in header[_ARRAYS]:
            _check_form(name, dtype, shape, stype, size)
            if name in arrays or start + size > len(plain):
                raise BadReply("what was encrypted is no parcel: an array is there twice, or cut")
            arrays[name] = Array(dtype, tuple(shape), stype, plain[start : start + size])
            start += size
        about = describe(ConfigRecord(told))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadReply(f"what was encrypted is no parcel: {error}") from error
    if start != len(plain) or not isinstance(place, int) or isinstance(place, bool):
        raise BadReply("what was encrypted is no parcel: its header and its length disagree")
    opened = Addressed(
        sender=one.sender,
        to=one.to,
        round=one.round,
        hop=one.hop,
        arrays=ArrayRecord(arrays),
        about=about,
    )
    return opened, place


def _check_form(name: Any, dtype: Any, shape: Any, stype: Any, size: Any) -> None:
    texts = all(isinstance(one, str) for one in (name, dtype, stype))
    if not texts or not isinstance(shape, list):
        raise TypeError("an array must have a name, a type, a shape and a form")
    for one in (size, *shape):
        if not isinstance(one, int) or isinstance(one, bool) or one < 0:
            raise TypeError("sizes must be whole numbers from 0")
