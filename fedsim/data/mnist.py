"""MNIST and Fashion-MNIST, in the idx format."""

import gzip
import shutil
import tempfile
from pathlib import Path
from typing import Any

from fedsim.data.files import locate
from fedsim.data.images import Array, ImageData, Limit, image_data

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
    with tempfile.TemporaryDirectory() as scratch:  # torchvision reads unpacked files only
        for file in files:
            _unpack(folder / file, Path(scratch) / file)
        train, test = source(scratch, train=True), source(scratch, train=False)
    return image_data(name, _arrays(train), _arrays(test), class_names=source.classes, limit=limit)


def _unpack(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if file.is_file():
        target.symlink_to(file.resolve())
        return
    with gzip.open(f"{file}.gz") as packed, target.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked)


def _arrays(source: Any) -> tuple[Array, Array]:
    return source.data.numpy()[:, None], source.targets.numpy()
