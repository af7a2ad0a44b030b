"""The embedded photographs."""

import numpy as np
import skimage.data
import torch

from fedsim.data.photos import FLAT, photos


def test_every_patch_is_cut_from_the_photograph_that_its_label_names() -> None:
    data = photos()

    photograph = np.asarray(skimage.data.coffee())  # type: ignore[no-untyped-call]
    coffee = torch.from_numpy(photograph).permute(2, 0, 1).float() / 255
    grid = coffee[:, : 12 * 32, : 18 * 32].unfold(1, 32, 32).unfold(2, 32, 32)
    known = {patch.numpy().tobytes() for patch in grid.flatten(1, 2).unbind(1)}
    label = data.class_names.index("coffee")
    patches = data.train_inputs[data.train_labels == label]
    assert len(patches) > 100
    assert all(patch.contiguous().numpy().tobytes() in known for patch in patches)


def test_no_patch_is_flat_and_none_is_in_both_splits() -> None:
    data = photos()

    both = torch.cat([data.train_inputs, data.test_inputs])
    deviation = both.std(dim=(2, 3), correction=0).mean(dim=1)
    assert deviation.min() >= FLAT - 1e-6  # float32 here, float64 there
    assert len(np.unique(both.numpy().reshape(len(both), -1), axis=0)) == len(both)


def test_patches_come_in_other_sizes_too() -> None:
    data = photos(patch_size=64, limit=10)

    assert data.train_inputs.shape == (10, 3, 64, 64)
    assert data.num_classes == 5
