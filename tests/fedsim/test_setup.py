"""From an experiment to the task and the shares."""

import pytest
import torch

from fedsim.config import Experiment, parse_experiment
from fedsim.errors import ConfigError
from fedsim.setup import most_distinct, most_local_steps, shares_of, task_of


def experiment(text: str = "") -> Experiment:
    return parse_experiment(f'name = "tiny"\n[partition]\nclients = 4\n{text}')


def test_the_shares_divide_the_training_examples() -> None:
    tiny = experiment()
    task = task_of(tiny)

    shares = shares_of(tiny, task)

    assert len(shares) == 4
    assert all(share.dtype == torch.int64 for share in shares)
    everything = torch.cat(list(shares))
    assert torch.equal(everything.sort().values, torch.arange(len(task.data.train_labels)))
    assert all(torch.equal(a, b) for a, b in zip(shares, shares_of(tiny, task), strict=True))


def test_a_batch_larger_than_the_smallest_share_is_refused_with_a_way_out() -> None:
    tiny = experiment("[training]\nbatch_size = 2000")

    said = (
        r"^training\.batch_size must be at most \d+, the number of examples of client \d, "
        r"got 2000; use a smaller batch, fewer clients"
    )
    with pytest.raises(ConfigError, match=said):
        shares_of(tiny, task_of(tiny))


def test_a_batch_as_large_as_the_smallest_share_is_accepted() -> None:
    tiny = experiment()
    task = task_of(tiny)
    smallest = min(len(share) for share in shares_of(tiny, task))

    shares_of(experiment(f"[training]\nbatch_size = {smallest}"), task)


def test_the_most_local_steps_are_those_of_the_largest_share() -> None:
    tiny = experiment('[training]\nalgorithm = "fedavg"\nbatch_size = 2')

    assert most_local_steps(tiny, [torch.arange(3), torch.arange(7)]) == 4
    assert most_local_steps(experiment(), [torch.arange(3), torch.arange(7)]) == 1


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ("", 2),
        ('algorithm = "fedavg"', 7),
        ('algorithm = "fedavg"\nmax_local_steps = 3', 6),
        ('algorithm = "fedavg"\nmax_local_steps = 9\nlocal_epochs = 5', 7),
    ],
)
def test_the_most_distinct_examples_are_those_of_the_largest_share(
    settings: str, most: int
) -> None:
    tiny = experiment(f"[training]\nbatch_size = 2\n{settings}")

    assert most_distinct(tiny, [torch.arange(3), torch.arange(7)]) == most


def test_names_that_stand_for_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="'dlg-lenet'"):
        task_of(experiment('[model]\nname = "dlg-lent"'))
    with pytest.raises(ConfigError, match="'digits'"):
        task_of(experiment('[data]\nname = "digit"'))
