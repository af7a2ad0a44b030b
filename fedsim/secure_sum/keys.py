"""What the libraries `cryptography` and `pycryptodome` do for secure aggregation.

X25519 agrees on keys, HKDF with SHA-256 derives one key per purpose, ChaCha20 stretches a key into
a mask, ChaCha20-Poly1305 encrypts and authenticates, Shamir's scheme deals out secrets. Every key
is used for one purpose in one round, so nonces are zero.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedsim.errors import FedsimError
from fedsim.secure_sum.field import Elements, element_type
from fedsim.seeds import stream

KEY_BYTES = 32
"""Size of a key, public or private."""
SEED_BYTES = 16
"""Size of a secret that is dealt out, and of a share of it: 128 bits, the strength of X25519."""
SEALED_BYTES = 2 * SEED_BYTES + 16
"""Size of two shares, encrypted."""

_ZERO_NONCE = bytes(12)

Random = Callable[[int], bytes]
"""Returns so many random bytes."""


class ProtocolError(FedsimError):
    """Someone did not follow the protocol, or asked for what must not be revealed."""


@dataclass(frozen=True)
class PublicKeys:
    """What a client tells everybody.

    Attributes:
        encryption: Shares for this client are encrypted with its help.
        mask: Pairwise masks are made with its help.
    """

    encryption: bytes
    mask: bytes


def system_random(count: int) -> bytes:
    """Return so many bytes from the operating system."""
    return secrets.token_bytes(count)


def seeded_random(seed: int, *path: str | int) -> Random:
    """Return a source of the same bytes whenever it is made: for simulations, never for secrets.

    Who knows the seed knows every key.
    """
    rng = stream(seed, *path)

    def draw(count: int) -> bytes:
        return torch.randint(0, 256, (count,), generator=rng, dtype=torch.uint8).numpy().tobytes()

    return draw


def public_key(secret: bytes) -> bytes:
    """Return the X25519 public key of a secret of 32 bytes."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def agree(secret: bytes, public: bytes, purpose: str) -> bytes:
    """Return the key of 32 bytes that two clients have in common for one purpose.

    Raises:
        ProtocolError: The public key is none.
    """
    try:
        private = X25519PrivateKey.from_private_bytes(secret)
        common = private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise ProtocolError(f"a public key cannot be used: {error}") from error
    return derive(common, purpose)


def derive(secret: bytes, purpose: str) -> bytes:
    """Return a key of 32 bytes for one purpose."""
    return HKDF(SHA256(), KEY_BYTES, None, f"fedsim secure sum 1|{purpose}".encode()).derive(secret)


def stretch(key: bytes, length: int, field_bits: int) -> Elements:
    """Return the mask that a key stands for, (length,)."""
    kind = element_type(field_bits)
    stream_of_bytes = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
    return np.frombuffer(stream_of_bytes.update(bytes(length * kind.itemsize)), dtype=kind)


def seal(key: bytes, plain: bytes) -> bytes:
    """Encrypt and authenticate; a key seals one message."""
    return ChaCha20Poly1305(key).encrypt(_ZERO_NONCE, plain, None)


def unseal(key: bytes, sealed: bytes) -> bytes:
    """Decrypt what was sealed with this key.

    Raises:
        ProtocolError: It was sealed with another key, or changed.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(_ZERO_NONCE, sealed, None)
    except InvalidTag as error:
        raise ProtocolError("an encrypted share was changed on its way") from error


def deal(seed: bytes, threshold: int, num_shares: int) -> list[bytes]:
    """Return shares of a secret of 16 bytes, any `threshold` of which give it back.

    The library draws from the operating system; what is summed does not depend on it.
    """
    return [share for _, share in Shamir.split(threshold, num_shares, seed, ssss=False)]


def collect(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Return the secret behind shares, by their places from 1.

    Raises:
        ProtocolError: They are too few.
    """
    if len(shares) < threshold:
        raise ProtocolError(f"{threshold} shares give a secret back, got {len(shares)}")
    seed: bytes = Shamir.combine(sorted(shares.items())[:threshold], ssss=False)
    return seed
