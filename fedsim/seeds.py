"""One seed, many independent streams of random numbers, each with a name.

A stream is named by its path, as `stream(seed, "round", 3, "client", 7, "batch")`. The name is
hashed into the state, so that adding a client, an attack or a logger changes no other stream, and
so that a resumed run needs no saved generator.
"""

import hashlib

import numpy as np
import torch


def derive(seed: int, *path: str | int) -> int:
    """Return a 63-bit seed for the stream of this name, independent of every other name."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in (seed, *path))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, *path: str | int) -> torch.Generator:
    """Return a CPU generator for the stream of this name."""
    return torch.Generator().manual_seed(derive(seed, *path))


def numpy_stream(seed: int, *path: str | int) -> np.random.Generator:
    """Return a counter-based numpy generator for the stream of this name."""
    return np.random.Generator(np.random.Philox(derive(seed, *path)))
