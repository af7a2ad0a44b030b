"""What travels between server and clients, and the check of what comes back.

A reply is checked whole (names, shapes, dtypes, finite numbers) before any strategy sees it:
stock aggregation dies of one bad reply and swallows NaN.
"""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict, UserConfig
from torch import Tensor, nn

from attacks.observation import Tensors
from attacks.words import some_of
from fedsim.config import Experiment, read_experiment
from fedsim.errors import FedsimError
from fedsim.held_arrays import HeldArray, held_by, size_of
from fedsim.packing import pack, unpack
from fedsim.plain_arrays import decode
from fedsim.records import RunDirectory

ARRAYS = "arrays"
"""Record of weights, on the way down; of the update, on the way up."""
BUFFERS = "buffers"
"""Record of running statistics that a gradient reply carries along."""
METRICS = "metrics"
CONFIG = "config"

ROUND = "server-round"
RUN_DIRECTORY = "run-directory"
EXPERIMENT = "experiment"
NOTE_FAILURE = "note-failure"
"""Whether the ServerApp records why it failed: in another process, nobody else can."""
PARTITION = "partition-id"
NUM_EXAMPLES = "num-examples"
TRAIN_LOSS = "train_loss"

REFUSED = 300
"""Error code of a client that does not train on what it received, because a check raised alarm."""

REPEATED = 302
"""Error code of a client that was asked what it had answered, or what is older than that."""

PACKED = "fedsim.packed"
"""Serialization of an array as `fedsim.packing` writes it."""

_HEADER_ALLOWANCE = 4096
"""Bytes that an array's own header may take on the wire."""
_LARGEST_NUMBER = sys.float_info.max
_MOST_EXAMPLES = 2**53
"""Whole numbers up to here are exact as float64; sums of a few more are no infinity."""
_LONGEST_VALUE = 80


class BadReply(FedsimError):
    """A reply that no strategy may see; the message says what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """One client's checked reply.

    Attributes:
        tensors: The update, by parameter name (and by buffer name for weights and deltas).
        buffers: Running statistics sent beside a gradient.
        num_examples: Examples that the client says it trained on.
        train_loss: Mean training loss that the client reports; None where clients keep it.
        num_bytes: Size of the arrays on the wire.
    """

    tensors: dict[str, Tensor]
    buffers: dict[str, Tensor]
    num_examples: int
    train_loss: float | None
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """What tells a request from every other; it travels as Flower's `group_id`, both ways.

    Attributes:
        sender: One server, from its start to its end.
        number: Of the request; later ones have higher numbers.
    """

    sender: str
    number: int

    def __str__(self) -> str:
        return f"{self.sender}.{self.number}"


def ticket_of(group_id: str) -> Ticket | None:
    """Return the ticket that a message carries; None if it carries none."""
    sender, point, number = group_id.rpartition(".")
    if not sender or not point or not (number.isascii() and number.isdigit()) or len(number) > 18:
        return None
    return Ticket(sender=sender, number=int(number))


def shared_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters, by name."""
    return {name: tensor.detach() for name, tensor in model.named_parameters()}


def shared_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the running statistics: floating buffers that are part of the model's state."""
    buffers = {
        name: tensor.detach()
        for name, tensor in model.named_buffers()
        if tensor.is_floating_point()
    }
    if not buffers:
        return buffers
    saved = model.state_dict()
    return {name: tensor for name, tensor in buffers.items() if name in saved}


def shared_state(model: nn.Module) -> dict[str, Tensor]:
    """Return what the federation shares of a model: parameters and running statistics."""
    return shared_parameters(model) | shared_buffers(model)


def read_weights(record: ArrayRecord, model: nn.Module) -> dict[str, Tensor]:
    """Check and unpack weights that a client was sent: all that is shared of `model`, and no more.

    The tensors may share memory with the record, and must not be changed.

    Raises:
        BadReply: Something is missing, too much, of the wrong form, or not a finite number.
    """
    return _tensors(record, shared_state(model), "what was received", shared=True)


def load_state(model: nn.Module, state: Tensors) -> None:
    """Put state into `model`, in place; what `state` does not name keeps its value.

    Raises:
        ValueError: A tensor has another shape than that of the model.
    """
    put_into(state_of(model), state)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that a model holds, by every name that they have."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def put_into(own: Tensors, state: Tensors) -> None:
    """Copy the values of `state` into those tensors of `own` that have the same names.

    Raises:
        ValueError: A tensor has another shape.
    """
    for name, tensor in state.items():
        if name not in own:
            continue
        if own[name].shape != tensor.shape:
            raise ValueError(
                f"'{name}' must have shape {tuple(own[name].shape)}, got {tuple(tensor.shape)}"
            )
        own[name].detach().copy_(tensor)


