"""Tensors of a run, read from files that may be a stranger's, and what is made of them.

Which file is read is told by names and numbers that are checked; links that lead out of the run
directory are not followed.
"""

import contextlib
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedsim.errors import FedsimError
from fedsim.files import check_plain
from fedsim.progress import MOST_NUMBERS
from fedsim.records import EVERYBODY, RunDirectory
from fedsim.tensor_files import LARGEST_FILE, check_tensor_file
from fedsim.watch.cards import MOST_STEPS
from fedsim.watch.values import name

KEPT_BYTES = 32 * 2**20
"""Answers that are kept in memory."""
KEPT_BATCHES = 8
"""Private batches that are kept in memory."""
MOST_IN_BATCHES = 2**25
"""Numbers of all of them; also of one: a larger one is not read."""
MOST_IN_FILM = 2**24
"""Numbers of all looks at one guess: of more, none is read."""
MOST_PRIVATE = 1_024
"""Examples of a private batch with which guesses so far are paired."""

Check = Callable[[str, Sequence[int]], None]
"""Raises `Missing` if a tensor of this type and shape, without its first size, is not shown."""


class Missing(Exception):
    """There is no such thing to show."""


class RunTensors:
    """Reads the tensors of one run, and keeps what was made of them; for several threads.

    Args:
        root: The run directory.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made: OrderedDict[tuple[object, ...], bytes] = OrderedDict()
        self.batches: OrderedDict[tuple[int, str], tuple[Tensor, Tensor]] = OrderedDict()
        self.lock = threading.Lock()

    def batch(self, server_round: int, victim: str) -> tuple[Tensor, Tensor]:
        """Return a private batch: inputs, of any shape, and labels.

        Raises:
            Missing: It is not there.
        """
        key = (server_round, victim)
        with self.lock:
            if key in self.batches:
                self.batches.move_to_end(key)
                return self.batches[key]
        with or_missing():
            members = [victim]
            if victim == EVERYBODY:
                members = RunDirectory(self.root).members(server_round)
            sealed = self._sealed(server_round, members)
        with self.lock:
            self.batches[key] = sealed
            while len(self.batches) > KEPT_BATCHES or self._numbers() > MOST_IN_BATCHES:
                self.batches.popitem(last=False)
        return sealed

    def _numbers(self) -> int:
        return sum(inputs.numel() + labels.numel() for inputs, labels in self.batches.values())

    def _sealed(self, server_round: int, members: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Read private batches as one; a file that promises too much is not read."""
        found, room = [], MOST_IN_BATCHES
        for one in members:
            with opened(self.path("truth", f"round-{server_round:05d}-{one}")) as file:
                shapes = [file.get_slice(part).get_shape() for part in ("inputs", "labels")]
                room -= sum(map(prod, shapes))
                if room < 0 or not shapes[0]:
                    raise Missing
                found.append((file.get_tensor("inputs"), file.get_tensor("labels")))
        inputs, labels = zip(*found, strict=True)
        return torch.cat(inputs), torch.cat(labels)

    def film(self, observation: str, attack: str) -> Path:
        """Return the file of a reconstruction.

        Raises:
            Missing: It is not there.
        """
        return self.path("reconstructions", f"{observation}--{attack}")

    def guesses(self, worker: str, observation: str, check: Check) -> Tensor:
        """Return the guesses at a batch that a worker has at the moment.

        Raises:
            Missing: There are none, or more than workers show.
        """
        with opened(self.path("progress", worker)) as file:
            part = file.get_slice(observation)
            many, *shape = part.get_shape()
            check(part.get_dtype(), shape)
            if not 1 <= many <= MOST_NUMBERS // prod(shape):
                raise Missing
            found: Tensor = file.get_tensor(observation)
        return found

    def path(self, folder: str, stem: str) -> Path:
        """Return a file of tensors that lies where it seems to."""
        if name(stem) is None and not all(map(name, stem.split("--", 1))):
            raise Missing
        path = self.root / folder / f"{stem}.safetensors"
        with or_missing():  # a name of two that is too long for a file
            inside = self.root.resolve() / folder
            if not path.is_file() or path.resolve() != inside / path.name:
                raise Missing
        return path

    def kept(self, key: tuple[object, ...], make: Callable[[], bytes]) -> bytes:
        """Return what was made before under this key, or make it."""
        with self.lock:
            if key in self.made:
                self.made.move_to_end(key)
                return self.made[key]
        made = make()
        with self.lock:
            self.made[key] = made
            while sum(map(len, self.made.values())) > KEPT_BYTES:
                self.made.popitem(last=False)
        return made


@contextlib.contextmanager
def or_missing() -> Iterator[None]:
    """Whatever is wrong with a file of strangers, there is nothing to show."""
    try:
        yield
    except (
        *(OSError, LookupError, ValueError, TypeError, RuntimeError),
        *(SafetensorError, FedsimError),
    ) as error:
        raise Missing from error


def stamp(path: Path) -> int:
    """Return what changes when a file does."""
    with or_missing():
        return path.stat().st_mtime_ns


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a file of tensors after a look at what it promises."""
    with or_missing():
        check_plain(path, LARGEST_FILE)
        check_tensor_file(path)
        sys.audit("open", str(path), "rb", 0)
        with safe_open(path, framework="pt") as file:
            yield file


def looks(path: Path, guess: int, check: Check) -> list[Tensor]:
    """Return every look that an attack took at one of its guesses, in order, the end at last.

    Args:
        path: Of a reconstruction.
        guess: Its place.
        check: See `Check`.

    Raises:
        Missing: There is no such guess, or its looks hold too much.
    """
    room = MOST_IN_FILM
    with opened(path) as file:
        names = set(file.keys())
        taken = sorted(one for one in names if one.startswith("snapshot/"))[:MOST_STEPS]
        parts = [file.get_slice(one) for one in [*taken, "inputs"]]
        for part in parts:  # before anything is read: what is promised may take any room
            many, *shape = part.get_shape()
            check(part.get_dtype(), shape)
            room -= prod(shape)
            if guess >= many or room < 0:
                raise Missing
        return [part[guess : guess + 1][0] for part in parts]
