"""What was heard of a message, on disk: a record, its tensors, and the model beside them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import overload

from torch import Tensor

from attacks.observation import Kind, Observation, Tensors
from fedsim.checked_records import read_checked
from fedsim.errors import Damaged
from fedsim.files import (
    Record,
    digest,
    file_in,
    finite,
    read_tensors,
    reading,
    replace_json,
    replace_tensors,
)


def write_observation(
    folder: Path, seen: Observation, *, members: Sequence[str], told_after: int | None = None
) -> str:
    """Write what was heard of one message; return its id, as `RunDirectory` does."""
    identity = f"round-{seen.round:05d}-{seen.sender}-to-{seen.receiver}"
    tensors = {f"update/{name}": tensor for name, tensor in seen.update.items()}
    for name, mask in (seen.visible or {}).items():
        tensors[f"visible/{name}"] = mask
    for name, tensor in (seen.buffers_after or {}).items():
        tensors[f"buffers-after/{name}"] = tensor
    record: Record = {
        "id": identity,
        "round": seen.round,
        "sender": seen.sender,
        "receiver": seen.receiver,
        "members": list(members),
        "kind": str(seen.kind),
        "num_examples": seen.num_examples,
        "num_bytes": seen.num_bytes,
        "masked": seen.visible is not None,
        "weights": None if seen.weights is None else _write_model(folder, "weights", seen.weights),
        "buffers": None if seen.buffers is None else _write_model(folder, "buffers", seen.buffers),
        "buffers_after": seen.buffers_after is not None,
        "isolated": seen.isolated,
        "expected_error": finite(seen.expected_error),
        "expected_weights_error": finite(seen.expected_weights_error),
        "told_after": told_after,
        "sha256": digest(tensors),
    }
    replace_tensors(folder / f"{identity}.safetensors", tensors)
    replace_json(folder / f"{identity}.json", record)  # last: it marks the whole as there
    return identity


def _write_model(folder: Path, part: str, tensors: Tensors) -> str:
    sha256 = digest(tensors)
    path = folder / "models" / f"{part}-{sha256[:32]}.safetensors"
    if not path.exists():
        replace_tensors(path, tensors)
    return sha256


def read_observation(folder: Path, identity: str) -> Observation:
    """Read what was heard of one message.

    Raises:
        Damaged: A file is not as `write_observation` wrote it.
        OSError: There is none of this id.
    """
    from fedsim.schemas.observations import ObservationRecord  # its package imports this module

    path = file_in(folder, f"{identity}.json")
    record = read_checked(ObservationRecord, path)
    if record["id"] != identity:
        raise Damaged(f"{path}: it says that it is '{record['id'][:80]}'")
    tensors, _ = read_tensors(path.with_name(f"{identity}.safetensors"))
    with reading(path):
        return _observation(folder, record, tensors)


def _observation(folder: Path, record: Record, tensors: Tensors) -> Observation:
    parts: dict[str, dict[str, Tensor]] = {"update": {}, "visible": {}, "buffers-after": {}}
    for name, tensor in tensors.items():
        part, _, own = name.partition("/")
        parts[part][own] = tensor
    return Observation(
        round=record["round"],
        sender=record["sender"],
        receiver=record["receiver"],
        kind=Kind(record["kind"]),
        update=parts["update"],
        visible=parts["visible"] if record["masked"] else None,
        weights=_read_model(folder, "weights", record["weights"]),
        buffers=_read_model(folder, "buffers", record["buffers"]),
        buffers_after=parts["buffers-after"] if record.get("buffers_after") else None,
        num_examples=record["num_examples"],
        num_bytes=record.get("num_bytes"),
        isolated=record.get("isolated"),
        expected_error=record.get("expected_error"),
        expected_weights_error=record.get("expected_weights_error"),
    )


def _read_model(folder: Path, part: str, sha256: str | None) -> dict[str, Tensor] | None:
    if sha256 is None:
        return None
    path = folder / "models" / f"{part}-{sha256[:32]}.safetensors"
    if not path.is_file():
        raise Damaged(f"{path}: not there, and an observation was heard at these {part}")
    return read_tensors(path)[0]


class Heard(Sequence[Observation]):
    """Observations, read when they are asked for; whoever holds them holds no run directory.

    Args:
        ids: Which, in order.
        read: Returns one of them by its id.
    """

    def __init__(self, ids: Sequence[str], read: Callable[[str], Observation]) -> None:
        self._ids = list(ids)
        self._read = read

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, place: int) -> Observation: ...

    @overload
    def __getitem__(self, place: slice) -> "Heard": ...

    def __getitem__(self, place: int | slice) -> "Observation | Heard":
        if isinstance(place, slice):
            return Heard(self._ids[place], self._read)
        return self._read(self._ids[place])
