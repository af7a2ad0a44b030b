"""What travels, and the check of what comes back."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor, nn

from fedsim.config import parse_experiment
from fedsim.records import RunDirectory
from fedsim.wire import (
    ARRAYS,
    BUFFERS,
    METRICS,
    PACKED,
    RUN_DIRECTORY,
    BadReply,
    load_state,
    num_bytes,
    read_experiment_config,
    read_metrics,
    read_run_directory,
    read_update,
    run_config,
    shared_buffers,
    shared_parameters,
    shared_state,
    to_packed_record,
    to_record,
    to_tensors,
)

EXPECTED = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}


def arrays(**changed: Tensor | Array | None) -> ArrayRecord:
    """An update as expected, except for what is given; None leaves an array out."""
    record = to_record({"weight": torch.rand(2, 3), "bias": torch.rand(2)})
    for name, value in changed.items():
        if value is None:
            del record[name]
        else:
            record[name] = value if isinstance(value, Array) else Array(value.numpy())
    return record


def reply(record: ArrayRecord | None = None, **metrics: object) -> RecordDict:
    """A reply as expected, except for the arrays and metrics given; None leaves a metric out."""
    values = {"num-examples": 4, "train_loss": 0.5} | {
        name.replace("num_", "num-"): value for name, value in metrics.items()
    }
    kept = {name: value for name, value in values.items() if value is not None}
    return RecordDict(
        {
            ARRAYS: arrays() if record is None else record,
            METRICS: MetricRecord(kept),  # type: ignore[arg-type]
        }
    )


def test_a_sound_reply_is_read_to_the_bit() -> None:
    sent = {"weight": torch.tensor([[1e-45, -0.0, 3.0], [1.0, 2.0, 3e38]]), "bias": torch.ones(2)}
    content = reply(to_record(sent))

    update = read_update(content, expected=EXPECTED)

    assert all(torch.equal(update.tensors[name], sent[name]) for name in sent)
    assert math.copysign(1, float(update.tensors["weight"][0, 1])) == -1
    assert (update.num_examples, update.train_loss, update.buffers) == (4, 0.5, {})
    assert update.num_bytes == num_bytes(content) > 32


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (reply(arrays(bias=None)), "the update lacks 'bias'"),
        (
            reply(arrays(extra=torch.zeros(1))),
            "the update has 'extra', which the model does not",
        ),
        (
            reply(arrays(**{name: torch.zeros(1) for name in "abcde"})),
            "the update has 'a', 'b', 'c' and 2 more, which the model does not",
        ),
        (reply(arrays(bias=torch.zeros(3))), r"'bias' must have shape \(2,\), got \(3,\)"),
        (
            reply(arrays(weight=torch.zeros(3, 2))),
            r"'weight' must have shape \(2, 3\), got \(3, 2\)",
        ),
        (
            reply(arrays(bias=torch.zeros(2, dtype=torch.float64))),
            "'bias' must be torch.float32, got torch.float64",
        ),
        (
            reply(arrays(bias=torch.zeros(2, dtype=torch.int32))),
            "'bias' must be torch.float32, got torch.int32",
        ),
        (reply(arrays(bias=torch.tensor([1.0, math.nan]))), "'bias' holds NaN or infinity"),
        (reply(arrays(bias=torch.tensor([1.0, -math.inf]))), "'bias' holds NaN or infinity"),
        (reply(num_examples=0), "'num-examples' must be a whole number from 1, got 0"),
        (reply(num_examples=-3), "'num-examples' must be a whole number from 1, got -3"),
        (reply(num_examples=1.5), "'num-examples' must be a whole number from 1, got 1.5"),
        (reply(num_examples=math.inf), "metric 'num-examples' must be a finite number, got inf"),
        (reply(num_examples=None), "metric 'num-examples' must be a finite number, got None"),
        (reply(num_examples=[4, 4]), r"metric 'num-examples' must be a finite .* got \[4, 4\]"),
        (reply(train_loss=None), "metric 'train_loss' must be a finite number, got None"),
        (reply(train_loss=math.nan), "metric 'train_loss' must be a finite number, got nan"),
        (RecordDict(), r"metric records must be \['metrics'\], got \[\]"),
        (
            RecordDict({METRICS: MetricRecord({"num-examples": 1, "train_loss": 1.0})}),
            r"array records must be \['arrays'\], got \[\]",
        ),
        (
            RecordDict({**reply(), "more": MetricRecord({})}),
            r"metric records must be \['metrics'\], got \['metrics', 'more'\]",
        ),
        (
            RecordDict({**reply(), BUFFERS: arrays()}),
            r"array records must be \['arrays'\], got \['arrays', 'buffers'\]",
        ),
    ],
)
def test_a_bad_reply_is_refused_with_what_is_wrong_about_it(content: RecordDict, said: str) -> None:
    with pytest.raises(BadReply, match=f"^{said}$"):
        read_update(content, expected=EXPECTED)


def test_an_array_larger_than_the_model_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def decode(array: Array) -> None:
        raise AssertionError("decoded")

    huge = Array("float32", (10**7,), "numpy.ndarray", b"\x93NUMPY" + bytes(5_000))
    monkeypatch.setattr(Array, "numpy", decode)

    with pytest.raises(BadReply, match="'bias' takes 5006 bytes, expected about 8"):
        read_update(reply(arrays(bias=huge)), expected=EXPECTED)


def lying_header() -> bytes:
    """Return a few bytes in numpy's format that claim to hold 4 million terabytes."""
    buffer = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**18,)}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def pickled() -> bytes:
    """Return an array of objects, which numpy would unpickle."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}, {}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("dtype", "stype", "data"),
    [
        ("float32", "numpy.ndarray", b""),
        ("float32", "numpy.ndarray", b"PK\x03\x04 no archive"),
        ("float32", "numpy.ndarray", b"\x93NUMPY\x01\x00\x10\x00{'descr': "),
        ("float32", "numpy.ndarray", lying_header()),
        ("object", "numpy.ndarray", pickled()),
        ("(,", "numpy.ndarray", b"x"),
        ("no type", "numpy.ndarray", b"x"),
        ("float32", "pickle", pickled()),
    ],
)
def test_bytes_that_are_no_array_are_refused(dtype: str, stype: str, data: bytes) -> None:
    bad = Array(dtype, (2,), stype, data)

    with pytest.raises(BadReply, match="'bias' cannot be decoded: "):
        read_update(reply(arrays(bias=bad)), expected=EXPECTED)


def test_an_array_counts_for_what_it_holds_not_for_what_it_is_announced_as() -> None:
    three = Array(np.ones(3, dtype=np.float32))
    claimed = Array("float32", (2,), "numpy.ndarray", three.data)

    with pytest.raises(BadReply, match=r"says \(2,\) of float32, its bytes say \(3,\)"):
        read_update(reply(arrays(bias=claimed)), expected=EXPECTED)


def test_a_packed_update_is_read_to_the_bit_and_takes_its_own_bytes() -> None:
    sent = {"weight": torch.tensor([[1e-45, -0.0, 3.0], [0.1, 2.0, 3e38]]), "bias": torch.ones(2)}
    expected = {name: torch.zeros_like(tensor) for name, tensor in sent.items()}
    content = reply(to_packed_record(sent))

    update = read_update(content, expected=expected)

    for name, tensor in sent.items():
        assert update.tensors[name].view(torch.int32).tolist() == tensor.view(torch.int32).tolist()
    assert update.num_bytes == 6 * 4 + 1 + 2 * 2 + 1  # ones are exact in half precision
    update.tensors["weight"].zero_()  # it owns its memory


def test_packed_tensors_of_every_layout_and_type_come_out_as_they_went_in() -> None:
    matrix = torch.arange(6.0).reshape(2, 3) / 3
    tensors = {
        "turned": matrix.t(),
        "last": torch.rand(1, 3, 4, 4).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(2.0),
        "none": torch.empty(0, 2),
        "double": torch.rand(3, dtype=torch.float64),
        "half": torch.rand(3).half(),
    }

    read = read_update(reply(to_packed_record(tensors)), expected=tensors).tensors

    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor)
        assert read[name].dtype == tensor.dtype


@pytest.mark.parametrize(
    ("dtype", "shape", "data", "said"),
    [
        (
            "float32",
            (10**9,),
            b"\x03\x00" + bytes(4),
            r"shape \(1000000000,\), float32, stands for",
        ),
        ("float32", (1, 2), bytes(9), r"shape \(1, 2\), float32, stands for one of \(2,\)"),
        ("float64", (2,), bytes(9), "packed arrays are float32, this one says 'float64'"),
        ("float32", (2,), bytes(7), "6 bytes where 8 are expected"),
        ("float32", (2,), b"\xff", "there is no form 255"),
    ],
)
def test_packed_bytes_that_are_no_such_array_are_refused(
    dtype: str, shape: tuple[int, ...], data: bytes, said: str
) -> None:
    bad = Array(dtype, shape, PACKED, data)

    with pytest.raises(BadReply, match=f"'bias' cannot be decoded: .*{said}"):
        read_update(reply(arrays(bias=bad)), expected=EXPECTED)


def test_packed_nan_is_refused_like_any() -> None:
    record = to_packed_record({"weight": torch.rand(2, 3), "bias": torch.tensor([1.0, math.nan])})

    with pytest.raises(BadReply, match="'bias' holds NaN or infinity"):
        read_update(reply(record), expected=EXPECTED)


def test_running_statistics_beside_a_gradient_are_checked_like_it() -> None:
    expected = {"mean": torch.zeros(2)}
    content = reply()
    with pytest.raises(BadReply, match=r"must be \['arrays', 'buffers'\], got \['arrays'\]"):
        read_update(content, expected=EXPECTED, expected_buffers=expected)

    content[BUFFERS] = to_record({"mean": torch.ones(2)})
    update = read_update(content, expected=EXPECTED, expected_buffers=expected)
    assert update.buffers["mean"].tolist() == [1, 1]

    content[BUFFERS] = to_record({"mean": torch.tensor([1.0, math.nan])})
    with pytest.raises(BadReply, match="'mean' holds NaN"):
        read_update(content, expected=EXPECTED, expected_buffers=expected)


def test_the_metrics_of_an_evaluation_are_checked() -> None:
    good = MetricRecord({"num-examples": 2, "accuracy": 0.5, "loss": 1.0})
    bad = MetricRecord({"num-examples": 2, "accuracy": 0.5, "loss": math.inf})

    assert read_metrics(RecordDict({METRICS: good})) == dict(good)
    with pytest.raises(BadReply, match="metric 'loss' must be a finite number, got inf"):
        read_metrics(RecordDict({METRICS: bad}))


def test_tensors_of_every_layout_come_out_as_they_went_in_and_own_their_memory() -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    images = torch.rand(1, 3, 4, 4).to(memory_format=torch.channels_last)
    tensors = {"plain": matrix, "turned": matrix.t(), "scalar": torch.tensor(2.0), "last": images}
    record = to_record(tensors | {"none": torch.empty(0, 2)})

    read = to_tensors(record)
    read["plain"].zero_()

    assert torch.equal(read["turned"], matrix.t())
    assert torch.equal(read["last"], images)
    assert read["scalar"].shape == ()
    assert read["none"].shape == (0, 2)
    assert torch.equal(to_tensors(record)["plain"], matrix)


class Counting(nn.Module):
    """Normalisation with everything that state may be."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))