def to_record(tensors: Tensors, *, final: bool = False) -> ArrayRecord:
    """Pack named tensors; their bytes are made when somebody asks for them.

    Args:
        tensors: By name.
        final: Whether nobody changes them any more; others are copied.
    """
    record = ArrayRecord()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        if not final and plain.data_ptr() == tensor.data_ptr():
            plain = plain.clone()
        record[name] = HeldArray.of(plain.numpy())
    return record


def to_packed_record(tensors: Tensors) -> ArrayRecord:
    """Pack named tensors in as few bytes as their values take, without loss.

    Tensors of another type than float32 are packed as `to_record` does.
    """
    return ArrayRecord({name: _pack(tensor) for name, tensor in tensors.items()})


def _pack(tensor: Tensor) -> Array:
    plain = tensor.detach().cpu().numpy()
    if tensor.dtype != torch.float32:
        return Array(plain)
    data = pack(np.ascontiguousarray(plain).reshape(-1).view(np.uint32))
    return Array("float32", tuple(plain.shape), PACKED, data)


def to_tensors(record: ArrayRecord, *, shared: bool = False) -> dict[str, Tensor]:
    """Unpack named tensors.

    Args:
        record: Them, packed.
        shared: Whether they may share memory with the record, and must not be changed; otherwise
            each owns its memory.

    Raises:
        ValueError: An array is of another form, or its bytes are not what it says that it is.
    """
    return {name: _decode(array, shared=shared) for name, array in record.items()}


def _decode(array: Array, *, shared: bool = False) -> Tensor:
    held = held_by(array)
    if held is None:
        return torch.from_numpy(decode(array).copy())
    if shared and held.flags.writeable:  # PyTorch has no tensors that refuse to be changed
        return torch.from_numpy(held)
    return torch.from_numpy(held.copy())


def _unpack(array: Array, template: Tensor) -> Tensor:
    """Unpack one packed array, if it claims to be of the form expected: few bytes may hold many.

    Raises:
        ValueError: It claims another shape or type, or its bytes are no such tensor.
    """
    if tuple(array.shape) != tuple(template.shape) or template.dtype != torch.float32:
        raise ValueError(
            f"a packed array of shape {tuple(array.shape)}, float32, stands for one of "
            f"{tuple(template.shape)}, {template.dtype}"
        )
    if array.dtype != "float32":
        raise ValueError(f"packed arrays are float32, this one says {array.dtype!r}")
    words = unpack(array.data, template.numel())
    return torch.from_numpy(words.view(np.float32).reshape(template.shape))


def arrays_in(content: RecordDict, name: str = ARRAYS) -> ArrayRecord:
    """Return the arrays of that name in a message; Flower's own way makes all records anew.

    Raises:
        KeyError: There are none.
    """
    record = content[name]
    if not isinstance(record, ArrayRecord):
        raise KeyError(name)
    return record


def config_in(content: RecordDict, name: str = CONFIG) -> ConfigRecord:
    """Return the settings of that name in a message.

    Raises:
        KeyError: There are none.
    """
    record = content[name]
    if not isinstance(record, ConfigRecord):
        raise KeyError(name)
    return record


def num_bytes(content: RecordDict) -> int:
    """Return the size of all arrays in a message."""
    return sum(
        size_of(array)
        for part in content.values()
        if isinstance(part, ArrayRecord)
        for array in part.values()
    )


def read_update(
    content: RecordDict,
    *,
    expected: Tensors,
    expected_buffers: Tensors | None = None,
    reports_loss: bool = True,
    shared: bool = False,
) -> Update:
    """Check and unpack one client's reply.

    Args:
        content: The reply.
        expected: Tensors of the names, shapes and dtypes that the update must have.
        expected_buffers: The same for running statistics beside a gradient; None if it has none.
        reports_loss: Whether clients say how large their loss was.
        shared: Whether tensors may share memory with the reply, and must not be changed.

    Raises:
        BadReply: Something is missing, too much, of the wrong form, or not a finite number.
    """
    metrics = _metrics(content, (NUM_EXAMPLES, TRAIN_LOSS) if reports_loss else (NUM_EXAMPLES,))
    wanted = {ARRAYS: expected} | ({BUFFERS: expected_buffers} if expected_buffers else {})
    records = {name: one for name, one in content.items() if isinstance(one, ArrayRecord)}
    if set(records) != set(wanted):
        raise BadReply(f"array records must be {sorted(wanted)}, got {sorted(records)}")
    parts = {
        name: _tensors(records[name], template, shared=shared) for name, template in wanted.items()
    }
    return Update(
        tensors=parts[ARRAYS],
        buffers=parts.get(BUFFERS, {}),
        num_examples=int(metrics[NUM_EXAMPLES]),
        train_loss=metrics.get(TRAIN_LOSS),
        num_bytes=num_bytes(content),
    )


def read_training_metrics(
    content: RecordDict, *, reports_loss: bool = True
) -> tuple[int, float | None]:
    """Check and unpack what a participant says of its training: examples, and mean loss.

    Raises:
        BadReply: One of them is missing, not a number, or there are no examples.
    """
    metrics = _metrics(content, (NUM_EXAMPLES, TRAIN_LOSS) if reports_loss else (NUM_EXAMPLES,))
    return int(metrics[NUM_EXAMPLES]), metrics.get(TRAIN_LOSS)


