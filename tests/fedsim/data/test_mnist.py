"""Data sets in the idx format."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedsim.data.images import ImageData
from fedsim.data.mnist import NAMES, fashion_mnist, mnist
from fedsim.errors import DataMissing

TRAIN = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
TEST = TRAIN[:3]


def idx(values: np.ndarray) -> bytes:
    """Bytes in the idx format: magic, sizes, values."""
    sizes = np.array(values.shape, dtype=">u4").tobytes()
    return bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes()


def write(folder: Path, *, packed: bool) -> None:
    labels = np.arange(6, dtype=np.uint8)
    folder.mkdir(parents=True)
    for name, values in zip(NAMES, (TRAIN, labels, TEST, labels[:3]), strict=True):
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(values)))
        else:
            (folder / name).write_bytes(idx(values))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("source", "folder"),
    [
        (mnist, "MNIST/raw"),
        (mnist, "mnist/MNIST/raw"),
        (fashion_mnist, "fashion_mnist/FashionMNIST/raw"),
    ],
)
def test_idx_files_are_read_gzipped_or_not_and_left_as_they_are(
    source: Callable[..., ImageData], folder: str, packed: bool, tmp_path: Path
) -> None:
    write(tmp_path / folder, packed=packed)
    before = sorted(tmp_path.rglob("*"))

    data = source(root=tmp_path)

    assert np.array_equal((data.train_inputs[:, 0] * 255).round().numpy(), TRAIN)
    assert np.array_equal((data.test_inputs[:, 0] * 255).round().numpy(), TEST)
    assert data.train_labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert data.num_classes == 10
    assert sorted(tmp_path.rglob("*")) == before


def test_missing_files_are_named_with_the_folder_and_the_key_to_set(tmp_path: Path) -> None:
    with pytest.raises(DataMissing) as raised:
        mnist(root=tmp_path)

    message = str(raised.value)
    assert "MNIST/raw/train-images-idx3-ubyte" in message
    assert str(tmp_path) in message
    assert "data.root" in message
    assert "data.options.download = true" in message
