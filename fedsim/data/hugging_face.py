"""Any labelled image data set of the Hugging Face hub."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from fedsim.data.images import Array, ImageData, Limit, image_data, split
from fedsim.errors import ConfigError, DataMissing


def hugging_face(
    name: str,
    *,
    root: Path,
    revision: str | None = None,
    subset: str | None = None,
    image_size: Annotated[int, Field(ge=8)] | None = None,
    limit: Limit = None,
) -> ImageData:
    """Any image data set of the Hugging Face hub by its name there, as `hf:ylecun/mnist`.

    The image column and the label column are found by their feature types. Without a test split
    of the source, a fixed, stratified fifth of the training split is the test split.

    Args:
        name: As the hub writes it.
        root: Where the download is kept.
        revision: A tag or commit; pin it for results that must be repeatable.
        subset: The configuration, where the data set has several.
        image_size: Resize and crop to this height and width; needed where sizes differ.
        limit: Keep only so many examples of each split, the first ones.

    Raises:
        DataMissing: The hub cannot be reached, or has no such data set.
        ConfigError: It has no image or label column, or its images differ in size.
    """
    import datasets

    try:
        source = datasets.load_dataset(name, subset, revision=revision, cache_dir=str(root))
    except (OSError, ValueError) as error:  # no network, no such data set, no such configuration
        raise DataMissing(
            f"hf:{name} could not be loaded: {error}; it needs a network unless a copy is already "
            f"in '{root}' (data.root); embedded data sets: digits, photos"
        ) from error
    if "train" not in source:
        raise ConfigError(f"hf:{name} has no split called 'train'; it has {', '.join(source)}")
    image, label = (_column(name, source["train"], kind) for kind in ("Image", "ClassLabel"))
    if "test" in source:
        parts = tuple(
            _arrays(name, _first(source[part], limit), image, label, image_size)
            for part in ("train", "test")
        )
    else:
        parts = split(*_arrays(name, source["train"], image, label, image_size))
    names = source["train"].features[label].names
    return image_data(f"hf:{name}", *parts, class_names=names, limit=limit)


def _column(name: str, part: Any, kind: str) -> str:
    """Return the first column whose feature type is called `kind`."""
    types = {str(column): type(one).__name__ for column, one in part.features.items()}
    for column, one in types.items():
        if one == kind:
            return column
    shown = ", ".join(f"{column} ({one})" for column, one in types.items())
    raise ConfigError(f"hf:{name} has no column of type {kind}; it has {shown}")


def _first(part: Any, limit: int | None) -> Any:
    """Return the part's first examples, so that no image is decoded in vain."""
    return part if limit is None else part.select(range(min(limit, len(part))))


def _arrays(
    name: str, part: Any, image: str, label: str, image_size: int | None
) -> tuple[Array, Array]:
    import torchvision.transforms.v2.functional as transforms

    pictures = part[image][:]
    mode = "L" if pictures[0].mode in ("1", "L", "LA", "I", "I;16") else "RGB"
    images = []
    for picture in pictures:
        shown = picture.convert(mode)
        if image_size is not None:
            shown = transforms.resize(shown, image_size, antialias=True)
            shown = transforms.center_crop(shown, image_size)
        images.append(transforms.pil_to_tensor(shown).numpy())
    if len({one.shape for one in images}) > 1:
        raise ConfigError(f"hf:{name} has images of different sizes; set data.options.image_size")
    return np.stack(images), np.asarray(part[label][:])
