"""Images of a run as PNG files: originals, films of how guesses came about, and guesses so far.

Which file is read is told by names and numbers that are checked; links that lead out of the run
directory are not followed.
"""

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedsim.records import EVERYBODY, RunDirectory
from fedsim.report.pictures import picture, png
from fedsim.stages.pairing import pair
from fedsim.truth import unseal
from fedsim.watch.cards import MOST_STEPS
from fedsim.watch.values import name

KEPT_BYTES = 32 * 2**20
"""PNG files that are kept in memory."""
KEPT_BATCHES = 8
"""Private batches that are kept in memory."""
MOST_SIDE = 1_024
"""Of an image that is shown, in pixels; larger ones are not."""


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
        guesses = _tensor(path, observation)
        if guesses.dim() != 4 or not len(guesses):
            raise MissingPicture
        if len(guesses) == 1:
            _check(guesses[0])
            return png(picture(guesses[0]))
        private = self._batch(server_round, victim)
        if private.shape[1:] != guesses.shape[1:]:
            raise MissingPicture
        found = pair(guesses.clamp(0, 1).nan_to_num(0.0), private).get(image)
        if found is None:
            raise MissingPicture
        return png(picture(guesses[found]))

    def _private(self, server_round: int, victim: str, image: int) -> Tensor:
        batch = self._batch(server_round, victim)
        if image >= len(batch):
            raise MissingPicture
        _check(batch[image])
        return batch[image]

    def _batch(self, server_round: int, victim: str) -> Tensor:
        key = (server_round, victim)
        with self.lock:
            if key in self.batches:
                self.batches.move_to_end(key)
                return self.batches[key]
        if victim != EVERYBODY:
            self._path("truth", f"round-{server_round:05d}-{victim}")
        try:
            sealed = unseal(RunDirectory(self.root), server_round, victim)
        except (OSError, SafetensorError, LookupError, ValueError, TypeError) as error:
            raise MissingPicture from error
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


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise MissingPicture from error


def _film(path: Path, guess: int) -> bytes:
    frames = []
    sys.audit("open", str(path), "rb", 0)
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            looks = sorted(one for one in names if one.startswith("snapshot/"))[:MOST_STEPS]
            for one in [*looks, "inputs"]:
                part = file.get_slice(one)
                if guess >= part.get_shape()[0]:
                    raise MissingPicture
                frames.append(part[guess : guess + 1][0])
    except (OSError, SafetensorError, LookupError) as error:
        raise MissingPicture from error
    if len({tuple(frame.shape) for frame in frames}) != 1:
        raise MissingPicture
    _check(frames[0])
    return png(picture(torch.cat([frame.float().cpu() for frame in frames], dim=-1)))


def _tensor(path: Path, key: str) -> Tensor:
    sys.audit("open", str(path), "rb", 0)
    try:
        with safe_open(path, framework="pt") as file:
            found: Tensor = file.get_tensor(key)
    except (OSError, SafetensorError, LookupError) as error:
        raise MissingPicture from error
    return found


def _check(image: Tensor) -> None:
    if image.dim() != 3 or not image.numel() or max(image.shape[-2:]) > MOST_SIDE:
        raise MissingPicture