def test_a_federation_shares_parameters_and_running_statistics_but_no_counters() -> None:
    model = Counting()

    assert set(shared_parameters(model)) == {"norm.weight", "norm.bias"}
    assert set(shared_buffers(model)) == {"norm.running_mean", "norm.running_var"}
    assert set(shared_state(model)) == set(shared_parameters(model)) | set(shared_buffers(model))


def test_loading_shared_state_leaves_counters_alone() -> None:
    model = Counting()
    model.steps += 5

    load_state(model, {name: tensor + 1 for name, tensor in shared_state(model).items()})

    assert model.norm.weight.tolist() == [2, 2]
    assert model.norm.running_mean is not None
    assert model.norm.running_mean.tolist() == [1, 1]
    assert int(model.steps) == 5


def test_the_run_configuration_carries_the_experiment_and_its_directory(tmp_path: Path) -> None:
    experiment = parse_experiment('name = "tiny"\nrounds = 3\n[adversary]\ngrants = ["labels"]')
    run = RunDirectory(tmp_path / "tiny-0001")

    config = run_config(experiment, run)

    assert all(isinstance(value, str) for value in config.values())
    assert read_experiment_config(config) == experiment
    assert read_run_directory(config) == run


def test_an_app_that_flower_starts_names_its_experiment_and_learns_the_directory_by_message(
    tmp_path: Path,
) -> None:
    config = {"experiment": "digits-curious-server", RUN_DIRECTORY: ""}

    assert read_experiment_config(config).name == "digits-curious-server"
    assert read_run_directory(config) is None
    message = ConfigRecord({RUN_DIRECTORY: str(tmp_path)})
    assert read_run_directory(config, message) == RunDirectory(tmp_path)
