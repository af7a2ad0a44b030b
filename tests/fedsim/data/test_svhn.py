"""House numbers in MATLAB format."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from fedsim.data.svhn import svhn
from fedsim.errors import DataMissing

IMAGES = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 40), dtype=np.uint8)
LABELS = np.tile(np.arange(1, 11), 4)[:, None]


def test_images_are_turned_and_ten_stands_for_zero(tmp_path: Path) -> None:
    savemat(tmp_path / "train_32x32.mat", {"X": IMAGES, "y": LABELS})
    savemat(tmp_path / "test_32x32.mat", {"X": IMAGES[..., :10], "y": LABELS[:10]})

    data = svhn(root=tmp_path)

    found = (data.train_inputs[7] * 255).round().numpy()
    assert np.array_equal(found, IMAGES[..., 7].transpose(2, 0, 1))
    assert data.test_labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


def test_without_a_test_file_a_fifth_of_the_training_file_is_the_test_split(tmp_path: Path) -> None:
    (tmp_path / "svhn").mkdir()
    savemat(tmp_path / "svhn" / "train_32x32.mat", {"X": IMAGES, "y": LABELS})

    data = svhn(root=tmp_path)

    assert (len(data.train_inputs), len(data.test_inputs)) == (30, 10)
    assert sorted(data.test_labels.tolist()) == list(range(10))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"svhn: expected train_32x32.mat in"):
        svhn(root=tmp_path)
