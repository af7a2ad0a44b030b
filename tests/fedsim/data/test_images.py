"""What every image data set is once it is loaded."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.data.images import ImageData, image_data, split
from fedsim.data.public import public_sample
from fedsim.errors import ConfigError, FedsimError


def numbered(num_train: int, num_test: int, limit: int | None = None) -> ImageData:
    """A data set whose images hold their own number in every pixel."""

    def part(start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        numbers = np.arange(start, start + count)
        images = np.broadcast_to(numbers[:, None, None, None], (count, 1, 2, 2)).astype(np.uint8)
        return images, numbers % 2

    return image_data(
        "numbered",
        part(0, num_train),
        part(num_train, num_test),
        class_names=["even", "odd"],
        limit=limit,
    )


def test_pixels_lie_between_black_and_white() -> None:
    data = numbered(200, 56)

    assert data.train_inputs.dtype == torch.float32
    assert data.train_inputs[0].tolist() == [[[0.0, 0.0], [0.0, 0.0]]]
    assert data.test_inputs[-1].tolist() == [[[1.0, 1.0], [1.0, 1.0]]]
    assert data.train_labels.dtype == torch.int64
    assert (data.input_shape, data.num_classes) == ((1, 2, 2), 2)


def test_a_limit_keeps_the_first_of_each_split() -> None:
    whole, part = numbered(20, 10), numbered(20, 10, limit=4)

    assert torch.equal(part.train_inputs, whole.train_inputs[:4])
    assert torch.equal(part.test_labels, whole.test_labels[:4])
    assert part.train_inputs.untyped_storage().nbytes() == 4 * 4 * 4  # no hidden rest


def test_a_split_whose_labels_are_missing_is_refused() -> None:
    images, labels = np.zeros((2, 1, 2, 2), np.uint8), np.array([0, 1])
    unlabelled = np.array([-1, -1])  # what hubs write for a withheld test split

    with pytest.raises(FedsimError, match="labels of the test split must be 0 to 1, got -1 to -1"):
        image_data("x", (images, labels), (images, unlabelled), class_names=["a", "b"])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(2, 12), min_size=2, max_size=5))
def test_a_split_divides_every_class_and_loses_nothing(counts: list[int]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.arange(len(labels))

    (train, train_labels), (test, test_labels) = split(images, labels)

    assert sorted([*train, *test]) == images.tolist()
    assert np.array_equal(labels[train], train_labels)
    assert set(train_labels) == set(range(len(counts)))
    in_proportion = np.array(counts) * len(test) / len(labels)
    assert np.abs(np.bincount(test_labels, minlength=len(counts)) - in_proportion).max() < 1
    again = split(images, labels)
    assert np.array_equal(again[0][0], train)


def test_the_public_sample_holds_test_images_only_each_once(rng: torch.Generator) -> None:
    data = numbered(20, 10)

    sample = public_sample(data, 10, rng)

    numbers = (sample[:, 0, 0, 0] * 255).round().int().tolist()
    assert sorted(numbers) == list(range(20, 30))


def test_a_public_sample_larger_than_the_test_split_is_refused(rng: torch.Generator) -> None:
    with pytest.raises(ConfigError, match=r"adversary.public_sample must be at most 10, .* got 11"):
        public_sample(numbered(20, 10), 11, rng)
