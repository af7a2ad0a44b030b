"""Where a resumed run goes on: the weights after a round, and the strategy's memory.

A Flower strategy keeps its memory (momenta, previous weights) in attributes that are arrays, or
lists, dicts or records of arrays. They are saved by attribute name as plain tensors; a strategy
of the user's own that remembers anything else does not go on with the same bits.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from attacks.observation import Tensors
from fedsim.errors import ConfigError
from fedsim.files import part_of, read_tensors, reading, replace_tensors
from fedsim.records import RunDirectory
from fedsim.wire import to_record, to_tensors


def save(run: RunDirectory, server_round: int, arrays: ArrayRecord, strategy: Strategy) -> None:
    """Write the state after `server_round`; the file appears whole."""
    memory, shapes = _memory(strategy)
    tensors = {f"weights/{name}": tensor for name, tensor in to_tensors(arrays).items()} | memory
    metadata = {"round": str(server_round), "strategy": json.dumps(shapes)}
    # strategies pair arrays by place, and the file has an order of its own
    metadata["order"] = json.dumps(list(tensors))
    replace_tensors(run.checkpoint, tensors, metadata)


def restore(run: RunDirectory, strategy: Strategy) -> tuple[int, ArrayRecord] | None:
    """Give `strategy` its memory back; return the last round and the weights after it.

    Returns None if the run has no checkpoint.

    Raises:
        ConfigError: The checkpoint is of another strategy.
        Damaged: The file is not as `save` wrote it.
    """
    if not run.checkpoint.is_file():
        return None
    stored, metadata = read_tensors(run.checkpoint)
    with reading(run.checkpoint):
        return _restored(run, strategy, stored, metadata)


def _restored(
    run: RunDirectory, strategy: Strategy, stored: Tensors, metadata: Mapping[str, str]
) -> tuple[int, ArrayRecord]:
    tensors = {name: stored[name] for name in json.loads(metadata["order"])}
    shapes: dict[str, str | list[str]] = json.loads(metadata["strategy"])
    for attribute, shape in shapes.items():
        *path, last = attribute.split(".")
        owner: object = strategy
        for step in path:  # into what the strategy is wrapped around
            owner = vars(owner).get(step)
        if owner is None or last not in vars(owner):  # never of its class, whatever a file says
            raise ConfigError(
                f"run '{run.name}' was made with another strategy: its checkpoint has "
                f"'{attribute}', {type(strategy).__name__} does not"
            )
        parts = part_of(tensors, f"strategy/{attribute}")
        setattr(owner, last, _rebuild(parts, shape))
    return int(metadata["round"]), to_record(part_of(tensors, "weights"))


def _memory(strategy: Strategy, place: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, Any] = {}
    for name_here, value in vars(strategy).items():
        attribute = place + name_here
        if isinstance(value, Strategy):  # what this one is wrapped around
            more, forms = _memory(value, f"{attribute}.")
            tensors, shapes = tensors | more, shapes | forms
        taken = _take(value)
        if taken is None:
            continue
        shapes[attribute], parts = taken
        for name, array in parts.items():
            tensors[f"strategy/{attribute}/{name}"] = torch.from_numpy(np.array(array))
    return tensors, shapes


def _take(value: object) -> tuple[str, dict[str, np.ndarray]] | None:
    """Return the shape of a container of arrays and its arrays by name; None for anything else."""
    if isinstance(value, ArrayRecord):
        return "record", {name: array.numpy() for name, array in value.items()}
    if isinstance(value, np.ndarray):
        return "array", {"": value}
    # arithmetic turns an array without dimensions into a scalar of numpy's
    if isinstance(value, dict) and value and all(map(_is_array, value.values())):
        return "dict", value
    if isinstance(value, list) and value and all(map(_is_array, value)):
        return "list", {f"{index:06d}": array for index, array in enumerate(value)}
    return None


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray | np.generic)


def _rebuild(parts: dict[str, Tensor], shape: object) -> object:
    arrays = {name: tensor.numpy() for name, tensor in parts.items()}
    if shape == "record":
        return ArrayRecord({name: Array(array) for name, array in arrays.items()})
    if shape == "array":
        return arrays[""]
    if shape == "dict":
        return arrays
    return list(arrays.values())
