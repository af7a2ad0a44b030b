"""Images of a run as PNG files: originals, films of how guesses came about, and guesses so far.

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
from fedsim.report.pictures import picture, png
from fedsim.stages.pairing import pair
from fedsim.tensor_files import LARGEST_FILE, check_tensor_file
from fedsim.truth import unseal
from fedsim.watch.cards import MOST_STEPS
from fedsim.watch.values import name

KEPT_BYTES = 32 * 2**20
"""PNG files that are kept in memory."""
KEPT_BATCHES = 8
"""Private batches that are kept in memory."""
MOST_SIDE = 1_024
"""Of an image that is shown, in pixels; larger ones are not."""
MOST_CHANNELS = 4


class MissingPicture(Exception):
    """There is no such picture."""


class Pictures:
    """Makes and keeps the pictures of one run; safe to use from several threads.

    Args:
        root: The run directory.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: OrderedDict[tuple[object, ...], bytes] = OrderedDict()
        self.batches: OrderedDict[tuple[int, str], Tensor] = OrderedDict()
        self.lock = threading.Lock()

    def original(self, server_round: int, victim: str, image: int) -> bytes:
        """Return a private image.

        Raises:
            MissingPicture: It is not there.
        """
        return png(picture(self._private(server_round, victim, image)))

    def film(self, observation: str, attack: str, guess: int) -> bytes:
        """Return every look that an attack took at one of its guesses, side by side, in order.

        The last one is the guess that it ended with.

        Raises:
            MissingPicture: There is none.
        """
        path = self._path("reconstructions", f"{observation}--{attack}")
        return self._kept(
            ("film", observation, attack, guess, _stamp(path)), lambda: _film(path, guess)
        )

    def so_far(
        self, worker: str, observation: str, image: int, server_round: int, victim: str
    ) -> bytes:
        """Return the guess at one private image that a worker has at the moment.

        Of a batch, guesses are paired with the private images, as scoring does.

        Raises:
            MissingPicture: There is none.
        """
        path = self._path("progress", worker)
        guesses = _guesses(path, observation)
        if len(guesses) == 1:
            return png(picture(guesses[0]))
        private = self._batch(server_round, victim)
        if private.shape[1:] != guesses.shape[1:]:
            raise MissingPicture
        with _or_missing():
            found = pair(guesses.clamp(0, 1).nan_to_num(0.0), private.float()).get(image)
        if found is None:
            raise MissingPicture
        return png(picture(guesses[found]))

    def _private(self, server_round: int, victim: str, image: int) -> Tensor:
        batch = self._batch(server_round, victim)
        if image >= len(batch):
            raise MissingPicture
        _check(batch.shape[1:])
        return batch[image]

    def _batch(self, server_round: int, victim: str) -> Tensor:
        key = (server_round, victim)
        with self.lock:
            if key in self.batches:
                self.batches.move_to_end(key)
                return self.batches[key]
        if victim != EVERYBODY:
            self._path("truth", f"round-{server_round:05d}-{victim}")
        with _or_missing():
            sealed = unseal(RunDirectory(self.root), server_round, victim)
        if sealed is None or sealed[0].dim() != 4:
            raise MissingPicture
        with self.lock:
            self.batches[key] = sealed[0]
            while len(self.batches) > KEPT_BATCHES:
                self.batches.popitem(last=False)
        return sealed[0]

    def _path(self, folder: str, stem: str) -> Path:
        """Return a file of tensors that lies where it seems to."""
        if name(stem) is None and not all(map(name, stem.split("--", 1))):
            raise MissingPicture
        path = self.root / folder / f"{stem}.safetensors"
        with _or_missing():  # a name of two that is too long for a file
            inside = self.root.resolve() / folder
            if not path.is_file() or path.resolve() != inside / path.name:
                raise MissingPicture
        return path

    def _kept(self, key: tuple[object, ...], make: Callable[[], bytes]) -> bytes:
        with self.lock:
            if key in self.files:
                self.files.move_to_end(key)
                return self.files[key]
        made = make()
        with self.lock:
            self.files[key] = made
            while sum(map(len, self.files.values())) > KEPT_BYTES:
                self.files.popitem(last=False)
        return made


@contextlib.contextmanager
def _or_missing() -> Iterator[None]:
    """Whatever is wrong with a file of strangers, there is no picture."""
    try:
        yield
    except (
        *(OSError, LookupError, ValueError, TypeError, RuntimeError),
        *(SafetensorError, FedsimError),
    ) as error:
        raise MissingPicture from error


def _stamp(path: Path) -> int:
    with _or_missing():
        return path.stat().st_mtime_ns


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    with _or_missing():
        check_plain(path, LARGEST_FILE)
        check_tensor_file(path)
        sys.audit("open", str(path), "rb", 0)
        with safe_open(path, framework="pt") as file:
            yield file


def _film(path: Path, guess: int) -> bytes:
    frames = []
    with _opened(path) as file:
        names = set(file.keys())
        looks = sorted(one for one in names if one.startswith("snapshot/"))[:MOST_STEPS]
        for one in [*looks, "inputs"]:
            part = file.get_slice(one)
            many, *shape = part.get_shape()
            _check(shape)
            if guess >= many:
                raise MissingPicture
            frames.append(part[guess : guess + 1][0].float())
        return png(picture(torch.cat(frames, dim=-1)))


def _guesses(path: Path, key: str) -> Tensor:
    with _opened(path) as file:
        many, *shape = file.get_slice(key).get_shape()
        _check(shape)
        if not 1 <= many <= MOST_NUMBERS // prod(shape):
            raise MissingPicture
        found: Tensor = file.get_tensor(key).float()
    return found


def _check(shape: Sequence[int]) -> None:
    """Refuse what is no image: channels, height, width."""
    if len(shape) != 3 or not 1 <= shape[0] <= MOST_CHANNELS:
        raise MissingPicture
    if not all(1 <= side <= MOST_SIDE for side in shape[1:]):
        raise MissingPicture
