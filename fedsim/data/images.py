"""What every image data set is once it is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from fedsim.data.kinds import Modality
from fedsim.errors import FedsimError

Array = npt.NDArray[Any]
Limit = Annotated[int, Field(ge=1)] | None
"""The option `limit` of every data set."""

SPLIT_SEED = 0
"""One test split for everybody: where the source has none, it never depends on the experiment."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageData:
    """Labelled images, in memory on the CPU.

    Attributes:
        name: As experiments write it.
        train_inputs: Pixels in [0, 1], float32, shape (N, C, H, W); what clients hold.
        train_labels: int64, shape (N,).
        test_inputs: Of images that no client holds, like `train_inputs`.
        test_labels: Like `train_labels`.
        class_names: K names; a label is an index into them.
    """

    modality: ClassVar[Modality] = "image"

    name: str
    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.train_inputs.shape
        return channels, height, width


def image_data(
    name: str,
    train: tuple[Array, Array],
    test: tuple[Array, Array],
    *,
    class_names: Sequence[str],
    highest: int = 255,
    limit: int | None = None,
) -> ImageData:
    """Return the data set made of raw images and labels.

    Args:
        name: As experiments write it.
        train: Images of shape (N, C, H, W), values 0..highest, and labels of shape (N,).
        test: Like `train`.
        class_names: K names.
        highest: The value of a white pixel.
        limit: Keep only so many examples of each split, the first ones.

    Raises:
        FedsimError: A label is not the number of a class.
    """
    for part, (images, labels) in (("training", train), ("test", test)):
        if images.ndim != 4 or labels.shape != images.shape[:1] or not len(labels):
            raise FedsimError(
                f"{name}: the {part} split must have images and a label for each, got "
                f"{images.shape} and {labels.shape}"
            )
        if labels.min() < 0 or labels.max() >= len(class_names):
            raise FedsimError(
                f"{name}: labels of the {part} split must be 0 to {len(class_names) - 1}, "
                f"got {labels.min()} to {labels.max()}; is that split labelled at all?"
            )
    train_inputs, train_labels = _tensors(*train, highest, limit)
    test_inputs, test_labels = _tensors(*test, highest, limit)
    return ImageData(
        name=name,
        train_inputs=train_inputs,
        train_labels=train_labels,
        test_inputs=test_inputs,
        test_labels=test_labels,
        class_names=tuple(class_names),
    )


def _tensors(
    images: Array, labels: Array, highest: int, limit: int | None
) -> tuple[Tensor, Tensor]:
    pixels = np.ascontiguousarray(images[:limit], dtype=np.float32)
    return torch.from_numpy(pixels).div_(highest), torch.tensor(labels[:limit], dtype=torch.int64)


def split(images: Array, labels: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Return (train, test) of a source that has no split, shuffled, classes in proportion.

    A fifth becomes the test split, or as many examples as there are classes where that is more.

    Raises:
        FedsimError: A class has one example alone: it would be on one side.
    """
    from sklearn.model_selection import train_test_split

    classes, counts = np.unique(labels, return_counts=True)
    if len(counts) and counts.min() < 2:
        raise FedsimError(
            "every class must have two examples at least, of which one is for testing; there is "
            f"one of {', '.join(f'class {one}' for one in classes[counts < 2][:5])}"
        )
    num_test = max(len(labels) // 5, len(np.unique(labels)))
    train, test = train_test_split(
        np.arange(len(labels)), test_size=num_test, random_state=SPLIT_SEED, stratify=labels
    )
    return (images[train], labels[train]), (images[test], labels[test])
