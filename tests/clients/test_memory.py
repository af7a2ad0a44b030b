"""What a client's defenses remember."""

from pathlib import Path

import pytest
import torch
from flwr.app import RecordDict

from clients.memory import Memory
from fedsim.records import RunDirectory


@pytest.fixture(params=["run directory", "Flower's state"])
def memory(request: pytest.FixtureRequest, tmp_path: Path) -> Memory:
    run = RunDirectory(tmp_path) if request.param == "run directory" else None
    return Memory("client-1", run, RecordDict())


def test_what_was_saved_in_one_round_is_there_in_the_next(memory: Memory) -> None:
    memory.save(1, {"dgc": {"residual/w": torch.arange(3.0)}, "qsgd": {"w": torch.ones(1)}})
    found = memory.load(2)
    assert set(found) == {"dgc", "qsgd"}
    assert torch.equal(found["dgc"]["residual/w"], torch.arange(3.0))


def test_a_round_that_is_repeated_sees_what_it_saw_before(tmp_path: Path) -> None:
    memory = Memory("client-1", RunDirectory(tmp_path), RecordDict())
    memory.save(4, {"dgc": {"w": torch.tensor(4.0)}})
    memory.save(5, {"dgc": {"w": torch.tensor(5.0)}})
    assert float(memory.load(5)["dgc"]["w"]) == 4  # killed in round 5, resumed with round 5


def test_no_client_sees_the_memory_of_another(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    Memory("client-1", run, RecordDict()).save(1, {"dgc": {"w": torch.ones(1)}})
    assert Memory("client-11", run, RecordDict()).load(2) == {}


def test_few_files_are_kept_and_only_their_owner_may_look(tmp_path: Path) -> None:
    memory = Memory("client-1", RunDirectory(tmp_path), RecordDict())
    for server_round in range(1, 6):
        memory.save(server_round, {"dgc": {"w": torch.ones(1)}})
    assert len(list((tmp_path / "memory").rglob("round-*"))) == 2
    assert (tmp_path / "memory").stat().st_mode & 0o077 == 0
