"""A run directory that somebody else made leads nowhere, and promises no more than it holds."""

import json
import os
import re
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array

from attacks.observation import Kind, Observation, Reconstruction
from fedsim.attacking import AttackWorker
from fedsim.driver import attack_again, resume, score_again
from fedsim.errors import ConfigError, Damaged
from fedsim.files import (
    LARGEST_DOCUMENT,
    file_in,
    read_json,
    read_lines,
    read_tensors,
    replace_json,
    replace_tensors,
)
from fedsim.plain_arrays import decode
from fedsim.reach import updates_wanted
from fedsim.records import RunDirectory
from fedsim.report.attack_kinds import attack_kinds
from fedsim.report.reading import attack_labels, settings
from fedsim.truth import unseal
from fedsim.views import read_view
from fedsim.wire import BadReply, check_tensor

MUCH = 8 * 2**20
"""Bytes; reading a damaged file of a few takes less."""


@pytest.fixture
def little_room() -> Iterator[None]:
    """Python's own allocations stay small."""
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MUCH


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run with one observation and one reconstruction."""
    run = RunDirectory.create(tmp_path / "runs", "tiny")
    run.config.write_text('name = "tiny"\n')
    seen = Observation(
        round=1,
        sender="client-0",
        receiver="server",
        kind=Kind.GRADIENT,
        update={"w": torch.ones(2)},
        weights={"w": torch.zeros(2)},
        num_examples=1,
    )
    identity = run.write_observation(seen)
    record = read_json(run.root / "observations" / f"{identity}.json")
    run.write_reconstruction(
        record, "dlg", Reconstruction(inputs=torch.ones(1, 1, 2, 2), labels=None)
    )
    return run


def observation_of(run: RunDirectory) -> Path:
    return next((run.root / "observations").glob("*.json"))


# headers that promise what is not there


def tensor_file(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.usefixtures("little_room")
@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        ({"w": entry(shape=[2**40], offsets=[0, 2**42])}, b"", "entries in a row"),
        ({"w": entry(shape=[2**20, 2**20], offsets=[0, 2**42])}, b"", "take 4398046511104 bytes"),
        ({"w": entry(shape=[2**35, 2**35, 0], offsets=[0, 0])}, b"", "x.safetensors: "),
        ({"w": entry(offsets=[-8, 0])}, bytes(8), "two offsets, from 0"),
        ({"w": entry(offsets=[0, 4])}, bytes(8), "takes 8 bytes, its offsets say 4"),
        ({"w": entry(offsets=[8, 16])}, bytes(16), "overlap, or leave gaps"),
        ({"v": entry(), "w": entry()}, bytes(8), "overlap, or leave gaps"),
        ({"w": entry()}, bytes(9), "take 8 bytes, and 9 follow"),
        ({"w": entry(shape=[-2])}, bytes(8), "a shape and two offsets"),
        ({"w": entry(shape=[2.0])}, bytes(8), "a shape and two offsets"),
        ({"w": entry(shape=[True, 2])}, bytes(8), "a shape and two offsets"),
        ({"w": entry(dtype="F4")}, bytes(8), "has type 'F4'"),
        ({"w": entry(dtype="OBJECT")}, bytes(8), "has type 'OBJECT'"),
        ({"w": [1, 2]}, b"", "must have a type"),
        ({"w\n": entry()}, bytes(8), "no name of a tensor"),
        ({"w" * 2000: entry()}, bytes(8), "no name of a tensor"),
        (b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},' * 1
         + b'"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x", "names something twice"),
        (b"[" * 100_000, b"", "nested|recursion|JSON|Expecting"),
        (b"\xff\xfe", b"", "Expecting"),
        (b"[]", b"", "no object"),
        ({"__metadata__": {"a": 1}}, b"", "metadata"),
    ],
)  # fmt: skip
def test_a_tensor_file_that_lies_is_refused_before_anything_takes_room(
    tmp_path: Path, header: object, data: bytes, said: str
) -> None:
    path = tensor_file(tmp_path / "x.safetensors", header, data)

    with pytest.raises(Damaged, match=said):
        read_tensors(path)


@pytest.mark.usefixtures("little_room")
@pytest.mark.parametrize("length", [2**63, 2**40, 100_000_000, 9])
def test_a_header_longer_than_its_file_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")

    with pytest.raises(Damaged, match="is not there"):
        read_tensors(path)


@pytest.mark.usefixtures("little_room")
def test_a_sparse_file_of_a_terabyte_is_refused(tmp_path: Path) -> None:
    for name, read in {"x.safetensors": read_tensors, "x.json": read_json}.items():
        path = tmp_path / name
        with path.open("wb") as file:
            file.truncate(2**40)

        with pytest.raises(Damaged, match="bytes are more than"):
            read(path)


# what comes over the wire


def npy(descr: str, shape: str, order: str = "False") -> bytes:
    head = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
    head += " " * (64 - (10 + len(head) + 1) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode()


@pytest.mark.usefixtures("little_room")
@pytest.mark.parametrize(
    ("dtype", "shape", "data"),
    [
        ("float32", (2,), npy("'<f4'", "(1099511627776,)")),
        ("float32", (2**40,), npy("'<f4'", "(1099511627776,)")),
        ("float32", (2,), npy("'|O'", "(2,)") + b"\x80\x04N."),
        ("object", (2,), npy("'|O'", "(2,)") + b"\x80\x04N."),
        ("V1000000000", (2,), b""),
        ("float32", (-2,), npy("'<f4'", "(-2,)")),
        ("float32", (2,), npy("'<f4'", "(2,)") + bytes(7)),
        ("float32", (2,), npy("'<f4'", "(2,)") + bytes(9)),
        ("float32", (2,), npy("'<f4'", "(" * 3000)),
        ("float32", (2,), npy("__import__('os').system('true')", "(2,)") + bytes(8)),
        ("float32", (2,), b""),
    ],
)
def test_an_array_that_lies_is_refused_before_anything_takes_room(
    dtype: str, shape: tuple[int, ...], data: bytes
) -> None:
    array = Array(dtype, shape, "numpy.ndarray", data)

    with pytest.raises(ValueError, match=r"."):
        decode(array)
    with pytest.raises(BadReply, match="'w'"):
        check_tensor("w", array, torch.zeros(2))


def test_an_array_with_its_axes_the_other_way_round_is_read_as_it_is_meant() -> None:
    meant = np.arange(6, dtype=np.float32).reshape(2, 3)
    turned = Array(np.asfortranarray(meant))

    assert np.array_equal(decode(turned), meant)


# names that lead elsewhere


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", ".hidden", "a\0b", "a\nb", "x" * 256],
)
def test_a_name_never_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(Damaged, match="is no name of a file"):
        file_in(tmp_path, name)


ESCAPES: list[Callable[[RunDirectory, str], object]] = [
    lambda run, name: run.read_observation(name),
    lambda run, name: run.observations_of(name, last=9),
    lambda run, name: run.heard_of(name, last=9)[0],
    lambda run, name: run.read_oracle_labels(1, name),
    lambda run, name: run.alarms(1, name),
    lambda run, name: unseal(run, 1, name),
    lambda run, name: read_view(run, name),
    lambda run, name: run.read_reconstruction({"observation": name, "attack": "x"}),
    lambda run, name: run.read_reconstruction({"observation": "x", "attack": name}),
]


@pytest.mark.parametrize("read", ESCAPES)
@pytest.mark.parametrize("name", ["../../secret", "x/../../../secret", "/etc/passwd"])
def test_records_cannot_make_us_read_elsewhere(
    run: RunDirectory, read: Callable[[RunDirectory, str], object], name: str
) -> None:
    with pytest.raises(Damaged, match="is no name of a file"):
        read(run, name)


def test_a_digest_of_weights_cannot_be_a_path(run: RunDirectory) -> None:
    path = observation_of(run)
    replace_json(path, read_json(path) | {"weights": "../" * 8 + "etc/passwd"})

    with pytest.raises(Damaged, match="'weights': String should match"):
        run.read_observation(path.stem)


def test_a_record_that_goes_by_another_name_is_refused(run: RunDirectory) -> None:
    path = observation_of(run)
    replace_json(path, read_json(path) | {"id": "another"})

    with pytest.raises(Damaged, match="says that it is 'another'"):
        run.read_observation(path.stem)
    with pytest.raises(Damaged, match="says that it is 'another'"):
        run.observation_records()


@pytest.mark.parametrize(
    "name", ["../../../x", "..", "a/b", "/etc", "<script>alert(1)</script>", "a\0b", "🦊"]
)
def test_the_name_of_an_experiment_makes_a_folder_inside_the_one_of_runs(
    tmp_path: Path, name: str
) -> None:
    made = RunDirectory.create(tmp_path / "runs", name)

    assert made.root.resolve().parent == (tmp_path / "runs").resolve()
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", made.root.name)
    assert made.root.stat().st_mode & 0o777 == 0o700


# links


@pytest.mark.parametrize(
    "place",
    [
        "observations/x.json",
        "reconstructions",
        "config.toml",
        "truth/x.safetensors",
        "rounds.jsonl",
    ],
)
def test_a_run_directory_with_a_link_in_it_is_not_opened(
    run: RunDirectory, tmp_path: Path, place: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "config.toml").write_text('name = "x"\n')
    target = run.root / place
    if target.is_dir():
        shutil.rmtree(target)
    target.unlink(missing_ok=True)
    target.symlink_to(outside / "config.toml" if target.suffix else outside)

    with pytest.raises(Damaged, match="neither a plain file nor a folder"):
        RunDirectory.open(run.root)


def test_a_pipe_in_a_run_directory_is_refused_and_not_waited_for(run: RunDirectory) -> None:
    os.mkfifo(run.root / "summary.json")

    with pytest.raises(Damaged, match="neither a plain file nor a folder"):
        RunDirectory.open(run.root)
    with pytest.raises(Damaged, match="not a plain file"):
        read_json(run.summary)


def test_a_link_that_appears_later_is_not_followed(run: RunDirectory, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"id": "secret"}')
    (run.root / "observations" / "secret.json").symlink_to(secret)

    with pytest.raises(Damaged, match="holds no links"):
        run.observation_records()


def test_a_log_that_has_become_a_link_is_not_written_through(
    run: RunDirectory, tmp_path: Path
) -> None:
    outside = tmp_path / "outside.jsonl"
    outside.write_text("mine\n")
    (run.root / "events.jsonl").symlink_to(outside)

    with pytest.raises(Damaged, match="holds no links"):
        run.append_event("fault", "a client was lost")
    assert outside.read_text() == "mine\n"


def test_a_log_that_has_become_a_pipe_is_refused_and_not_waited_for(run: RunDirectory) -> None:
    os.mkfifo(run.root / "events.jsonl")

    with pytest.raises(Damaged, match="not a plain file"):
        run.append_event("fault", "nobody reads this")
    reader = os.open(run.root / "events.jsonl", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(Damaged, match="not a plain file"):
            run.append_event("fault", "somebody may read this")
    finally:
        os.close(reader)


def test_a_file_is_not_written_through_a_link_at_the_place_of_its_part(
    run: RunDirectory, tmp_path: Path
) -> None:
    outside = tmp_path / "outside.json"
    outside.write_text("mine")
    run.summary.with_name(f".summary.json.{os.getpid()}.part").symlink_to(outside)

    replace_json(run.summary, {"mine": False})

    assert outside.read_text() == "mine"
    assert read_json(run.summary) == {"mine": False}


def test_a_run_directory_may_itself_lie_behind_a_link(run: RunDirectory, tmp_path: Path) -> None:
    link = tmp_path / "latest"
    link.symlink_to(run.root)

    assert RunDirectory.open(link).observation_records()


# damage


def test_a_log_with_a_line_that_is_no_record_names_the_line(tmp_path: Path) -> None:
    log = tmp_path / "rounds.jsonl"
    log.write_text('{"round": 0}\n[1]\n{"rou')

    with pytest.raises(Damaged, match=r"rounds\.jsonl, line 2: expected a JSON object, got list"):
        read_lines(log)


def test_a_log_that_a_kill_cut_short_is_read_up_to_there(tmp_path: Path) -> None:
    log = tmp_path / "rounds.jsonl"
    log.write_text('{"round": 0}\n{"rou')

    assert read_lines(log) == [{"round": 0}]


@pytest.mark.parametrize("text", ["NaN", "[1]", "{", '{"a": Infinity}', "[" * 100_000, "\xff"])
def test_a_document_that_is_no_record_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "threat.json"
    path.write_bytes(text.encode("latin1"))

    with pytest.raises(Damaged, match=r"threat\.json: "):
        read_json(path)


BY_WAY_OF_CONFIG: list[Callable[[RunDirectory], object]] = [
    lambda run: AttackWorker(str(run.root)),
    lambda run: attack_again(run.root),
    lambda run: resume(run.root),
    lambda run: score_again(run.root),
    lambda run: attack_kinds(run, None),
    attack_labels,
    settings,
    updates_wanted,
]
"""What reads `config.toml` of a run first of all."""


@pytest.mark.usefixtures("little_room")
@pytest.mark.parametrize("read", BY_WAY_OF_CONFIG)
def test_an_experiment_larger_than_any_is_refused_before_it_takes_room(
    run: RunDirectory, read: Callable[[RunDirectory], object]
) -> None:
    os.truncate(run.config, LARGEST_DOCUMENT + 1)

    with pytest.raises(Damaged, match=r"config\.toml: 67108865 bytes are more than"):
        read(run)


@pytest.mark.parametrize("read", BY_WAY_OF_CONFIG)
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff", "not a text"),
        (b"name = ", "not valid TOML"),
        (b"name = " + b"[" * 5000, "not valid TOML"),
        (b"name = " + b"1" * 5000, "not valid TOML"),
        (b"attacks = 1\nadversary = 1", "config.toml: "),
        (b"attacks = [1]\nadversary = {rounds = 1}", "config.toml: "),
    ],
)
def test_an_experiment_that_is_none_is_refused_with_the_name_of_its_file(
    run: RunDirectory, read: Callable[[RunDirectory], object], content: bytes, said: str
) -> None:
    run.config.write_bytes(content)

    with pytest.raises((Damaged, ConfigError), match=said):
        read(run)


def test_an_experiment_that_has_become_a_link_is_not_followed(
    run: RunDirectory, tmp_path: Path
) -> None:
    (tmp_path / "secret.toml").write_text('name = "secret"')
    run.config.unlink()
    run.config.symlink_to(tmp_path / "secret.toml")

    for read in (settings, attack_labels, updates_wanted):
        with pytest.raises(Damaged, match="holds no links"):
            read(run)


def test_a_newer_format_is_refused(run: RunDirectory) -> None:
    replace_json(run.environment, {"format": 99})

    with pytest.raises(ConfigError, match="reads up to"):
        RunDirectory.open(run.root)


def test_tensors_of_a_record_that_say_something_else_are_refused(run: RunDirectory) -> None:
    path = observation_of(run)
    replace_tensors(path.with_suffix(".safetensors"), {"elsewhere/w": torch.ones(2)})

    with pytest.raises(Damaged, match="not as fedsim writes it"):
        run.read_observation(path.stem)
