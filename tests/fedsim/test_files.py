"""Files are there whole or not at all, and read back as they were written."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedsim.files import (
    append_line,
    digest,
    read_json,
    read_lines,
    read_tensors,
    replace_json,
    replace_tensors,
)


def full(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("half", [b"", b'{"a"'])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: bytes
) -> None:
    path = tmp_path / "summary.json"
    replace_json(path, {"a": 1})

    def fill_up(part: Path, _: bytes) -> int:
        with part.open("wb") as file:
            file.write(half)
        return full()

    monkeypatch.setattr(Path, "write_bytes", fill_up)
    with pytest.raises(OSError, match="No space left"):
        replace_json(path, {"a": 2})

    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_who_reads_while_a_file_is_written_reads_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    replace_json(path, {"a": 1})

    with path.open() as reader:
        replace_json(path, {"a": 2})
        assert json.load(reader) == {"a": 1}

    assert read_json(path) == {"a": 2}


def test_tensors_of_every_kind_read_back_even_where_they_share_memory(tmp_path: Path) -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    tensors = {
        "transposed": matrix.t(),
        "row": matrix[0],
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(-0.0),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "mask": torch.tensor([True, False]),
        "whole": torch.tensor([2**62]),
        "grown": torch.ones(2, requires_grad=True),
    }

    replace_tensors(tmp_path / "x.safetensors", tensors, {"round": "3"})
    read, metadata = read_tensors(tmp_path / "x.safetensors")

    assert digest(read) == digest(tensors)
    assert metadata == {"round": "3"}


def test_json_holds_numbers_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        replace_json(tmp_path / "x.json", {"loss": float("nan")})


def test_a_digest_depends_on_names_types_shapes_and_bytes_and_on_nothing_else() -> None:
    base = {"a": torch.zeros(4), "b": torch.ones(2, 2)}
    others: list[dict[str, Tensor]] = [
        {"a": torch.zeros(4)},
        {"a": torch.zeros(4), "c": torch.ones(2, 2)},
        {"a": torch.zeros(4, dtype=torch.int32), "b": torch.ones(2, 2)},
        {"a": torch.zeros(2, 2), "b": torch.ones(2, 2)},
        {"a": -torch.zeros(4), "b": torch.ones(2, 2)},
    ]

    assert digest({"b": torch.ones(2, 2).t(), "a": torch.zeros(8)[::2]}) == digest(base)
    assert len({digest(other) for other in [base, *others]}) == 6


def test_a_line_that_does_not_fit_on_the_disk_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.jsonl"
    append_line(path, {"n": 1})
    write = os.write

    with monkeypatch.context() as disk:
        disk.setattr(os, "write", lambda to, line: write(to, line[:4]))
        with pytest.raises(OSError, match="No space left"):
            append_line(path, {"n": 2})
        disk.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            append_line(path, {"n": 3})
    append_line(path, {"n": 4})

    assert read_lines(path) == [{"n": 1}, {"n": 4}]
