"""Labeled Faces in the Wild, from a folder of people."""

from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from fedsim.data.images import Array, ImageData, Limit, image_data, split
from fedsim.errors import DataMissing

FOLDERS = ("lfw", "lfw_funneled", "lfw-deepfunneled")


def lfw(
    *,
    root: Path,
    image_size: Annotated[int, Field(ge=8, le=250)] = 32,
    min_images: Annotated[int, Field(ge=2)] = 2,
    limit: Limit = None,
) -> ImageData:
    """LFW: faces of public figures, resized, colour, one class per person (Huang et al., 2007).

    Photographs are resized so that the shorter side fits and cropped to their centre. The source
    has no split: a fixed, stratified fifth is the test split (or as many images as there are
    people, if that is more).

    Args:
        root: Holds `lfw/` (or `lfw_funneled/`, `lfw-deepfunneled/`) with one folder per person.
        image_size: Height and width after resizing.
        min_images: Leave out people with fewer images; the original has 1,680 people with two.
        limit: Keep only so many examples of each split, the first ones.

    Raises:
        DataMissing: The folder is not there, or holds nobody with enough images.
    """
    import torchvision.transforms.v2.functional as transforms
    from torchvision.datasets.folder import default_loader

    folder = next((root / name for name in FOLDERS if (root / name).is_dir()), None)
    if folder is None:
        raise DataMissing(
            f"lfw: expected '{root / FOLDERS[0]}' with one folder of photographs per person; "
            "place it there, or set data.root to the folder that holds 'lfw'"
        )
    people = {
        person.name: photographs
        for person in sorted(folder.iterdir())
        if len(photographs := sorted(person.glob("*.jpg"))) >= min_images
    }
    if len(people) < 2:
        raise DataMissing(
            f"lfw: expected people with at least {min_images} photographs in '{folder}', found "
            f"{len(people)}; place more there, or lower data.options.min_images"
        )

    def small(file: Path) -> Array:
        resized = transforms.resize(default_loader(file), image_size, antialias=True)
        cropped = transforms.center_crop(resized, image_size)
        return np.asarray(cropped).transpose(2, 0, 1)

    images = np.stack([small(file) for photographs in people.values() for file in photographs])
    labels = np.repeat(np.arange(len(people)), [len(some) for some in people.values()])
    train, test = split(images, labels)
    return image_data("lfw", train, test, class_names=list(people), limit=limit)
