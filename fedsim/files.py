"""Files of runs: tensors are safetensors, everything else is JSON; never pickle.

Files appear whole, by renaming; logs (`*.jsonl`) grow by one whole line per write.
"""

import errno
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from attacks.observation import Tensors

Record = dict[str, Any]
"""One JSON object; `docs/run-directory.md` gives the schema of each."""


def digest(tensors: Tensors) -> str:
    """Return the SHA-256 of named tensors: names in order, with dtype, shape and bytes."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def replace_bytes(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write `content` so that `path` holds either what it held before or all of it.

    Args:
        path: Where.
        content: What.
        private: Whether its owner alone may read it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if private:
            part.unlink(missing_ok=True)  # its mode counts for a file that is made alone
            part.touch(mode=0o600, exist_ok=False)
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def replace_json(path: Path, record: object) -> None:
    """Write one JSON document whole."""
    replace_bytes(path, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Record:
    """Read one JSON object."""
    record: Record = json.loads(path.read_text())
    return record


def replace_tensors(
    path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors whole, as safetensors."""
    # contiguous copies: safetensors refuses tensors that share memory
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    replace_bytes(path, save(plain, dict(metadata) if metadata else None))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read named tensors and the metadata beside them."""
    # safetensors opens files out of Python's sight; a process that is sealed off must see it
    sys.audit("open", str(path), "rb", 0)
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def part_of(tensors: Tensors, part: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `part/`, by the rest of their names."""
    prefix = f"{part}/"
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def append_line(path: Path, record: Record) -> None:
    """Add one JSON line in a single write; half a line, on a full disk, is taken back."""
    line = (json.dumps(record, allow_nan=False) + "\n").encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        written = os.write(descriptor, line)
        if written < len(line):
            os.ftruncate(descriptor, os.lseek(descriptor, 0, os.SEEK_CUR) - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(descriptor)


def read_lines(path: Path) -> list[Record]:
    """Read a log of JSON lines; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1] if line]


def finite(value: float | None) -> float | None:
    """Return `value`, or None where JSON has no way to write it (NaN, infinity)."""
    return value if value is not None and abs(value) < float("inf") else None
