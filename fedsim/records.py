"""The run directory: where every stage reads and writes, and the only thing stages share.

Tensors are safetensors, everything else is JSON; never pickle. Files appear whole, by renaming;
logs (`*.jsonl`) grow by one whole line per write. A run that was killed at any moment therefore
leaves a directory that can be read, scored, reported and resumed. The layout is documented in
`docs/run-directory.md`; `FORMAT` is its version.
"""

import errno
import functools
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, overload

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from attacks.observation import Kind, Observation, Reconstruction, Snapshot, Tensors
from fedsim.errors import ConfigError

FORMAT = 1
"""Version of the layout; a reader refuses a newer one."""

EVERYBODY = "all"
"""The sender of a mean over clients."""

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


def replace_bytes(path: Path, content: bytes) -> None:
    """Write `content` so that `path` holds either what it held before or all of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
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


@dataclass(frozen=True)
class RunDirectory:
    """One run on disk.

    Attributes:
        root: The directory.
    """

    root: Path

    @classmethod
    def create(cls, parent: Path, name: str) -> "RunDirectory":
        """Make `parent/name-NNNN` with the next free number.

        Raises:
            ConfigError: The directory cannot be made (no permission, disk full, ...).
        """
        stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-") or "run"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            for number in range(1, 1_000_000):
                root = parent / f"{stem}-{number:04d}"
                try:
                    root.mkdir(mode=0o700)  # what was overheard is private data, too
                except FileExistsError:
                    continue
                run = cls(root)
                for part in ("observations", "reconstructions"):
                    (root / part).mkdir()
                (root / "truth").mkdir(mode=0o700)  # read by scoring alone
                return run
        except OSError as error:
            raise ConfigError(
                f"cannot make a run directory in '{parent}': {error.strerror or error}; "
                "choose another place with output.directory"
            ) from error
        raise ConfigError(f"'{parent}' already holds a million runs named '{stem}'")

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """Open an existing run.

        Raises:
            ConfigError: `path` is not a run directory, or of a newer format.
        """
        if not (path / "config.toml").is_file():
            raise ConfigError(f"'{path}' is not a run directory: it has no config.toml")
        environment = path / "environment.json"
        found = read_json(environment).get("format", FORMAT) if environment.is_file() else FORMAT
        if found > FORMAT:
            raise ConfigError(
                f"'{path}' has run directory format {found}, this fedsim reads up to {FORMAT}; "
                "update fedsim"
            )
        return cls(path)

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.root.resolve().name

    # single documents

    @property
    def config(self) -> Path:
        """The resolved experiment."""
        return self.root / "config.toml"

    @property
    def environment(self) -> Path:
        """Versions and hardware."""
        return self.root / "environment.json"

    @property
    def summary(self) -> Path:
        """What came out, in one document."""
        return self.root / "summary.json"

    @property
    def checkpoint(self) -> Path:
        """Where a resumed run goes on."""
        return self.root / "checkpoint.safetensors"

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.root / "report.html"

    @property
    def pictures(self) -> Path:
        """The pictures of the report, as PNG."""
        return self.root / "pictures"

    @property
    def memory(self) -> Path:
        """What clients' defenses remember from round to round; nobody else may look."""
        return self.root / "memory"

    # logs

    def append_round(self, record: Record) -> None:
        """Add the record of one round."""
        append_line(self.root / "rounds.jsonl", record)

    def rounds(self) -> list[Record]:
        """Return the rounds so far, in order, one each."""
        return list({record["round"]: record for record in self._log("rounds")}.values())

    def size_of_rounds(self) -> int:
        """Return how many bytes of rounds are recorded, as a place to read on from."""
        path = self.root / "rounds.jsonl"
        return path.stat().st_size if path.exists() else 0

    def rounds_after(self, place: int) -> tuple[list[Record], int]:
        """Return the rounds recorded after a place, and the new place."""
        path = self.root / "rounds.jsonl"
        if not path.exists():
            return [], place
        with path.open("rb") as file:
            file.seek(place)
            whole, newline, _ = file.read().rpartition(b"\n")
        records = [json.loads(line) for line in whole.split(b"\n") if line]
        return records, place + len(whole) + len(newline)

    def append_event(self, kind: str, message: str, **details: object) -> None:
        """Add one event: a fault, a refused message, a failed attack, a resume."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        append_line(
            self.root / "events.jsonl", {"time": now, "kind": kind, "message": message, **details}
        )

    def events(self) -> list[Record]:
        """Return the events so far."""
        return self._log("events")

    def append_score(self, record: Record) -> None:
        """Add the scores of one reconstruction."""
        append_line(self.root / "scores.jsonl", record)

    def scores(self) -> list[Record]:
        """Return the newest score of each (observation, attack), in order of round."""
        newest = {(score["observation"], score["attack"]): score for score in self._log("scores")}
        return sorted(newest.values(), key=lambda score: (score["round"], score["observation"]))

    def rewrite_log(self, name: str, records: list[Record]) -> None:
        """Replace the log `name` ("rounds", "scores", "events") by these records."""
        text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        replace_bytes(self.root / f"{name}.jsonl", text.encode())

    def repair(self) -> None:
        """Cut off what a kill left half written at the end of a log, and forget partial files."""
        for name in ("rounds", "scores", "events"):
            path = self.root / f"{name}.jsonl"
            if path.exists() and not path.read_bytes().endswith(b"\n"):
                self.rewrite_log(name, self._log(name))
        for part in self.root.rglob(".*.part"):
            part.unlink()

    def forget_reconstructions(self) -> None:
        """Remove every reconstruction and score, so that the attacks run anew."""
        for path in (self.root / "reconstructions").iterdir():
            path.unlink()
        (self.root / "scores.jsonl").unlink(missing_ok=True)

    def _log(self, name: str) -> list[Record]:
        return read_lines(self.root / f"{name}.jsonl")

    # observations

    def write_observation(self, seen: Observation, *, members: Sequence[str] = ()) -> str:
        """Write what was heard of one message; return its id.

        Weights in force are stored once, under their digest, however many messages share them.

        Args:
            seen: What was heard.
            members: Whose updates are in it, if it is a mean over clients.
        """
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
            "weights": None if seen.weights is None else self._write_model("weights", seen.weights),
            "buffers": None if seen.buffers is None else self._write_model("buffers", seen.buffers),
            "buffers_after": seen.buffers_after is not None,
            "sha256": digest(tensors),
        }
        folder = self.root / "observations"
        replace_tensors(folder / f"{identity}.safetensors", tensors)
        replace_json(folder / f"{identity}.json", record)  # last: it marks the whole as there
        return identity

    def _write_model(self, part: str, tensors: Tensors) -> str:
        sha256 = digest(tensors)
        path = self.root / "observations" / "models" / f"{part}-{sha256[:32]}.safetensors"
        if not path.exists():
            replace_tensors(path, tensors)
        return sha256

    def observation_records(self) -> list[Record]:
        """Return the records of all observations that are wholly there, in order of id."""
        folder = self.root / "observations"
        return [read_json(path) for path in sorted(folder.glob("*.json"))]

    def observations_of(self, sender: str, *, last: int) -> list[str]:
        """Return the ids of what was heard of a sender up to the round `last`, in order."""
        folder = self.root / "observations"
        ids = sorted(path.stem for path in folder.glob(f"round-*-{sender}-to-*.json"))
        return [one for one in ids if int(one.split("-")[1]) <= last]

    def heard_of(self, sender: str, *, last: int) -> "Heard":
        """Return what was heard of a sender up to the round `last`, in order."""
        read = functools.partial(_read_observation, self.root / "observations")
        return Heard(self.observations_of(sender, last=last), read)

    def members(self, server_round: int) -> list[str]:
        """Return the clients whose updates are in the mean heard of a round, in order."""
        path = self.root / "observations" / f"round-{server_round:05d}-{EVERYBODY}-to-server.json"
        return list(read_json(path)["members"]) if path.is_file() else []

    def read_observation(self, identity: str) -> Observation:
        """Read what was heard of one message.

        Raises:
            ConfigError: There is no such observation.
        """
        folder = self.root / "observations"
        if not (folder / f"{identity}.json").is_file():
            raise ConfigError(f"run '{self.name}' has no observation '{identity}'")
        return _read_observation(folder, identity)

    def views_sha256(self) -> str:
        """Return one digest of everything the adversary heard."""
        total = hashlib.sha256()
        for record in self.observation_records():
            total.update(json.dumps(record, sort_keys=True).encode())
        return total.hexdigest()

    # oracle: only under its name, only when the threat model grants it

    def write_oracle_labels(self, server_round: int, client: str, labels: Tensor) -> None:
        """Write the private labels for an adversary that is granted them."""
        path = self.root / "oracle" / f"round-{server_round:05d}-{client}.json"
        replace_json(path, {"labels": labels.tolist()})

    def read_oracle_labels(self, server_round: int, client: str) -> Tensor | None:
        """Read the private labels, if the threat model granted them; of everybody, in order."""
        if client == EVERYBODY:
            members = [
                self.read_oracle_labels(server_round, one) for one in self.members(server_round)
            ]
            told = [labels for labels in members if labels is not None]
            return torch.cat(told) if told and len(told) == len(members) else None
        path = self.root / "oracle" / f"round-{server_round:05d}-{client}.json"
        return torch.tensor(read_json(path)["labels"]) if path.is_file() else None

    # what clients noticed

    def last_received(
        self, client: str, server_round: int, received: Tensors
    ) -> dict[str, Tensor] | None:
        """Keep what a client receives in a round; return what it received before, if it did."""
        folder = self.root / "received"
        path = folder / f"{client}-round-{server_round:05d}.safetensors"
        earlier = [
            one for one in sorted(folder.glob(f"{client}-round-*.safetensors")) if one < path
        ]
        for old in earlier[:-1]:
            old.unlink()
        replace_tensors(path, received)
        return read_tensors(earlier[-1])[0] if earlier else None

    def write_alarms(self, server_round: int, client: str, alarms: Sequence[Record]) -> None:
        """Write what a client noticed about the weights that it received; no file if nothing."""
        path = self.root / "alarms" / f"round-{server_round:05d}-{client}.json"
        if not alarms:
            path.unlink(missing_ok=True)
            return
        found = [alarm | {"value": finite(alarm["value"])} for alarm in alarms]
        replace_json(path, {"alarms": found})

    def alarms(self, server_round: int, client: str) -> list[Record]:
        """Return what a client noticed in a round."""
        path = self.root / "alarms" / f"round-{server_round:05d}-{client}.json"
        return list(read_json(path)["alarms"]) if path.is_file() else []

    # reconstructions

    def write_reconstruction(
        self,
        observation: Record,
        attack: str,
        guess: Reconstruction | None,
        *,
        reason: str | None = None,
        seconds: float = 0.0,
    ) -> None:
        """Write an attack's guess, or that it failed and why.

        Args:
            observation: The record of the observation that was attacked.
            attack: The attack's label in the experiment.
            guess: What it found; None if it failed.
            reason: Why it failed, when it did.
            seconds: Wall time of a failed attack.
        """
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
                "notes": {key: plain(value) for key, value in guess.notes.items()},
                "sha256": digest(tensors),
            }
        folder = self.root / "reconstructions"
        if tensors:
            replace_tensors(folder / f"{stem}.safetensors", tensors)
        replace_json(folder / f"{stem}.json", record)  # last: it marks the whole as there

    def reconstruction_records(self) -> list[Record]:
        """Return the records of all reconstructions that are wholly there, in order of name."""
        folder = self.root / "reconstructions"
        return [read_json(path) for path in sorted(folder.glob("*.json"))]

    def read_reconstruction(self, record: Record) -> Reconstruction:
        """Read the guess behind a reconstruction's record; a failed one has no inputs."""
        stem = f"{record['observation']}--{record['attack']}"
        path = self.root / "reconstructions" / f"{stem}.safetensors"
        # beside a failure may lie what an earlier attempt, killed half way, wrote first
        whole = record["status"] != "failed" and path.is_file()
        tensors = read_tensors(path)[0] if whole else {}
        return Reconstruction(
            inputs=tensors.get("inputs"),
            labels=tensors.get("labels"),
            matching_loss=record.get("matching_loss"),
            steps=record.get("steps", 0),
            seconds=record["seconds"],
            finished=record["status"] == "done",
            certified=tensors.get("certified"),
            snapshots=tuple(
                Snapshot(
                    step=one["step"],
                    inputs=tensors[f"snapshot/{index:03d}"],
                    matching_loss=float("nan")
                    if one["matching_loss"] is None
                    else one["matching_loss"],
                )
                for index, one in enumerate(record.get("snapshots", []))
            ),
            notes=record.get("notes", {}),
        )

    def reconstructions(self) -> Iterator[tuple[Record, Reconstruction]]:
        """Yield every reconstruction with its record."""
        for record in self.reconstruction_records():
            yield record, self.read_reconstruction(record)


def _read_observation(folder: Path, identity: str) -> Observation:
    record = read_json(folder / f"{identity}.json")
    tensors, _ = read_tensors(folder / f"{identity}.safetensors")
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
    )


def _read_model(folder: Path, part: str, sha256: str | None) -> dict[str, Tensor] | None:
    if sha256 is None:
        return None
    return read_tensors(folder / "models" / f"{part}-{sha256[:32]}.safetensors")[0]


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


def finite(value: float | None) -> float | None:
    """Return `value`, or None where JSON has no way to write it (NaN, infinity)."""
    return value if value is not None and abs(value) < float("inf") else None


def plain(value: str | float) -> str | float | None:
    """Return a note as JSON can hold it."""
    return value if isinstance(value, str) else finite(float(value))
