"""A client of secure aggregation in one round."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedsim.secure_sum.field import Elements
from fedsim.secure_sum.keys import (
    KEY_BYTES,
    SEED_BYTES,
    ProtocolError,
    PublicKeys,
    Random,
    agree,
    deal,
    derive,
    public_key,
    seal,
    stretch,
    unseal,
)
from fedsim.secure_sum.settings import Stage


@dataclass
class Member:
    """One client's secrets, and how far it has come.

    Each stage can be taken once, in order: a client that sent two masked vectors under the same
    masks, or revealed shares for two sets of survivors, would give itself or others away.

    Attributes:
        number: The client's number.
        context: Names the sum, so that no key serves two: the round.
        threshold: Clients without whom nothing goes on.
        encryption_secret: Private key by which others' shares reach this client.
        mask_seed: What the private key of the pairwise masks comes from.
        self_seed: What the client's own mask comes from.
        stage: The next stage that it takes part in; None when it has done its part.
        keys: Public keys of all who advertised them, by client, this one included.
        own_shares: Its own shares of its own two seeds.
        sharing: Those who dealt out shares.
    """

    number: int
    context: str
    threshold: int
    encryption_secret: bytes
    mask_seed: bytes
    self_seed: bytes
    stage: Stage | None = Stage.SHARES
    keys: dict[int, PublicKeys] = field(default_factory=dict)
    own_shares: tuple[bytes, bytes] = (b"", b"")
    sharing: list[int] = field(default_factory=list)

    @classmethod
    def join(cls, number: int, context: str, threshold: int, random: Random) -> "Member":
        """Draw the secrets of one round; `public_keys` is what to advertise."""
        secrets = (random(KEY_BYTES), random(SEED_BYTES), random(SEED_BYTES))
        return cls(number, context, threshold, *secrets)

    @property
    def public_keys(self) -> PublicKeys:
        """What everybody may know."""
        mask_secret = mask_key(self.mask_seed, self.context)
        return PublicKeys(public_key(self.encryption_secret), public_key(mask_secret))

    def share(self, keys: Mapping[int, PublicKeys]) -> dict[int, bytes]:
        """Deal out shares of both seeds; return them by receiver, encrypted.

        Args:
            keys: Public keys of all who advertised them, by client, this one included.

        Raises:
            ProtocolError: They are too few, not all different, or not this client's own.
        """
        self._take(Stage.SHARES, Stage.MASKED)
        self._require(keys)
        if keys[self.number] != self.public_keys:
            raise ProtocolError("the server gave everybody another key than this client's")
        if len({one.encryption for one in keys.values()} | {one.mask for one in keys.values()}) < (
            2 * len(keys)
        ):
            raise ProtocolError("two clients were said to have the same key")
        self.keys = dict(sorted(keys.items()))
        shares = zip(
            deal(self.self_seed, self.threshold, len(keys)),
            deal(self.mask_seed, self.threshold, len(keys)),
            strict=True,
        )
        by_client = dict(zip(self.keys, shares, strict=True))
        self.own_shares = by_client.pop(self.number)
        return {
            other: seal(self._key_between(self.number, other), b"".join(both))
            for other, both in by_client.items()
        }

    def mask(self, vector: Elements, sharing: Collection[int]) -> Elements:
        """Return the client's vector under all its masks.

        Args:
            vector: What it adds to the sum.
            sharing: All who dealt out shares, this client included.

        Raises:
            ProtocolError: They are too few, or did not advertise keys.
        """
        self._take(Stage.MASKED, Stage.UNMASK)
        self._require(sharing)
        if not set(sharing) <= self.keys.keys():
            raise ProtocolError("clients are said to have dealt out shares that have no keys")
        self.sharing = sorted(sharing)
        bits = 8 * vector.dtype.itemsize
        secret = mask_key(self.mask_seed, self.context)
        total = vector + stretch(derive(self.self_seed, f"{self.context}|own"), len(vector), bits)
        for other in self.sharing:
            if other != self.number:
                mask = pairwise_mask(
                    secret,
                    self.keys[other].mask,
                    self.number,
                    other,
                    self.context,
                    len(vector),
                    bits,
                )
                total = total + mask if self.number > other else total - mask
        return total

    def reveal(
        self, survivors: Collection[int], sealed: Mapping[int, bytes]
    ) -> tuple[dict[int, bytes], dict[int, bytes]]:
        """Return shares of the seeds of survivors, and of the mask keys of those who dropped out.

        Of each client it is one or the other, never both, and this can be asked for once.

        Args:
            survivors: Those whose masked vectors arrived.
            sealed: What each other client that dealt out shares encrypted for this one.

        Raises:
            ProtocolError: The survivors are too few, or do not belong to those who dealt out
                shares; or an encrypted share is missing or not what its sender made.
        """
        self._take(Stage.UNMASK, None)
        self._require(survivors)
        if not set(survivors) <= set(self.sharing):
            raise ProtocolError("clients are said to have survived that dealt out no shares")
        if set(sealed) != set(self.sharing) - {self.number}:
            raise ProtocolError("the encrypted shares are not those of all who dealt them out")
        seeds: dict[int, bytes] = {}
        mask_keys: dict[int, bytes] = {}
        for other in self.sharing:
            of_seed, of_mask_key = self.own_shares
            if other != self.number:
                plain = unseal(self._key_between(other, self.number), sealed[other])
                of_seed, of_mask_key = plain[:SEED_BYTES], plain[SEED_BYTES:]
            if other in survivors:
                seeds[other] = of_seed
            else:
                mask_keys[other] = of_mask_key
        return seeds, mask_keys

    def _take(self, stage: Stage, following: Stage | None) -> None:
        if self.stage is not stage:
            wanted = "nothing more" if self.stage is None else f"stage '{self.stage}'"
            raise ProtocolError(
                f"client {self.number} was asked for stage '{stage}' of {self.context}, and takes "
                f"part in {wanted}: each stage comes once, in order"
            )
        self.stage = following

    def _require(self, clients: Collection[int]) -> None:
        if len(set(clients)) < len(clients):
            raise ProtocolError("a client is named twice, as if it counted for two")
        if len(clients) < self.threshold:
            raise ProtocolError(
                f"{len(clients)} clients are left, {self.threshold} are needed: nothing is revealed"
            )
        if self.number not in clients:
            raise ProtocolError(f"client {self.number} is not among those it is to sum with")

    def _key_between(self, sender: int, receiver: int) -> bytes:
        other = receiver if sender == self.number else sender
        purpose = f"{self.context}|shares|{sender}|{receiver}"
        return agree(self.encryption_secret, self.keys[other].encryption, purpose)

    def to_json(self) -> str:
        """Return everything, secrets included, as text."""
        return json.dumps(
            {
                "number": self.number,
                "context": self.context,
                "threshold": self.threshold,
                "secrets": [
                    one.hex() for one in (self.encryption_secret, self.mask_seed, self.self_seed)
                ],
                "stage": self.stage,
                "keys": [[n, k.encryption.hex(), k.mask.hex()] for n, k in self.keys.items()],
                "own_shares": [one.hex() for one in self.own_shares],
                "sharing": self.sharing,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "Member":
        """Return what `to_json` wrote down.

        Raises:
            ProtocolError: The text is damaged.
        """
        try:
            return cls._from_record(json.loads(text))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ProtocolError(
                f"the secrets of a member are damaged: {type(error).__name__}"
            ) from error

    @classmethod
    def _from_record(cls, record: dict[str, Any]) -> "Member":
        encryption_secret, mask_seed, self_seed = map(bytes.fromhex, record["secrets"])
        of_seed, of_mask_key = map(bytes.fromhex, record["own_shares"])
        return cls(
            record["number"],
            record["context"],
            record["threshold"],
            encryption_secret,
            mask_seed,
            self_seed,
            stage=None if record["stage"] is None else Stage(record["stage"]),
            keys={
                number: PublicKeys(bytes.fromhex(encryption), bytes.fromhex(mask))
                for number, encryption, mask in record["keys"]
            },
            own_shares=(of_seed, of_mask_key),
            sharing=record["sharing"],
        )


def mask_key(seed: bytes, context: str) -> bytes:
    """Return the private key of pairwise masks that comes from a seed."""
    return derive(seed, f"{context}|mask key")


def pairwise_mask(
    secret: bytes,
    public: bytes,
    one: int,
    other: int,
    context: str,
    length: int,
    field_bits: int,
) -> Elements:
    """Return the mask that two clients have in common; the one with the larger number adds it."""
    low, high = sorted((one, other))
    key = agree(secret, public, f"{context}|pair|{low}|{high}")
    return stretch(key, length, field_bits)
