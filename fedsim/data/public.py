"""What is public of the data: examples of the same kind that no client holds."""

import torch
from torch import Tensor

from fedsim.data.kinds import TaskData
from fedsim.data.text import TextData, sentences
from fedsim.errors import ConfigError

USUAL = 100
"""Examples, where an experiment names no number."""


def public_sample(data: TaskData, size: int | None, rng: torch.Generator) -> Tensor:
    """Return `size` test inputs, drawn without replacement: the adversary's public sample.

    No client holds them. Evaluation uses the whole test split all the same: nothing is trained on
    the sample, and accuracy must not depend on what an adversary knows.

    Args:
        data: Where to draw from.
        size: Number of examples; None for `USUAL`, or all where there are fewer.
        rng: A CPU generator.

    Returns:
        Shape (size, C, H, W), pixels in [0, 1]; or as inputs of other kinds are.

    Raises:
        ConfigError: The test split is smaller than `size`.
    """
    available = len(data.test_inputs)
    if size is None:
        size = min(USUAL, available)
    if size > available:
        raise ConfigError(
            f"adversary.public_sample must be at most {available}, the size of the test split of "
            f"'{data.name}', got {size}"
        )
    chosen = torch.randperm(available, generator=rng)[:size]
    if isinstance(data, TextData):
        return sentences(data.test_inputs[chosen], data.test_labels[chosen], data.tokens)
    return data.test_inputs[chosen]
