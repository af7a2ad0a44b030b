"""What an attack found, on disk: a record, and its tensors."""

from pathlib import Path

from torch import Tensor

from attacks.observation import Reconstruction, Snapshot
from fedsim.checked_records import checked
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


def write_reconstruction(
    folder: Path,
    observation: Record,
    attack: str,
    guess: Reconstruction | None,
    *,
    reason: str | None,
    seconds: float,
) -> None:
    """Write an attack's guess, or that it failed and why, as `RunDirectory` does."""
    stem = f"{observation['id']}--{attack}"
    tensors: dict[str, Tensor] = {}
    record: Record = {
        "observation": observation["id"],
        "round": observation["round"],
        "victim": observation["sender"],
        "attack": attack,
        "status": "failed" if guess is None else "done" if guess.finished else "unfinished",
        "reason": reason,
        "seconds": round(seconds if guess is None else guess.seconds, 6),
    }
    if guess is not None:
        if guess.inputs is not None:
            tensors["inputs"] = guess.inputs
        if guess.labels is not None:
            tensors["labels"] = guess.labels
        if guess.certified is not None:
            tensors["certified"] = guess.certified
        if guess.confidence is not None:
            tensors["confidence"] = guess.confidence
        for index, snapshot in enumerate(guess.snapshots):
            tensors[f"snapshot/{index:03d}"] = snapshot.inputs
        record |= {
            "matching_loss": finite(guess.matching_loss),
            "steps": guess.steps,
            "num_certified": None if guess.certified is None else int(guess.certified.sum()),
            "snapshots": [
                {"step": one.step, "matching_loss": finite(one.matching_loss)}
                for one in guess.snapshots
            ],
            "notes": {key: _plain(value) for key, value in guess.notes.items()},
            "sha256": digest(tensors),
        }
    if tensors:
        replace_tensors(folder / f"{stem}.safetensors", tensors)
    replace_json(folder / f"{stem}.json", record)  # last: it marks the whole as there


def read_reconstruction(folder: Path, record: Record) -> Reconstruction:
    """Read the guess behind a reconstruction's record; a failed one has no inputs.

    Raises:
        Damaged: The record, or the file of tensors, is not as `write_reconstruction` wrote it.
    """
    from fedsim.schemas.observations import ReconstructionRecord  # its package imports this module

    stem = f"{record.get('observation')}--{record.get('attack')}"
    path = file_in(folder, f"{stem}.safetensors")
    record = checked(ReconstructionRecord, record, path.with_suffix(".json"))
    with reading(path):
        return _reconstruction(path, record)


def _reconstruction(path: Path, record: Record) -> Reconstruction:
    # beside a failure may lie what an earlier attempt, killed half way, wrote first
    whole = record["status"] != "failed" and path.is_file()
    tensors = read_tensors(path)[0] if whole else {}
    return Reconstruction(
        inputs=tensors.get("inputs"),
        labels=tensors.get("labels"),
        matching_loss=record["matching_loss"],
        steps=record["steps"],
        seconds=record["seconds"],
        finished=record["status"] == "done",
        certified=tensors.get("certified"),
        confidence=tensors.get("confidence"),
        snapshots=tuple(
            Snapshot(
                step=one["step"],
                inputs=tensors[f"snapshot/{index:03d}"],
                matching_loss=float("nan")
                if one["matching_loss"] is None
                else one["matching_loss"],
            )
            for index, one in enumerate(record["snapshots"])
        ),
        notes=record["notes"],
    )


def _plain(value: str | float) -> str | float | None:
    """Return a note as JSON can hold it."""
    return value if isinstance(value, str) else finite(float(value))
