"""CIFAR-10 and CIFAR-100, in the published Python format, which is pickle.

Nothing is ever unpickled by pickle's own rules: see `fedsim.data.pickled`. Subsets and other copies
are read, too; a file without its published checksum is named in a warning.
"""

from pathlib import Path
from typing import Any

import numpy as np

from fedsim.data.files import locate, note_unpublished
from fedsim.data.images import Array, ImageData, Limit, image_data
from fedsim.data.pickled import read_pickled_arrays
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
        class_names=_class_names(folder / meta[0], source.meta["key"]),
        limit=limit,
    )


def _class_names(file: Path, key: str) -> list[str]:
    names = read_pickled_arrays(file).get(key)
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise FedsimError(f"{file} holds no names of classes; place the published file there")
    return names


def _read_batches(files: list[Path], label_key: str) -> tuple[Array, Array]:
    batches = [read_pickled_arrays(file) for file in files]
    for file, batch in zip(files, batches, strict=True):
        if not _is_batch(batch.get("data"), batch.get(label_key)):
            raise FedsimError(
                f"{file} is not a batch of images and '{label_key}'; place the published file there"
            )
    images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
    return images, np.concatenate([batch[label_key] for batch in batches])


def _is_batch(images: Any, labels: Any) -> bool:
    return (
        isinstance(images, np.ndarray)
        and images.dtype == np.uint8
        and images.ndim == 2
        and images.shape[1] == 3 * 32 * 32
        and isinstance(labels, list)
        and len(labels) == len(images)
        and all(isinstance(one, int) for one in labels)
    )
