"""Encryption between peers, end to end: the relay that carries their messages cannot read them.

Every peer has an X25519 key of its own for a run. Two peers agree on a secret, HKDF with SHA-256
derives a key for each direction from it, and ChaCha20-Poly1305 encrypts and authenticates. What is
authenticated beside the text says where it belongs: run, purpose, round, hop, members, sender and
receiver. So a message that was changed, or belongs elsewhere, is refused.

Keys and nonces come from the operating system, never from the streams of an experiment: two runs
of the same experiment have other ciphertexts, and the same weights. A nonce is drawn for every
message; 96 random bits do for far more messages than a run has.
"""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedsim.errors import FedsimError

KEY_BYTES = 32
"""Size of a key, public or private."""
NONCE_BYTES = 12
OVERHEAD_BYTES = NONCE_BYTES + 16
"""What a message is longer when it is sealed: nonce and tag."""

_VERSION = "fedsim end to end 1"
_UNLIKE_OURS = (
    *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError),
)
"""What taking apart a file of keys raises that is not as it should be."""


class Unreadable(FedsimError):
    """A message was changed on its way, or belongs elsewhere."""


class KeysDiffer(FedsimError):
    """The relay tells other keys than it told before, or than there can be."""


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where a message belongs.

    Attributes:
        purpose: What it is for: `hop`, or `adopt` for a model to begin anew from.
        round: When it was said.
        hop: When it was said.
        members: Who takes part, where that makes another message of it; a collective begins a
            round again among those that are left.
    """

    purpose: str
    round: int
    hop: int
    members: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Keyring:
    """The keys that one peer holds for a run.

    Attributes:
        run: What the run is called.
        me: The peer.
        secret: Its own private key; it never leaves the peer.
        known: Public keys of peers, by number, as the relay told them first.
    """

    run: str
    me: int
    secret: bytes
    known: Mapping[int, bytes]

    @classmethod
    def new(cls, run: str, me: int) -> "Keyring":
        """Return a keyring with a new key, from the operating system."""
        secret = X25519PrivateKey.generate().private_bytes_raw()
        return cls(run=run, me=me, secret=secret, known={})

    @property
    def public(self) -> bytes:
        """The public key that belongs to its own."""
        return _public(self.secret)

    def meeting(self, told: Mapping[int, bytes]) -> "Keyring":
        """Return the keyring with the keys of peers that were not known yet.

        Raises:
            KeysDiffer: A key is none, or is not the one that was told before, or is said to be
                this peer's and is not.
        """
        for peer, key in told.items():
            before = self.public if peer == self.me else self.known.get(peer, key)
            if key != before:
                whose = "this peer's own" if peer == self.me else f"that of peer {peer}"
                raise KeysDiffer(f"a key that is said to be {whose} is another than before")
            if peer != self.me:
                _agreed(self.secret, key, b"")  # refuses what is no key
        return replace(self, known={**self.known, **told})

    def seal(self, plain: bytes, receiver: int, where: Where) -> bytes:
        """Encrypt and authenticate a message of this peer.

        Raises:
            Unreadable: The key of the receiver is not known.
        """
        nonce = secrets.token_bytes(NONCE_BYTES)
        key = self._key(self.me, receiver)
        bound = self._bound(where, self.me, receiver)
        return nonce + ChaCha20Poly1305(key).encrypt(nonce, plain, bound)

    def unseal(self, sealed: bytes, sender: int, where: Where) -> bytes:
        """Decrypt what a peer sealed for this one.

        Raises:
            Unreadable: It was changed, is for another peer, round or hop, is of another run, or the
                key of the sender is not known.
        """
        key = self._key(sender, self.me)
        if len(sealed) < OVERHEAD_BYTES:
            raise Unreadable(f"an encrypted message of {len(sealed)} bytes is none")
        nonce, rest = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
        bound = self._bound(where, sender, self.me)
        try:
            return ChaCha20Poly1305(key).decrypt(nonce, rest, bound)
        except InvalidTag as error:
            raise Unreadable(
                "it was changed on its way, or encrypted for another peer, round, hop or run"
            ) from error

    def _key(self, sender: int, receiver: int) -> bytes:
        """Return the key of one direction between this peer and another."""
        other = receiver if sender == self.me else sender
        if other == self.me or other not in self.known:
            raise Unreadable(f"no key of peer {other} is known")
        theirs = self.known[other]
        ends = (self.public, theirs) if sender == self.me else (theirs, self.public)
        return _agreed(self.secret, theirs, b"|".join(end.hex().encode() for end in ends))

    def _bound(self, where: Where, sender: int, receiver: int) -> bytes:
        return json.dumps(
            [
                _VERSION,
                self.run,
                where.purpose,
                where.round,
                where.hop,
                where.members,
                sender,
                receiver,
            ]
        ).encode()

    def to_json(self) -> str:
        """Return it as text, private key included."""
        known = {str(peer): key.hex() for peer, key in self.known.items()}
        return json.dumps(
            {"run": self.run, "me": self.me, "secret": self.secret.hex(), "known": known}
        )

    @classmethod
    def from_json(cls, text: str) -> "Keyring":
        """Return what `to_json` wrote.

        Raises:
            KeysDiffer: The text is no keyring.
        """
        try:
            told = json.loads(text)
            known = {int(peer): bytes.fromhex(key) for peer, key in told["known"].items()}
            ring = cls(
                run=str(told["run"]),
                me=int(told["me"]),
                secret=bytes.fromhex(told["secret"]),
                known=known,
            )
            _ = ring.public
        except _UNLIKE_OURS as error:
            raise KeysDiffer(f"the file of keys is damaged: {error}") from error
        return ring


@lru_cache(maxsize=4096)
def _public(secret: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


@lru_cache(maxsize=4096)
def _agreed(secret: bytes, public: bytes, direction: bytes) -> bytes:
    """Return the key that two peers have in common for one direction.

    Raises:
        KeysDiffer: The public key is none.
    """
    try:
        private = X25519PrivateKey.from_private_bytes(secret)
        common = private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise KeysDiffer(f"a public key cannot be used: {error}") from error
    info = _VERSION.encode() + b"|" + direction
    return HKDF(SHA256(), KEY_BYTES, None, info).derive(common)
