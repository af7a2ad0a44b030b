import json
import os
from pathlib import Path

import pytest

from fedsim.files import LARGEST_LOG
from fedsim.watch.tail import Tail


def write(path: Path, *records: object, mode: str = "a") -> None:
    with path.open(mode) as file:
        file.write("".join(f"{json.dumps(record)}\n" for record in records))


def rounds(tail: Tail) -> list[object]:
    return [line.record.get("round") for line in tail.look().lines]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "rounds.jsonl"


def test_each_line_is_read_once_as_the_log_grows(log: Path) -> None:
    tail = Tail(log)
    assert rounds(tail) == []  # it is not there yet

    write(log, {"round": 1}, {"round": 2})
    assert rounds(tail) == [1, 2]
    assert rounds(tail) == []

    write(log, {"round": 3})
    assert rounds(tail) == [3]


def test_half_a_line_waits_for_its_end(log: Path) -> None:
    tail = Tail(log)
    log.write_text('{"round": 1}\n{"rou')
    assert rounds(tail) == [1]

    log.write_text('{"round": 1}\n{"round": 2}\n')
    assert rounds(tail) == [2]


def test_lines_that_are_no_objects_are_left_out(log: Path) -> None:
    log.write_bytes(b'[1]\nnothing\n\xff\xfe\n{"round": 1}\n\n' + b"[" * 100_000 + b"\n")

    assert rounds(Tail(log)) == [1]


def test_a_log_that_was_written_anew_is_read_from_its_beginning(log: Path) -> None:
    tail = Tail(log)
    write(log, *({"round": number} for number in range(9)))
    tail.look()

    other = log.with_name("other")
    write(other, *({"round": number} for number in range(50, 70)))
    other.replace(log)  # as long as before, and longer
    growth = tail.look()

    assert growth.anew
    assert [line.record["round"] for line in growth.lines] == list(range(50, 70))

    log.write_text("")
    assert tail.look().anew
    log.unlink()
    assert tail.look().anew
    assert not tail.look().anew


def test_a_long_log_is_read_in_parts(log: Path) -> None:
    write(log, *({"round": number} for number in range(100)))
    tail = Tail(log, most=200)

    found, looks = [], 0
    while True:
        growth = tail.look()
        found += [line.record["round"] for line in growth.lines]
        looks += 1
        if not growth.more:
            break

    assert found == list(range(100))
    assert looks > 5


def test_a_line_longer_than_a_look_is_left_out_and_the_next_is_read(log: Path) -> None:
    write(log, {"round": 1}, {"round": 2, "x": "y" * 900}, {"round": 3})
    tail = Tail(log, most=200)

    found = []
    for _ in range(9):
        found += rounds(tail)

    assert found == [1, 3]


def test_a_line_is_found_again_by_its_place(log: Path) -> None:
    write(log, {"round": 1}, {"round": 2, "x": "ä"}, {"round": 3})
    tail = Tail(log)
    lines = tail.look().lines

    assert [tail.line_at(line.place, line.length) for line in lines] == [
        line.record for line in lines
    ]
    assert tail.line_at(10**6, 10) is None


def test_a_log_that_is_a_link_is_not_read(log: Path) -> None:
    other = log.with_name("other")
    write(other, {"round": 1})
    log.symlink_to(other)
    tail = Tail(log)

    assert rounds(tail) == []
    assert tail.line_at(0, other.stat().st_size - 1) is None


def test_a_log_that_is_a_pipe_is_not_waited_for(log: Path) -> None:
    os.mkfifo(log)

    assert rounds(Tail(log)) == []


def test_a_log_that_turns_into_a_link_is_forgotten(log: Path) -> None:
    write(log, {"round": 1})
    tail = Tail(log)
    assert rounds(tail) == [1]

    log.rename(log.with_name("other"))
    log.symlink_to(log.with_name("other"))

    growth = tail.look()
    assert growth.anew
    assert growth.lines == []


def test_a_log_larger_than_any_is_not_read(log: Path) -> None:
    write(log, {"round": 1})
    os.truncate(log, LARGEST_LOG + 1)
    growth = Tail(log).look()

    assert growth.lines == []
    assert not growth.more  # else it would be read for ever
