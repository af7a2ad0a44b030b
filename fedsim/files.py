"""Files of runs: tensors are safetensors, everything else is JSON; never pickle.

Files appear whole, by renaming; logs (`*.jsonl`) grow by one whole line per write.
"""

import contextlib
import errno
import hashlib
import json
import os
import stat
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from attacks.observation import Tensors
from fedsim.errors import Damaged, FedsimError
from fedsim.tensor_files import LARGEST_FILE, check_tensor_file

LARGEST_DOCUMENT = 64 * 2**20
"""Bytes of one JSON document."""
LARGEST_LOG = 2**30
"""Bytes of one log."""
_LONGEST_NAME = 255
_UNLIKE_OURS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError)
"""What taking a record apart raises that is not as it should be."""

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
        part.unlink(missing_ok=True)  # one left behind; or a link, which is not written through
        if private:
            part.touch(mode=0o600, exist_ok=False)
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def replace_json(path: Path, record: object) -> None:
    """Write one JSON document whole."""
    replace_bytes(path, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Record:
    """Read one JSON object.

    Raises:
        Damaged: It is none, too large, or the file is a link to another.
        OSError: It cannot be read.
    """
    check_plain(path, LARGEST_DOCUMENT)
    return _object(path.read_bytes(), str(path))


def _object(text: bytes, where: str) -> Record:
    try:
        record = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{where}: not JSON: {error}") from error
    if not isinstance(record, dict):
        raise Damaged(f"{where}: expected a JSON object, got {type(record).__name__}")
    return record


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def read_document(path: Path) -> str:
    """Read a document of text, such as TOML.

    Raises:
        Damaged: It is no text, too large, or the file is a link to another.
        OSError: It cannot be read.
    """
    check_plain(path, LARGEST_DOCUMENT)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Damaged(f"{path}: not a text: {error}") from error


def read_toml(path: Path) -> Record:
    """Read a document of TOML.

    Raises:
        Damaged: It is none, too large, or the file is a link to another.
        OSError: It cannot be read.
    """
    try:
        return tomllib.loads(read_document(path))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path}: not valid TOML: {error}") from error


def check_plain(path: Path, largest: int) -> None:
    """Refuse to read what is no plain file, or is larger than anything fedsim writes.

    Raises:
        Damaged: It is a symbolic link, a device or the like, or too large.
        OSError: It cannot be read.
    """
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise Damaged(f"{path}: not a plain file; a run directory holds no links")
    if found.st_size > largest:
        raise Damaged(f"{path}: {found.st_size} bytes are more than {largest}")


def file_in(folder: Path, name: str) -> Path:
    """Return the file of that name in a folder; the name may come from a file of strangers.

    Raises:
        Damaged: The name is none of a file, or leads out of the folder.
    """
    if not name or name.startswith(".") or len(name.encode(errors="replace")) > _LONGEST_NAME:
        raise Damaged(f"{name[:80]!r} is no name of a file in '{folder.name}'")
    if not name.isprintable() or "/" in name or "\\" in name:
        raise Damaged(f"{name[:80]!r} is no name of a file in '{folder.name}'")
    return folder / name


@contextlib.contextmanager
def reading(what: object) -> Iterator[None]:
    """Turn what goes wrong while a record is taken apart into one error that names the file.

    Raises:
        Damaged: Something was missing, or of another kind.
    """
    try:
        yield
    except FedsimError:
        raise
    except _UNLIKE_OURS as error:
        raise Damaged(f"{what}: not as fedsim writes it: {_said(error)}") from error


def _said(error: Exception) -> str:
    text = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {text[:300]}"


def replace_tensors(
    path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors whole, as safetensors."""
    # contiguous copies: safetensors refuses tensors that share memory
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    replace_bytes(path, save(plain, dict(metadata) if metadata else None))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read named tensors and the metadata beside them.

    Raises:
        Damaged: It is no such file, or promises more than it holds.
        OSError: It cannot be read.
    """
    check_plain(path, LARGEST_FILE)
    check_tensor_file(path)
    # safetensors opens files out of Python's sight; a process that is sealed off must see it
    sys.audit("open", str(path), "rb", 0)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError, RuntimeError) as error:
        raise Damaged(f"{path}: {error}") from error


def part_of(tensors: Tensors, part: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `part/`, by the rest of their names."""
    prefix = f"{part}/"
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def append_line(path: Path, record: Record) -> None:
    """Add one JSON line in a single write; half a line, on a full disk, is taken back.

    Raises:
        Damaged: The log is a link to another file, a pipe or the like.
        OSError: It cannot be written.
    """
    line = (json.dumps(record, allow_nan=False) + "\n").encode()
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a pipe that nobody reads
            raise Damaged(f"{path}: not a plain file; a run directory holds no links") from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Damaged(f"{path}: not a plain file; a run directory holds no links")
        written = os.write(descriptor, line)
        if written < len(line):
            os.ftruncate(descriptor, os.lseek(descriptor, 0, os.SEEK_CUR) - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(descriptor)


def read_lines(path: Path) -> list[Record]:
    """Read a log of JSON lines; a last line that a kill cut short is left out.

    Raises:
        Damaged: A line is no JSON object, or the file is too large or a link.
    """
    if not path.exists():
        return []
    check_plain(path, LARGEST_LOG)
    return parse_lines(path.read_bytes(), str(path))


def each_line(path: Path) -> Iterator[Record]:
    """Yield what `read_lines` returns, one by one: for logs that may be long.

    Raises:
        Damaged: A line is no JSON object, or the file is too large or a link.
    """
    if not path.exists():
        return
    check_plain(path, LARGEST_LOG)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n") and line != b"\n":
                yield _object(line, f"{path}, line {number}")


def parse_lines(text: bytes, where: str) -> list[Record]:
    """Return the JSON objects of whole lines.

    Raises:
        Damaged: A line is none.
    """
    lines = text.split(b"\n")[:-1]
    return [
        _object(line, f"{where}, line {number}") for number, line in enumerate(lines, 1) if line
    ]


def finite(value: float | None) -> float | None:
    """Return `value`, or None where JSON has no way to write it (NaN, infinity)."""
    return value if value is not None and abs(value) < float("inf") else None
