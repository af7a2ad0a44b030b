"""The server of secure aggregation: it adds masked vectors and takes the masks off the sum."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.secure_sum.field import Elements
from fedsim.secure_sum.keys import (
    SEED_BYTES,
    ProtocolError,
    PublicKeys,
    collect,
    derive,
    public_key,
    stretch,
)
from fedsim.secure_sum.member import mask_key, pairwise_mask


@dataclass(frozen=True)
class Revealed:
    """What one client revealed.

    Attributes:
        seeds: Shares of the seeds of survivors, by client.
        mask_keys: Shares of the mask keys of those who dropped out, by client.
    """

    seeds: Mapping[int, bytes]
    mask_keys: Mapping[int, bytes]


def unmask(
    masked: Mapping[int, Elements],
    *,
    keys: Mapping[int, PublicKeys],
    sharing: Sequence[int],
    revealed: Mapping[int, Revealed],
    threshold: int,
    context: str,
) -> Elements:
    """Return the sum of the survivors' vectors.

    Args:
        masked: Masked vectors by client: the survivors.
        keys: Public keys of all who advertised them, by client.
        sharing: Those who dealt out shares.
        revealed: What clients revealed in the end, by client.
        threshold: Shares that give a secret back.
        context: Names the sum.

    Raises:
        ProtocolError: Too few revealed their shares, or what they revealed is wrong.
    """
    if min(len(masked), len(revealed)) < threshold:
        raise ProtocolError(
            f"{min(len(masked), len(revealed))} clients are left, {threshold} are needed"
        )
    places = {client: place for place, client in enumerate(sorted(keys), start=1)}
    first = next(iter(masked.values()))
    total: Elements = np.sum(list(masked.values()), axis=0, dtype=first.dtype)
    bits = 8 * total.dtype.itemsize
    for survivor in sorted(masked):
        shares = _shares(survivor, {one: what.seeds for one, what in revealed.items()}, places)
        seed = collect(shares, threshold)
        total = total - stretch(derive(seed, f"{context}|own"), len(total), bits)
    for gone in sorted(set(sharing) - set(masked)):
        shares = _shares(gone, {one: what.mask_keys for one, what in revealed.items()}, places)
        secret = mask_key(collect(shares, threshold), context)
        if public_key(secret) != keys[gone].mask:
            raise ProtocolError(f"the shares of the mask key of client {gone} do not give it back")
        for survivor in sorted(masked):
            mask = pairwise_mask(
                secret, keys[survivor].mask, survivor, gone, context, len(total), bits
            )
            total = total - mask if survivor > gone else total + mask
    return total


def _shares(
    client: int, revealed: Mapping[int, Mapping[int, bytes]], places: Mapping[int, int]
) -> dict[int, bytes]:
    """Return the shares of one client's secret, by the places of those who revealed them."""
    found = {}
    for one, shares in revealed.items():
        if len(shares.get(client, b"")) != SEED_BYTES:
            raise ProtocolError(f"client {one} revealed no share of a secret of client {client}")
        found[places[one]] = shares[client]
    return found
