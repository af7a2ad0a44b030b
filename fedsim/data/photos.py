"""Patches of photographs that come with scikit-image."""

from typing import Annotated

import numpy as np
from pydantic import Field

from fedsim.data.images import Array, ImageData, Limit, image_data, split

PHOTOGRAPHS = {
    "astronaut": "Eileen Collins, NASA, public domain",
    "chelsea": "a cat, by Stefan van der Walt, CC0",
    "coffee": "a cup of coffee, by Rachel Michetti, CC0",
    "hubble_deep_field": "galaxies, NASA, public domain",
    "rocket": "the launch of DSCOVR, SpaceX, public domain",
}
"""What is shown, by whom, and its licence; all lie inside the scikit-image wheel."""

FLAT = 0.02
"""Patches whose pixels deviate less from their mean than this are left out: empty sky and wall
would score well with any smooth guess."""

MOST_PER_PHOTOGRAPH = 256


def photos(
    *, patch_size: Annotated[int, Field(ge=8, le=128)] = 32, limit: Limit = None
) -> ImageData:
    """Patches of five public-domain photographs, 32x32, colour; embedded, nothing to download.

    Natural pixels for attacks, at any patch size. The labels are artificial: which photograph a
    patch was cut from. So are the clients' data: train and test patches are disjoint neighbours
    in the same photographs, and accuracy says little. A fixed, stratified fifth is the test split.

    Args:
        patch_size: Height and width; patches lie on a grid and do not overlap.
        limit: Keep only so many examples of each split, the first ones.
    """
    import skimage.data

    patches = [_patches(getattr(skimage.data, name)(), patch_size) for name in PHOTOGRAPHS]
    labels = np.repeat(np.arange(len(patches)), [len(some) for some in patches])
    train, test = split(np.concatenate(patches), labels)
    return image_data("photos", train, test, class_names=list(PHOTOGRAPHS), limit=limit)


def _patches(photograph: Array, size: int) -> Array:
    """Cut (H, W, C) bytes into (N, C, size, size), flat patches left out, evenly thinned."""
    rows, columns = photograph.shape[0] // size, photograph.shape[1] // size
    grid = photograph[: rows * size, : columns * size].reshape(rows, size, columns, size, -1)
    patches = grid.transpose(0, 2, 4, 1, 3).reshape(rows * columns, -1, size, size)
    deviation = (patches / 255).std(axis=(2, 3)).mean(axis=1)
    textured = patches[deviation >= FLAT]
    thinned: Array = textured[:: -(-len(textured) // MOST_PER_PHOTOGRAPH)]
    return thinned
