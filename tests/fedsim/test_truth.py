"""The sealed truth."""

from pathlib import Path

import torch

from fedsim.records import RunDirectory
from fedsim.truth import seal, unseal


def test_what_was_sealed_is_what_is_unsealed_and_nobody_elses(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "tiny")
    inputs, labels = torch.rand(2, 1, 8, 8), torch.tensor([3, 9])

    seal(run, 4, "client-1", inputs, labels)

    opened = unseal(run, 4, "client-1")
    assert opened is not None
    assert torch.equal(opened[0], inputs)
    assert torch.equal(opened[1], labels)
    assert unseal(run, 4, "client-11") is None
    assert unseal(run, 5, "client-1") is None
