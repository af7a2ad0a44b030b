"""Divide training examples among clients, by the partitioners of flwr-datasets.

Theirs are the algorithms and most option names; ours are the seed, the shuffle before those that
cut in order, and the guarantee that nobody is left without examples.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, overload

import numpy as np
import numpy.typing as npt
from pydantic import Field
from torch import Tensor

from fedsim.components import build
from fedsim.data import PARTITIONERS
from fedsim.errors import ConfigError
from fedsim.seeds import derive, numpy_stream

if TYPE_CHECKING:  # importing them takes seconds
    from flwr_datasets.partitioner import Partitioner

Indices = npt.NDArray[np.int64]
Positive = Annotated[int, Field(ge=1)]

LABEL = "label"


class Parts(Sequence[Indices]):
    """Parts of one array, one after the other; none is an object before it is asked for.

    Args:
        indices: Of the examples of all parts, (N,).
        ends: Where each part ends, (C,), ascending.
    """

    def __init__(self, indices: Indices, ends: Indices) -> None:
        self.indices = indices
        self.ends = ends

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, place: int) -> Indices: ...
    @overload
    def __getitem__(self, place: slice) -> list[Indices]: ...
    def __getitem__(self, place: int | slice) -> Indices | list[Indices]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        return self.indices[int(self.ends[place - 1]) if place else 0 : int(self.ends[place])]

    @property
    def sizes(self) -> Indices:
        """Examples of each part, (C,)."""
        return np.diff(self.ends, prepend=0)


def partition(
    labels: Tensor, *, name: str, num_clients: int, seed: int, options: Mapping[str, object]
) -> Parts:
    """Return, for each client, the indices of its training examples.

    Every example goes to one client at most; every client gets at least one.

    Args:
        labels: Of the training split, shape (N,), int64.
        name: From `fedsim list partitions`, or the user's own `package.module:Name`: called as
            `factory(num_clients, *, seed, **options)`, returns a flwr-datasets partitioner of
            the column "label".
        num_clients: How many clients there are.
        seed: The same seed gives the same partition.
        options: What the user wrote.

    Raises:
        ConfigError: No such partitioner or option, or somebody would be left without examples.
    """
    if num_clients > len(labels):
        raise ConfigError(
            f"partition.clients must be at most {len(labels)}, the number of training examples, "
            f"got {num_clients}"
        )
    partitioner = build(
        "partition",
        name,
        PARTITIONERS,
        num_clients,
        options=options,
        seed=derive(seed, "partition"),
    )
    order = numpy_stream(seed, "partition", "order").permutation(len(labels))
    if name == "iid":  # cut in equal parts, as flwr-datasets does, at a millisecond per client
        each, more = divmod(len(labels), num_clients)
        sizes = np.full(num_clients, each, dtype=np.int64)
        sizes[:more] += 1
        return Parts(order, np.cumsum(sizes))
    try:
        parts = _assign(partitioner, labels.numpy()[order], num_clients)
    except (ValueError, ZeroDivisionError) as error:  # how flwr-datasets refuses
        raise ConfigError(
            f"partition '{name}' cannot divide {len(labels)} examples among {num_clients} "
            f"clients: {error} (partition.clients, partition.options)"
        ) from error
    for client, part in enumerate(parts):
        if len(part) == 0:
            raise ConfigError(
                f"partition '{name}' leaves client {client} without examples; lower "
                "partition.clients, or change partition.options"
            )
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
    return Parts(order[np.concatenate(parts)], ends)


def _assign(
    partitioner: "Partitioner", labels: npt.NDArray[np.int64], num_clients: int
) -> list[Indices]:
    import datasets

    with warnings.catch_warnings():
        # They warn about retries and unused classes; what must hold is checked by the caller.
        warnings.simplefilter("ignore")
        partitioner.dataset = datasets.Dataset.from_dict(
            {LABEL: labels, "index": np.arange(len(labels))}
        )
        parts = [partitioner.load_partition(client) for client in range(num_clients)]
    return [np.asarray(part.with_format("numpy")["index"][:], dtype=np.int64) for part in parts]


def iid(num_clients: int, *, seed: int) -> "Partitioner":  # noqa: ARG001  # the caller shuffles
    """Everybody draws from the same distribution: shuffled and cut into equal parts."""
    from flwr_datasets.partitioner import IidPartitioner

    return IidPartitioner(num_clients)


def dirichlet(
    num_clients: int,
    *,
    seed: int,
    alpha: Annotated[float, Field(gt=0)] = 0.5,
    min_partition_size: Positive = 1,
    self_balancing: bool = False,
) -> "Partitioner":
    """Each class is divided in shares drawn from a Dirichlet distribution (Yurochkin et al., 2019).

    Args:
        num_clients: How many clients there are.
        seed: Of the shares.
        alpha: Concentration: small is one class per client, large is iid.
        min_partition_size: Drawn again, up to ten times, until everybody has so many examples.
        self_balancing: Give no more to clients that already have their average share.
    """
    from flwr_datasets.partitioner import DirichletPartitioner

    return DirichletPartitioner(
        num_clients,
        LABEL,
        alpha,
        min_partition_size=min_partition_size,
        self_balancing=self_balancing,
        seed=seed,
    )


def shard(
    num_clients: int,
    *,
    seed: int,
    num_shards_per_partition: Positive | None = 2,
    shard_size: Positive | None = None,
    keep_incomplete_shard: bool = False,
) -> "Partitioner":
    """Sorted by class, cut into shards, a few random shards each (McMahan et al., 2017).

    Args:
        num_clients: How many clients there are.
        seed: Of the choice of shards.
        num_shards_per_partition: Shards per client.
        shard_size: Examples per shard; unset means as many as there are for everybody.
        keep_incomplete_shard: Whether the last, smaller shard is used.
    """
    from flwr_datasets.partitioner import ShardPartitioner

    return ShardPartitioner(
        num_clients,
        LABEL,
        num_shards_per_partition,
        shard_size,
        keep_incomplete_shard,
        seed=seed,
    )


def pathological(
    num_clients: int,
    *,
    seed: int,
    num_classes_per_partition: Positive = 2,
    class_assignment_mode: Literal[
        "random", "deterministic", "first-deterministic"
    ] = "first-deterministic",
) -> "Partitioner":
    """A few classes each, and nothing else (Li et al., 2022, arXiv 2102.02079).

    Examples of classes that nobody was assigned are used by nobody.

    Args:
        num_clients: How many clients there are.
        seed: Of the choice of classes.
        num_classes_per_partition: Classes per client.
        class_assignment_mode: `first-deterministic` as in the paper: the first class is the
            client's number modulo the classes, the others are random.
    """
    from flwr_datasets.partitioner import PathologicalPartitioner

    return PathologicalPartitioner(
        num_clients, LABEL, num_classes_per_partition, class_assignment_mode, seed=seed
    )


def linear(num_clients: int, *, seed: int) -> "Partitioner":  # noqa: ARG001  # the caller shuffles
    """Client i gets examples in proportion to i + 1; classes as in the whole."""
    from flwr_datasets.partitioner import LinearPartitioner

    return LinearPartitioner(num_clients)


def square(num_clients: int, *, seed: int) -> "Partitioner":  # noqa: ARG001  # the caller shuffles
    """Client i gets examples in proportion to (i + 1) squared; classes as in the whole."""
    from flwr_datasets.partitioner import SquarePartitioner

    return SquarePartitioner(num_clients)


def exponential(
    num_clients: int,
    *,
    seed: int,  # noqa: ARG001  # the caller shuffles
) -> "Partitioner":
    """Client i gets examples in proportion to e to the power of i + 1; classes as in the whole."""
    from flwr_datasets.partitioner import ExponentialPartitioner

    return ExponentialPartitioner(num_clients)
