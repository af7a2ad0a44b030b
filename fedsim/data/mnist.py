"""MNIST and Fashion-MNIST, in the idx format."""

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.data.files import locate
from fedsim.data.images import Array, ImageData, Limit, image_data
from fedsim.errors import FedsimError

LARGEST = 2**28
"""Bytes of an idx file, unpacked; the largest of these sets has 47 million."""

NAMES = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)


def mnist(*, root: Path, download: bool = False, limit: Limit = None) -> ImageData:
    """MNIST: handwritten digits, 28x28, grey, 10 classes (LeCun et al., 1998).

    Args:
        root: Holds `MNIST/raw/` with the four idx files, as they are or gzipped.
        download: Whether torchvision may download them.
        limit: Keep only so many examples of each split, the first ones.

    Raises:
        DataMissing: The files are not there.
    """
    from torchvision.datasets import MNIST

    return _idx_data("mnist", MNIST, root, download, limit)


def fashion_mnist(*, root: Path, download: bool = False, limit: Limit = None) -> ImageData:
    """Fashion-MNIST: pieces of clothing, 28x28, grey, 10 classes (Xiao et al., 2017).

    Args:
        root: Holds `FashionMNIST/raw/` with the four idx files, as they are or gzipped.
        download: Whether torchvision may download them.
        limit: Keep only so many examples of each split, the first ones.

    Raises:
        DataMissing: The files are not there.
    """
    from torchvision.datasets import FashionMNIST

    return _idx_data("fashion-mnist", FashionMNIST, root, download, limit)


def _idx_data(
    name: str,
    source: Any,  # a torchvision data set class; torchvision is untyped
    root: Path,
    download: bool,
    limit: int | None,
) -> ImageData:
    files = [f"{source.__name__}/raw/{file}" for file in NAMES]
    folder = locate(
        name,
        root,
        files,
        endings=("", ".gz"),
        download=(lambda to: source(to, download=True)) if download else None,
    )
    arrays = [read_idx(folder / file) for file in files]
    for file, array, axes in zip(files, arrays, (3, 1, 3, 1), strict=True):
        if array.ndim != axes:
            raise FedsimError(f"{folder / file}: expected {axes} axes, got {array.ndim}")
    parts = [(images[:, None], labels) for images, labels in (arrays[:2], arrays[2:])]
    return image_data(name, *parts, class_names=source.classes, limit=limit)


def read_idx(file: Path) -> Array:
    """Return the bytes of an idx file, `file` or `file.gz`, in the shape that it tells.

    Raises:
        FedsimError: It is no idx file of bytes, or promises other than it holds.
    """
    packed = Path(f"{file}.gz")
    try:
        if file.is_file():
            with file.open("rb") as stream:
                data = stream.read(LARGEST + 1)
        else:
            with gzip.open(packed) as stream:
                data = stream.read(LARGEST + 1)  # a small file may unpack to a huge one
    except (OSError, EOFError, zlib.error) as error:
        raise FedsimError(f"{file} cannot be read: {error}") from error
    if len(data) > LARGEST:
        raise FedsimError(f"{file} holds more than {LARGEST} bytes, which is none of these sets")
    if len(data) < 4 or data[:3] != b"\0\0\x08" or len(data) < (start := 4 + 4 * data[3]):
        raise FedsimError(f"{file} is no idx file of bytes; place the published file there")
    shape = [int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4)]
    if math.prod(shape) != len(data) - start:
        raise FedsimError(
            f"{file} promises {' x '.join(map(str, shape))} bytes and holds {len(data) - start}; "
            "place the published file there"
        )
    try:
        return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)
    except ValueError as error:
        raise FedsimError(f"{file} is no idx file: {error}") from error
