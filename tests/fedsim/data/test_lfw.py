"""Faces from a folder of people."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedsim.data.lfw import lfw
from fedsim.errors import DataMissing

PEOPLE = {"Ada": (200, 0, 0), "Bob": (0, 200, 0), "Eve": (0, 0, 200)}


def write(folder: Path, name: str, color: tuple[int, int, int], count: int) -> None:
    (folder / name).mkdir(parents=True)
    pixels = np.broadcast_to(np.array(color, dtype=np.uint8), (40, 60, 3))
    for number in range(count):
        Image.fromarray(pixels).save(folder / name / f"{name}_{number:04d}.jpg")


def test_everybody_is_a_class_whose_photographs_are_cropped_to_a_square(tmp_path: Path) -> None:
    for name, color in PEOPLE.items():
        write(tmp_path / "lfw", name, color, 5)

    data = lfw(root=tmp_path, image_size=16)

    assert data.class_names == ("Ada", "Bob", "Eve")
    assert data.train_inputs.shape == (12, 3, 16, 16)
    assert sorted(data.test_labels.tolist()) == [0, 1, 2]
    brightest = data.train_inputs.mean(dim=(2, 3)).argmax(dim=1)
    assert brightest.tolist() == data.train_labels.tolist()


def test_people_with_too_few_photographs_are_left_out(tmp_path: Path) -> None:
    for (name, color), count in zip(PEOPLE.items(), (1, 4, 4), strict=True):
        write(tmp_path / "lfw", name, color, count)

    assert lfw(root=tmp_path).class_names == ("Bob", "Eve")


def test_a_missing_or_nearly_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"expected '.*lfw' with one folder .* per person"):
        lfw(root=tmp_path)

    write(tmp_path / "lfw", "Ada", (9, 9, 9), 3)
    with pytest.raises(DataMissing, match=r"people with at least 2 photographs .* found 1"):
        lfw(root=tmp_path)
