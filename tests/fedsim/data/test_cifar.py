"""CIFAR, and the reader that no file can make run code."""

import datetime
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.data.cifar import cifar10, cifar100
from fedsim.data.pickled import read_pickled_arrays
from fedsim.errors import DataMissing, FedsimError

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 3 * 32 * 32), dtype=np.uint8)


class Malicious:
    """Runs a command when pickle loads it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def write(file: Path, content: object, protocol: int = 4) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(content, protocol=protocol))
    return file


def write_cifar10(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    for number in range(1, 6):
        batch = {"data": IMAGES, "labels": [number, 1, 2, 3]}
        write(folder / f"data_batch_{number}", batch)
    write(folder / "test_batch", {"data": IMAGES[:2], "labels": [9, 8]})
    write(folder / "batches.meta", {"label_names": [f"class {label}" for label in range(10)]})


def test_batches_are_joined_in_order(tmp_path: Path) -> None:
    write_cifar10(tmp_path)

    data = cifar10(root=tmp_path)

    assert data.train_inputs.shape == (20, 3, 32, 32)
    found = (data.train_inputs[:4] * 255).round().numpy().reshape(4, -1)
    assert np.array_equal(found, IMAGES)
    assert data.train_labels[::4].tolist() == [1, 2, 3, 4, 5]
    assert data.test_labels.tolist() == [9, 8]
    assert data.class_names[3] == "class 3"


def test_cifar100_has_its_hundred_fine_classes(tmp_path: Path) -> None:
    folder = tmp_path / "cifar100" / "cifar-100-python"
    batch = {"data": IMAGES, "fine_labels": [99, 1, 2, 3], "coarse_labels": [0, 0, 0, 0]}
    write(folder / "train", batch)
    write(folder / "test", batch)
    write(folder / "meta", {"fine_label_names": [str(label) for label in range(100)]})

    data = cifar100(root=tmp_path)

    assert data.num_classes == 100
    assert data.train_labels.tolist() == [99, 1, 2, 3]


def test_a_file_without_its_published_checksum_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_cifar10(tmp_path)

    cifar10(root=tmp_path)

    assert "test_batch is not the published file" in caplog.text


def test_a_pickle_that_would_run_a_command_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    file = write(tmp_path / "bad", {"data": IMAGES, "labels": Malicious(marker)})

    with pytest.raises(FedsimError, match=r"bad is refused: it asks for posix\.system"):
        read_pickled_arrays(file)

    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        {"data": datetime.date(2020, 1, 1)},
        {"data": np.ndarray.tofile},
        {"data": getattr},
        {"data": np.load},
    ],
)
def test_whatever_is_no_array_is_refused(content: object, tmp_path: Path) -> None:
    with pytest.raises(FedsimError, match="is refused: it asks for"):
        read_pickled_arrays(write(tmp_path / "bad", content))


@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_and_plain_values_come_back_as_they_were(protocol: int, tmp_path: Path) -> None:
    content = {"data": IMAGES, "labels": [1, 2], "name": "x", "none": None}

    found = read_pickled_arrays(write(tmp_path / "good", content, protocol))

    assert np.array_equal(found.pop("data"), IMAGES)
    assert found == {"labels": [1, 2], "name": "x", "none": None}


def array_of_shape(shape: bytes) -> bytes:
    """A dictionary of one array of one byte, and instructions that make its shape."""
    return (
        b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01" + shape + b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R\x89U\x01atbs."
    )


@pytest.mark.parametrize(
    ("shape", "good"),
    [
        (b"K\x01\x85", True),
        (b"](K\x01e", False),
        (b"\x8a\x05\x00\x00\x00\x00\x01\x85", False),
        (b"(" + b"K\x01" * 5 + b"t", False),
        (b"\x88\x85", False),
    ],
    ids=["a tuple", "a list", "a long axis", "many axes", "a truth value"],
)
def test_a_shape_is_few_whole_numbers_or_refused(shape: bytes, good: bool, tmp_path: Path) -> None:
    (file := tmp_path / "batch").write_bytes(array_of_shape(shape))

    if good:
        assert read_pickled_arrays(file)["data"].tolist() == [97]
    else:
        with pytest.raises(FedsimError, match="an array of shape"):
            read_pickled_arrays(file)


@pytest.mark.parametrize("name", ["dtype", "ndarray"])
@pytest.mark.parametrize("state", [b"N}U\x01xK\x01s\x86", b"}U\x01xK\x01s"])
def test_no_file_changes_what_it_names(name: str, state: bytes, tmp_path: Path) -> None:
    (file := tmp_path / "batch").write_bytes(
        b"\x80\x02}U\x01acnumpy\n" + name.encode() + b"\n" + state + b"bs."
    )

    with pytest.raises(FedsimError, match="would change what it names"):
        read_pickled_arrays(file)


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    whole = pickle.dumps({"data": np.arange(5), "labels": [1, 2]}, protocol=4)
    file = tmp_path / "short"

    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(FedsimError, match="short is refused"):
            read_pickled_arrays(file)


def test_something_else_than_a_batch_is_refused(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    write(tmp_path / "cifar-10-batches-py" / "test_batch", {"data": IMAGES, "labels": [1]})

    with pytest.raises(FedsimError, match="test_batch is not a batch of images and 'labels'"):
        cifar10(root=tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"cifar-10-batches-py/data_batch_1.*data\.root"):
        cifar10(root=tmp_path)
