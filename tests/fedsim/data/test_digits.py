"""The embedded digits."""

import numpy as np
import torch

from fedsim.data.digits import digits


def test_all_1797_digits_are_there_in_a_fixed_stratified_split() -> None:
    data = digits()

    assert data.train_inputs.shape == (1438, 1, 8, 8)
    assert data.test_inputs.shape == (359, 1, 8, 8)
    assert data.num_classes == 10
    counts = torch.bincount(data.test_labels)
    assert counts.max() - counts.min() <= 2  # the classes have 174 to 183 images
    assert torch.equal(digits().train_inputs, data.train_inputs)


def test_the_seventeen_grey_levels_span_the_range() -> None:
    data = digits()

    assert np.unique(data.train_inputs).tolist() == [level / 16 for level in range(17)]
