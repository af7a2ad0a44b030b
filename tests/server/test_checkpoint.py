"""What a resumed run goes on from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM

from fedsim.errors import ConfigError
from fedsim.records import RunDirectory
from fedsim.wire import to_record, to_tensors
from server import checkpoint
from server.strategies import FedSGD

WEIGHTS = {"w": torch.tensor([1.0, -0.0, 1e-45]), "deep.b": torch.tensor(2.0)}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """An empty run directory."""
    return RunDirectory.create(tmp_path, "tiny")


def test_a_run_without_a_checkpoint_starts_anew(run: RunDirectory) -> None:
    assert checkpoint.restore(run, FedAvg()) is None


def test_the_weights_after_a_round_come_back_to_the_bit(run: RunDirectory) -> None:
    checkpoint.save(run, 4, to_record(WEIGHTS), FedAvg())

    restored = checkpoint.restore(run, FedAvg())

    assert restored is not None
    last, arrays = restored
    assert last == 4
    read = to_tensors(arrays)
    assert list(read) == list(WEIGHTS)
    assert all(read[name].numpy().tobytes() == t.numpy().tobytes() for name, t in WEIGHTS.items())


def test_every_kind_of_memory_comes_back_as_it_was(run: RunDirectory) -> None:
    adam, fresh_adam = FedAdam(), FedAdam()
    adam.m_t = {"w": np.array([1.5, -0.0]), "b": np.zeros((), dtype=np.float32) + 2}  # a scalar
    momentum, fresh_momentum = FedAvgM(server_momentum=0.9), FedAvgM(server_momentum=0.9)
    momentum.momentum_vector = [np.full((2, 1), float(n), dtype=np.float32) for n in range(12)]
    momentum.current_arrays = to_record(WEIGHTS)
    fedsgd, fresh_fedsgd = FedSGD(), FedSGD()
    fedsgd.velocity = to_record({"w": torch.tensor([1.0], dtype=torch.float64)})

    checkpoint.save(run, 1, to_record(WEIGHTS), adam)
    checkpoint.restore(run, fresh_adam)
    checkpoint.save(run, 1, to_record(WEIGHTS), momentum)
    checkpoint.restore(run, fresh_momentum)
    checkpoint.save(run, 1, to_record(WEIGHTS), fedsgd)
    checkpoint.restore(run, fresh_fedsgd)

    assert fresh_adam.m_t is not None
    assert fresh_adam.v_t is None
    memories = [
        [(name, a.tobytes(), a.shape, a.dtype) for name, a in one.items()]
        for one in (adam.m_t, fresh_adam.m_t)
    ]
    assert memories[0] == memories[1]
    assert fresh_momentum.momentum_vector is not None
    assert [int(a[0, 0]) for a in fresh_momentum.momentum_vector] == list(range(12))
    assert isinstance(fresh_momentum.current_arrays, ArrayRecord)
    assert list(fresh_momentum.current_arrays) == list(WEIGHTS)
    assert to_tensors(fresh_fedsgd.velocity)["w"].dtype == torch.float64


def test_a_checkpoint_of_another_strategy_is_refused(run: RunDirectory) -> None:
    momentum = FedAvgM(server_momentum=0.9)
    momentum.momentum_vector = [np.zeros(2, dtype=np.float32)]
    checkpoint.save(run, 1, to_record(WEIGHTS), momentum)

    with pytest.raises(ConfigError, match=r"has 'momentum_vector', FedAvg does not"):
        checkpoint.restore(run, FedAvg())


def test_a_checkpoint_that_fails_leaves_the_one_before(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(run, 1, to_record(WEIGHTS), FedAvg())

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(run, 2, to_record(WEIGHTS), FedAvg())

    restored = checkpoint.restore(run, FedAvg())
    assert restored is not None
    assert restored[0] == 1
