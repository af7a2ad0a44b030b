"""The run directory: where every stage reads and writes, and the only thing stages share.

Tensors are safetensors, everything else is JSON; never pickle. Files appear whole, by renaming;
logs (`*.jsonl`) grow by one whole line per write. A run that was killed at any moment therefore
leaves a directory that can be read, scored, reported and resumed. The layout is documented in
`docs/run-directory.md`; `FORMAT` is its version.
"""

import contextlib
import functools
import glob
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from attacks.observation import Observation, Reconstruction, Tensors
from fedsim.errors import ConfigError, Damaged
from fedsim.files import (
    Record,
    append_line,
    file_in,
    finite,
    parse_lines,
    read_document,
    read_json,
    read_lines,
    read_tensors,
    read_toml,
    reading,
    replace_bytes,
    replace_json,
    replace_tensors,
)
from fedsim.observation_files import Heard, read_observation, write_observation
from fedsim.reconstruction_files import read_reconstruction, write_reconstruction

FORMAT = 1
"""Version of the layout; a reader refuses a newer one."""

OLD_PART_S = 60.0
"""Seconds after which nobody writes to a partial file any more."""

EVERYBODY = "all"
"""The sender of a mean over clients."""


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
            Damaged: It holds links, devices or the like, or its environment cannot be read.
        """
        if not (path / "config.toml").is_file():
            raise ConfigError(f"'{path}' is not a run directory: it has no config.toml")
        _check_plain_tree(path)
        environment = path / "environment.json"
        found = read_json(environment).get("format", FORMAT) if environment.is_file() else FORMAT
        if not isinstance(found, int):
            raise Damaged(f"{environment}: 'format' must be a whole number, got {found!r}")
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
    def data(self) -> Path:
        """What the numbers of inputs and labels stand for."""
        return self.root / "data.json"

    @property
    def topology(self) -> Path:
        """Who may speak to whom, in a run without a server."""
        return self.root / "topology.json"

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
    def views(self) -> Path:
        """What the adversary heard between peers, raw."""
        return self.root / "views"

    @property
    def memory(self) -> Path:
        """What clients' defenses remember from round to round; nobody else may look."""
        return self.root / "memory"

    def config_text(self) -> str:
        """Return the resolved experiment as it was written.

        Raises:
            Damaged: It is no text, too large, or a link to another file.
        """
        return read_document(self.config)

    def read_config(self) -> Record:
        """Return the resolved experiment, unchecked: as the file has it.

        Raises:
            Damaged: It is no TOML, too large, or a link to another file.
        """
        return read_toml(self.config)

    # logs

    def append_round(self, record: Record) -> None:
        """Add the record of one round."""
        append_line(self.root / "rounds.jsonl", record)

    def rounds(self) -> list[Record]:
        """Return the rounds so far, in order, one each."""
        with reading(self.root / "rounds.jsonl"):
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
        records = parse_lines(whole + newline, f"{path}, after {place} bytes")
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
        with reading(self.root / "scores.jsonl"):
            newest = {
                (score["observation"], score["attack"]): score for score in self._log("scores")
            }
            return sorted(newest.values(), key=lambda score: (score["round"], score["observation"]))

    def rewrite_log(self, name: str, records: list[Record]) -> None:
        """Replace the log `name` ("rounds", "scores", "events") by these records."""
        text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        replace_bytes(self.root / f"{name}.jsonl", text.encode())

    def repair(self) -> None:
        """Cut off what a kill left half written at the end of a log, and forget partial files.

        A tap, or attackers elsewhere, may be writing beside us: young partial files may be theirs.
        """
        for name in ("rounds", "scores", "events"):
            path = self.root / f"{name}.jsonl"
            if path.exists() and not path.read_bytes().endswith(b"\n"):
                self.rewrite_log(name, self._log(name))
        self.forget_partial(before=time.time() - OLD_PART_S)

    def forget_partial(self, *, before: float) -> None:
        """Remove partial files to which nobody has written since `before`, seconds of the epoch."""
        for part in self.root.rglob(".*.part"):
            with contextlib.suppress(FileNotFoundError):  # it has just become whole
                if part.lstat().st_mtime < before:
                    part.unlink()

    def forget_reconstructions(self) -> None:
        """Remove every reconstruction and score, so that the attacks run anew."""
        for path in (self.root / "reconstructions").iterdir():
            path.unlink()
        (self.root / "scores.jsonl").unlink(missing_ok=True)

    def _log(self, name: str) -> list[Record]:
        return read_lines(self.root / f"{name}.jsonl")

    # observations

    def write_observation(
        self, seen: Observation, *, members: Sequence[str] = (), told_after: int | None = None
    ) -> str:
        """Write what was heard of one message; return its id.

        Weights in force are stored once, under their digest, however many messages share them.

        Args:
            seen: What was heard.
            members: Whose updates are in it, if it is a mean over clients.
            told_after: Between peers, the round after which it could be told.
        """
        folder = self.root / "observations"
        return write_observation(folder, seen, members=members, told_after=told_after)

    def observation_records(self) -> list[Record]:
        """Return the records of all observations that are wholly there, in order of id."""
        folder = self.root / "observations"
        return [_named(read_json(path), path, "id") for path in sorted(folder.glob("*.json"))]

    def observations_of(self, sender: str, *, last: int) -> list[str]:
        """Return the ids of what was heard of a sender up to the round `last`, in order."""
        folder = self.root / "observations"
        file_in(folder, sender)  # a name, and nothing that leads elsewhere
        pattern = f"round-*-{glob.escape(sender)}-to-*.json"
        ids = sorted(path.stem for path in folder.glob(pattern))
        return [one for one in ids if int(one.split("-")[1]) <= last]

    def heard_of(self, sender: str, *, last: int) -> Heard:
        """Return what was heard of a sender up to the round `last`, in order."""
        read = functools.partial(read_observation, self.root / "observations")
        return Heard(self.observations_of(sender, last=last), read)

    def members(self, server_round: int) -> list[str]:
        """Return the clients whose updates are in the mean heard of a round, in order."""
        path = self.root / "observations" / f"round-{server_round:05d}-{EVERYBODY}-to-server.json"
        if not path.is_file():
            return []
        with reading(path):
            return list(read_json(path)["members"])

    def read_observation(self, identity: str) -> Observation:
        """Read what was heard of one message.

        Raises:
            ConfigError: There is no such observation.
        """
        folder = self.root / "observations"
        if not file_in(folder, f"{identity}.json").is_file():
            raise ConfigError(f"run '{self.name}' has no observation '{identity}'")
        return read_observation(folder, identity)

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
        path = file_in(self.root / "oracle", f"round-{server_round:05d}-{client}.json")
        if not path.is_file():
            return None
        with reading(path):
            return torch.tensor(read_json(path)["labels"], dtype=torch.int64)

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
        path = file_in(self.root / "alarms", f"round-{server_round:05d}-{client}.json")
        if not path.is_file():
            return []
        with reading(path):
            return list(read_json(path)["alarms"])

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
        write_reconstruction(
            self.root / "reconstructions",
            observation,
            attack,
            guess,
            reason=reason,
            seconds=seconds,
        )

    def reconstruction_records(self) -> list[Record]:
        """Return the records of all reconstructions that are wholly there, in order of name."""
        folder = self.root / "reconstructions"
        return [
            _named(read_json(path), path, "observation", "attack")
            for path in sorted(folder.glob("*.json"))
        ]

    def read_reconstruction(self, record: Record) -> Reconstruction:
        """Read the guess behind a reconstruction's record; a failed one has no inputs."""
        return read_reconstruction(self.root / "reconstructions", record)

    def reconstructions(self) -> Iterator[tuple[Record, Reconstruction]]:
        """Yield every reconstruction with its record."""
        for record in self.reconstruction_records():
            yield record, self.read_reconstruction(record)


def _named(record: Record, path: Path, *keys: str) -> Record:
    """Return a record if it is called as its file is.

    Raises:
        Damaged: It is not: it would be taken for another.
    """
    told = "--".join(str(record.get(key)) for key in keys)
    if told != path.stem:
        raise Damaged(f"{path}: it says that it is '{told[:80]}'")
    return record


def _check_plain_tree(root: Path) -> None:
    """Refuse a folder in which anything is neither a plain file nor a folder.

    Raises:
        Damaged: There is a symbolic link, a device, a socket or a pipe.
    """
    waiting = [os.fspath(root)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif not entry.is_file(follow_symlinks=False):
                    raise Damaged(
                        f"{entry.path}: neither a plain file nor a folder; a run directory holds "
                        "no links, since they may lead anywhere"
                    )