def read_metrics(content: RecordDict) -> dict[str, float]:
    """Check and unpack the metrics of an evaluation reply.

    Raises:
        BadReply: A metric is missing, not a number, or there are no examples behind it.
    """
    return _metrics(content, (NUM_EXAMPLES, "accuracy", "loss"))


def _metrics(content: RecordDict, needed: tuple[str, ...]) -> dict[str, float]:
    records = {name: one for name, one in content.items() if isinstance(one, MetricRecord)}
    if set(records) != {METRICS}:
        raise BadReply(f"metric records must be ['{METRICS}'], got {sorted(records)}")
    record = records[METRICS]
    values: dict[str, float] = {}
    for name in needed:
        value = record.get(name)
        if not isinstance(value, int | float) or not abs(value) <= _LARGEST_NUMBER:
            raise BadReply(f"metric '{name}' must be a finite number, got {_short(value)}")
        values[name] = float(value)
    count = values[NUM_EXAMPLES]
    if count < 1 or not count.is_integer():
        raise BadReply(f"'{NUM_EXAMPLES}' must be a whole number from 1, got {count:g}")
    if count > _MOST_EXAMPLES:
        raise BadReply(f"'{NUM_EXAMPLES}' must be at most {_MOST_EXAMPLES}, got {count:g}")
    return values


def _short(value: object) -> str:
    if isinstance(value, int) and abs(value) > _LARGEST_NUMBER:
        return f"a whole number of {value.bit_length()} bits"
    return repr(value)[:_LONGEST_VALUE]


def _tensors(
    record: ArrayRecord, expected: Tensors, what: str = "the update", *, shared: bool = False
) -> dict[str, Tensor]:
    if missing := sorted(set(expected) - set(record)):
        raise BadReply(f"{what} lacks {some_of(missing)}")
    if extra := sorted(set(record) - set(expected)):
        raise BadReply(f"{what} has {some_of(extra)}, which the model does not")
    tensors = {}
    for name, template in expected.items():
        tensors[name] = check_tensor(name, record[name], template, shared=shared)
    return tensors


def check_tensor(name: str, array: Array, template: Tensor, *, shared: bool = False) -> Tensor:
    """Check and unpack one tensor.

    Args:
        name: For messages.
        array: As it came.
        template: Of the shape and dtype that it must have.
        shared: Whether the tensor may share memory with the array, and must not be changed.

    Raises:
        BadReply: It is of another form, cannot be decoded, or holds no finite numbers.
    """
    size = template.numel() * template.element_size()
    # before decoding, so that no reply makes us allocate more than the model's own size
    if size_of(array) > size + _HEADER_ALLOWANCE:
        raise BadReply(f"'{name}' takes {size_of(array)} bytes, expected about {size}")
    try:
        packed = array.stype == PACKED
        tensor = _unpack(array, template) if packed else _decode(array, shared=shared)
    except Exception as error:  # bytes of a stranger: no list of what decoders raise is whole
        raise BadReply(f"'{name}' cannot be decoded: {error}") from error
    if tensor.shape != template.shape:
        raise BadReply(
            f"'{name}' must have shape {tuple(template.shape)}, got {tuple(tensor.shape)}"
        )
    if tensor.dtype != template.dtype:
        raise BadReply(f"'{name}' must be {template.dtype}, got {tensor.dtype}")
    if not all_finite(tensor):
        raise BadReply(f"'{name}' holds NaN or infinity")
    return tensor


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    # a sum is as finite as its terms, or less; of finite numbers it may still be too large
    return math.isfinite(tensor.sum().item()) or bool(tensor.isfinite().all())


def run_config(experiment: Experiment, run: RunDirectory) -> UserConfig:
    """Return the run configuration that both apps read: flat text, as Flower demands."""
    return {
        EXPERIMENT: experiment.model_dump_json(),
        RUN_DIRECTORY: str(run.root.resolve()),
    }


def read_experiment_config(config: Mapping[str, object]) -> Experiment:
    """Return the experiment of a run configuration: JSON, a file, or a shipped name."""
    text = str(config.get(EXPERIMENT, ""))
    if text.startswith("{"):
        return Experiment.model_validate(json.loads(text))
    return read_experiment(text)


def read_run_directory(
    run_settings: Mapping[str, object], message: ConfigRecord | None = None
) -> RunDirectory | None:
    """Return the run directory that the configuration, or else the message, names."""
    text = run_settings.get(RUN_DIRECTORY) or (message.get(RUN_DIRECTORY) if message else None)
    return _directory(str(text)) if text else None


@lru_cache(maxsize=8)
def _directory(root: str) -> RunDirectory:
    return RunDirectory(Path(root))  # asked for by every client of a round


UpdateKind = Literal["gradient", "weights", "delta"]
