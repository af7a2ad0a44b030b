"""Mutations of what programs read: of bytes, and of trees of values."""

import json
import random
from collections.abc import Callable
from typing import Any

Tree = Any
"""None, bool, int, float, str, bytes, or a list or a dict (with text as keys) of these."""

_NUMBERS = (
    *(0, 1, -1, 2, 7, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**40, 2**53),
    *(2**62, 2**63 - 1, 2**63, 2**64, 10**30, -(2**31), -(2**63)),
)
_TEXTS = (
    *("", " ", "..", "../../etc/passwd", "/etc/passwd", "a/b", "a\\b", "\0", "\n", "x" * 300),
    *(
        "<script>alert(1)</script>",
        "${x}",
        "%s%n",
        "nan",
        "NaN",
        "inf",
        "-1",
        "1e999",
        "é",
        "\ud800",
    ),
    *(
        "float32",
        "float64",
        "int64",
        "object",
        "O",
        "V9",
        "numpy.ndarray",
        "fedsim.packed",
        "pickle",
    ),
    *("model", "gradient", "share", "sparse-change", "total", "sealed", "weights", "delta", "all"),
    *("client-0", "client-1", "__class__", "__metadata__", "F32", "I64", "BF16"),
)
_FLOATS = (0.0, -0.0, 1e-300, 1e300, float("inf"), float("-inf"), float("nan"), 0.5)


def mutated(seed: Tree, rng: random.Random) -> Tree:
    """Return a copy of a seed with one change, or several."""
    tree = seed
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        tree = _changed(tree, rng)
    return tree


def as_document(tree: Tree, rng: random.Random) -> bytes:
    """Return a tree as JSON, at times with changes of its bytes."""
    if isinstance(tree, bytes):
        return tree
    try:
        text = json.dumps(tree, default=repr).encode()  # bytes may have come into it
    except RecursionError:  # too deep for the writer; readers must stand deeper ones
        text = b'{"a":' * 100_000 + b"[" * 100_000
    return bytes_changed(text, rng) if rng.random() < 0.25 else text


def bytes_changed(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with a few of them changed."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        rng.choice(_BYTES)(out, rng)
    return bytes(out)


def _flip(out: bytearray, rng: random.Random) -> None:
    if out:
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)


def _set(out: bytearray, rng: random.Random) -> None:
    if out:
        out[rng.randrange(len(out))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _cut(out: bytearray, rng: random.Random) -> None:
    del out[rng.randrange(len(out) + 1) :]


def _remove(out: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(out) + 1)
    del out[start : start + rng.choice((1, 2, 4, 8, 64))]


def _insert(out: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(out) + 1)
    out[start:start] = rng.randbytes(rng.choice((1, 2, 4, 8, 64)))


def _repeat(out: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(out) + 1)
    part = out[start : start + rng.choice((1, 8, 64, 512))]
    out[start:start] = part * rng.choice((1, 2, 50))


def _number(out: bytearray, rng: random.Random) -> None:
    width = rng.choice((2, 4, 8))
    start = rng.randrange(max(1, len(out) - width))
    value = rng.choice(_NUMBERS) % (1 << (8 * width))
    out[start : start + width] = value.to_bytes(width, rng.choice(("little", "big")))


def _digits(out: bytearray, rng: random.Random) -> None:
    places = [place for place, one in enumerate(out) if 0x30 <= one <= 0x39]
    if places:
        start = rng.choice(places)
        out[start : start + 1] = str(rng.choice(_NUMBERS)).encode()


_BYTES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    *(_flip, _flip, _set, _cut, _remove, _insert, _repeat, _number, _digits),
)


def _changed(tree: Tree, rng: random.Random) -> Tree:
    """Return a tree with one change somewhere in it."""
    inner = isinstance(tree, dict | list) and len(tree) > 0 and rng.random() < 0.85
    if not inner:
        return _instead(tree, rng)
    if isinstance(tree, list):
        return _changed_list(tree, rng)
    copy = dict(tree)
    key = rng.choice(list(copy))
    action = rng.random()
    if action < 0.08:
        del copy[key]
    elif action < 0.14:
        copy[str(rng.choice(_TEXTS))] = copy[key]
    elif action < 0.18:
        copy = {name: copy[name] for name in rng.sample(list(copy), len(copy))}
    else:
        copy[key] = _changed(copy[key], rng)
    return copy


def _changed_list(tree: list[Tree], rng: random.Random) -> Tree:
    copy = list(tree)
    place = rng.randrange(len(copy))
    action = rng.random()
    if action < 0.1:
        del copy[place]
    elif action < 0.2:
        copy.insert(place, copy[place])
    elif action < 0.22:
        copy = copy * rng.choice((2, 100))
    else:
        copy[place] = _changed(copy[place], rng)
    return copy


def _instead(tree: Tree, rng: random.Random) -> Tree:
    if rng.random() < 0.12:
        return _anything(rng)
    if isinstance(tree, bytes):
        return bytes_changed(tree, rng)
    if isinstance(tree, bool) or tree is None:
        return rng.choice((True, False, None, 0, 1))
    if isinstance(tree, int):
        return rng.choice((*_NUMBERS, tree + 1, tree - 1, -tree))
    if isinstance(tree, float):
        return rng.choice((*_FLOATS, tree * 2, -tree, 0))
    if isinstance(tree, str):
        changed = bytes_changed(tree.encode(errors="replace"), rng).decode(errors="replace")
        return rng.choice((*_TEXTS, changed, changed, changed))
    return _anything(rng)


def _anything(rng: random.Random) -> Tree:
    deep: Tree = []
    for _ in range(rng.choice((1, 30, 2000))):
        deep = [deep]
    things: tuple[Tree, ...] = (None, True, [], {}, [[]], {"": None}, deep, b"", b"\0" * 64)
    return rng.choice((*things, rng.choice(_NUMBERS), rng.choice(_FLOATS), rng.choice(_TEXTS)))
