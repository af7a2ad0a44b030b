"""CIFAR-10 and CIFAR-100, in the published Python format, which is pickle.

Nothing is ever unpickled from disk by pickle's own rules: the reader here builds numpy arrays
and plain values and refuses everything else, so that a file cannot run code. It also reads
subsets and other copies; a file without its published checksum is named in a warning.
"""

import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fedsim.data.files import locate, note_unpublished
from fedsim.data.images import Array, ImageData, Limit, image_data
from fedsim.errors import FedsimError


def cifar10(*, root: Path, download: bool = False, limit: Limit = None) -> ImageData:
    """CIFAR-10: small photographs, 32x32, colour, 10 classes (Krizhevsky, 2009).

    Args:
        root: Holds `cifar-10-batches-py/`.
        download: Whether it may be downloaded.
        limit: Keep only so many examples of each split, the first ones.

    Raises:
        DataMissing: The files are not there.
        FedsimError: A file is not what it should be.
    """
    from torchvision.datasets import CIFAR10

    return _cifar("cifar10", CIFAR10, "labels", root, download, limit)


def cifar100(*, root: Path, download: bool = False, limit: Limit = None) -> ImageData:
    """CIFAR-100: small photographs, 32x32, colour, 100 classes (Krizhevsky, 2009).

    Args:
        root: Holds `cifar-100-python/`.
        download: Whether it may be downloaded.
        limit: Keep only so many examples of each split, the first ones.

    Raises:
        DataMissing: The files are not there.
        FedsimError: A file is not what it should be.
    """
    from torchvision.datasets import CIFAR100

    return _cifar("cifar100", CIFAR100, "fine_labels", root, download, limit)


def _cifar(
    name: str,
    source: Any,  # a torchvision data set class, asked for file names; torchvision is untyped
    label_key: str,
    root: Path,
    download: bool,
    limit: int | None,
) -> ImageData:
    from torchvision.datasets.utils import download_and_extract_archive

    def fetch(folder: Path) -> None:
        download_and_extract_archive(
            source.url, folder, filename=source.filename, md5=source.tgz_md5
        )

    meta = source.meta["filename"], source.meta["md5"]
    files = dict([*source.train_list, *source.test_list, meta])
    folder = locate(
        name,
        root,
        [f"{source.base_folder}/{file}" for file in files],
        download=fetch if download else None,
    )
    folder = folder / source.base_folder
    for file, md5 in files.items():
        note_unpublished(folder / file, md5)
    return image_data(
        name,
        _read_batches([folder / file for file, _ in source.train_list], label_key),
        _read_batches([folder / file for file, _ in source.test_list], label_key),
        class_names=read_pickled_arrays(folder / meta[0])[source.meta["key"]],
        limit=limit,
    )


def _read_batches(files: list[Path], label_key: str) -> tuple[Array, Array]:
    batches = [read_pickled_arrays(file) for file in files]
    for file, batch in zip(files, batches, strict=True):
        if {"data", label_key} - batch.keys() or len(batch["data"]) != len(batch[label_key]):
            raise FedsimError(
                f"{file} is not a batch of images and '{label_key}'; place the published file there"
            )
    images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
    return images, np.concatenate([batch[label_key] for batch in batches])


_RECONSTRUCT = np.empty(0).__reduce__()[0]  # how numpy itself begins to unpickle an array


class _ArraysOnly(pickle.Unpickler):
    """Builds numpy arrays and plain values; nothing else can be named, so nothing else can run."""

    allowed: ClassVar = {
        ("numpy", "dtype"): np.dtype,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return the object of that name if it is allowed.

        Raises:
            UnpicklingError: It is not.
        """
        if (module_name, global_name) not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")
        return self.allowed[module_name, global_name]


def read_pickled_arrays(file: Path) -> dict[str, Any]:
    """Return the dictionary pickled in `file`, if it holds numpy arrays and plain values alone.

    Raises:
        FedsimError: It holds anything else, or cannot be read.
    """
    try:
        with file.open("rb") as stream:
            content = _ArraysOnly(stream, encoding="latin1").load()
    except Exception as error:  # a broken pickle may raise anything
        raise FedsimError(
            f"{file} is refused: {error}; only numpy arrays and plain values are read from pickle"
        ) from error
    if not isinstance(content, dict):
        raise FedsimError(f"{file} is refused: expected a dictionary, got {type(content).__name__}")
    return content
