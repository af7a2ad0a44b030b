"""Dividing examples among clients."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.data import PARTITIONERS
from fedsim.data.partition import Indices, Parts, partition
from fedsim.errors import ConfigError

TEN_CLASSES = np.tile(np.arange(10), 60)


def divide(
    name: str, num_clients: int, *, labels: Indices = TEN_CLASSES, seed: int = 0, **options: Any
) -> Sequence[Indices]:
    given = torch.from_numpy(labels)
    return partition(given, name=name, num_clients=num_clients, seed=seed, options=options)


def spread(parts: Sequence[Indices]) -> float:
    """How far the clients' class shares are from the whole's, 0 (iid) to 0.9 (one class each)."""
    shares = [np.bincount(TEN_CLASSES[part], minlength=10) / len(part) for part in parts]
    return float(np.mean([np.abs(share - 0.1).sum() / 2 for share in shares]))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", PARTITIONERS)
def test_no_example_goes_to_two_clients_and_no_client_goes_without(name: str, data: Any) -> None:
    labels = np.array(data.draw(st.lists(st.integers(0, 4), min_size=3, max_size=60)))
    num_clients = data.draw(st.integers(1, 6))
    seed = data.draw(st.integers(0, 2**63 - 1))

    try:
        parts = divide(name, num_clients, labels=labels, seed=seed)
    except ConfigError:
        return  # refused as a whole, never half done

    everything = np.concatenate(parts)
    assert len(parts) == num_clients
    assert min(map(len, parts)) >= 1
    assert len(np.unique(everything)) == len(everything)
    assert set(everything) <= set(range(len(labels)))


@pytest.mark.parametrize("name", PARTITIONERS)
def test_the_seed_decides_the_partition_and_the_global_generator_does_not(name: str) -> None:
    first = divide(name, 4, seed=5)
    np.random.seed(1)  # noqa: NPY002  # the global generator is what must not matter

    again, other = divide(name, 4, seed=5), divide(name, 4, seed=6)

    assert all(map(np.array_equal, first, again))
    assert not all(map(np.array_equal, first, other))


@pytest.mark.parametrize("name", ["iid", "linear", "square", "exponential", "dirichlet", "shard"])
def test_every_example_is_used(name: str) -> None:
    assert sorted(np.concatenate(divide(name, 6))) == list(range(len(TEN_CLASSES)))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("iid", [150, 150, 150, 150]),
        ("linear", [60, 120, 180, 240]),
        ("square", [20, 80, 180, 320]),
    ],
)
def test_sizes_follow_the_name(name: str, sizes: list[int]) -> None:
    assert [len(part) for part in divide(name, 4)] == sizes


def test_iid_is_close_to_the_whole_and_dirichlet_approaches_it_with_its_concentration() -> None:
    narrow = spread(divide("dirichlet", 5, alpha=0.05))
    wide = spread(divide("dirichlet", 5, alpha=1000.0))

    assert spread(divide("iid", 5)) < 0.15  # 120 draws of 10 classes: about 0.08
    assert wide < 0.15
    assert narrow > 0.4


def test_pathological_clients_have_exactly_the_classes_they_were_given() -> None:
    parts = divide("pathological", 10, num_classes_per_partition=3)

    assert {len(np.unique(TEN_CLASSES[part])) for part in parts} == {3}


def test_a_shard_is_a_block_of_one_class_when_it_divides_the_class() -> None:
    parts = divide("shard", 10, num_shards_per_partition=2, shard_size=30)

    assert {len(part) for part in parts} == {60}
    assert max(len(np.unique(TEN_CLASSES[part])) for part in parts) <= 2


def test_a_minimum_size_is_kept() -> None:
    parts = divide("dirichlet", 5, alpha=0.5, min_partition_size=40)

    assert min(map(len, parts)) >= 40


@pytest.mark.parametrize(
    ("name", "num_clients", "options", "message"),
    [
        ("iid", 601, {}, "partition.clients must be at most 600, .* got 601"),
        ("iidd", 2, {}, r"unknown partition 'iidd'; did you mean 'iid'\?"),
        ("iid", 2, {"alpha": 1}, "partition.options: unknown option 'alpha'; there are none"),
        ("dirichlet", 2, {"alpha": 0}, "partition.options.alpha must be greater than 0, got 0"),
        (
            "dirichlet",
            5,
            {"min_partition_size": 121},
            r"partition 'dirichlet' cannot divide 600 examples among 5 clients: .*attempts",
        ),
        (
            "pathological",
            5,
            {"num_classes_per_partition": 11},
            "cannot divide 600 examples .* greater than the number of unique classes",
        ),
        ("exponential", 60, {}, r"cannot divide 600 .* among 60 clients: .*\(partition.clients"),
    ],
)
def test_what_cannot_be_divided_is_refused_with_the_setting_to_change(
    name: str, num_clients: int, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        divide(name, num_clients, **options)


@pytest.mark.parametrize(("examples", "clients"), [(10, 3), (60, 60), (601, 7)])
def test_equal_parts_are_cut_where_flwr_datasets_cuts_them(examples: int, clients: int) -> None:
    import datasets
    from flwr_datasets.partitioner import IidPartitioner

    theirs = IidPartitioner(clients)
    theirs.dataset = datasets.Dataset.from_dict({"index": np.arange(examples)})

    ours = partition(torch.zeros(examples), name="iid", num_clients=clients, seed=0, options={})

    assert ours.sizes.tolist() == [len(theirs.load_partition(one)) for one in range(clients)]
    assert [len(one) for one in ours] == ours.sizes.tolist()


def test_a_part_is_found_by_its_place_as_in_a_list() -> None:
    parts = Parts(np.arange(6), np.array([1, 3, 6]))

    assert [part.tolist() for part in parts] == [[0], [1, 2], [3, 4, 5]]
    assert parts[-1].tolist() == [3, 4, 5]
    assert [part.tolist() for part in parts[1:]] == [[1, 2], [3, 4, 5]]
    with pytest.raises(IndexError):
        parts[3]
