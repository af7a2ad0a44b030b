"""What crossed links, in records and in the report."""

import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedsim.errors import Damaged
from fedsim.files import Record, append_line
from fedsim.proxy.http import Direction
from fedsim.proxy.traffic import TrafficLog, by_link, read_traffic
from fedsim.records import RunDirectory
from fedsim.report.page import build
from fedsim.report.wording import size
from fedsim.schemas.traffic import TrafficBurst


def write(root: Path, *, encrypted: bool, links: tuple[str, ...] = ("client-0",)) -> None:
    log = TrafficLog(root / "traffic.jsonl")
    said: list[tuple[Direction, int, float]] = [
        ("up", 1000, 100.0),
        ("up", 234, 100.5),
        ("down", 9000, 100.6),
        ("up", 5, 100.7),
        ("up", 6, 102.0),
    ]
    for connection, link in enumerate(links):
        for direction, number, when in said:
            log.add(connection, link, direction, number, when=when, encrypted=encrypted)
    log.close()


def test_what_comes_one_way_without_a_pause_is_one_burst(tmp_path: Path) -> None:
    write(tmp_path, encrypted=True)

    bursts = list(read_traffic(tmp_path))

    assert [(one["direction"], one["bytes"], one["seconds"]) for one in bursts] == [
        ("up", 1234, 0.5),
        ("down", 9000, 0.0),
        ("up", 5, 0.0),
        ("up", 6, 0.0),
    ]
    assert bursts[0]["time"] == "1970-01-01T00:01:40.000+00:00"
    for one in bursts:
        TrafficBurst.model_validate(one)


def test_links_are_summed_up_in_order_of_their_numbers(tmp_path: Path) -> None:
    write(tmp_path, encrypted=False, links=("client-10", "client-2", "client-2"))

    links = by_link(read_traffic(tmp_path))

    assert [(one.link, one.connections) for one in links] == [("client-2", 2), ("client-10", 1)]
    assert (links[1].bytes_up, links[1].bytes_down, links[1].bursts) == (1245, 9000, 4)


def test_a_log_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    append_line(tmp_path / "traffic.jsonl", {"link": "client-0", "bytes": "many"})

    with pytest.raises(Damaged, match=r"traffic\.jsonl"):
        by_link(read_traffic(tmp_path))


def test_a_log_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.proxy.traffic.LARGEST_LOG", 100)

    write(tmp_path, encrypted=True)

    assert len(list(read_traffic(tmp_path))) == 1


def test_connections_are_numbered_on_when_somebody_listens_again(tmp_path: Path) -> None:
    write(tmp_path, encrypted=True, links=("client-0", "client-1"))

    write(tmp_path, encrypted=True, links=("client-0", "client-1"))

    assert {one["connection"] for one in read_traffic(tmp_path)} == {0, 1, 2, 3}
    assert [one.connections for one in by_link(read_traffic(tmp_path))] == [2, 2]


@pytest.mark.parametrize("content", ["[]\n", "{}\n", "x\n"])
def test_a_log_that_cannot_be_read_is_written_on(tmp_path: Path, content: str) -> None:
    (tmp_path / "traffic.jsonl").write_text(content)

    write(tmp_path, encrypted=True)

    assert len((tmp_path / "traffic.jsonl").read_text().splitlines()) == 5


def test_sums_are_made_burst_by_burst(tmp_path: Path) -> None:
    write(tmp_path, encrypted=True)
    bursts = list(read_traffic(tmp_path))
    made: list[weakref.ref[Record]] = []

    def each() -> Iterator[Record]:
        for burst in bursts * 10:
            assert sum(one() is not None for one in made) <= 1
            record = Watched(burst)
            made.append(weakref.ref(record))
            yield record

    (link,) = by_link(each())

    assert link.bursts == 40


class Watched(dict[str, object]):
    """A record whose end is noticed."""


@pytest.mark.parametrize("encrypted", [False, True])
def test_the_report_shows_what_crossed_and_escapes_names(
    finished_run: RunDirectory, encrypted: bool
) -> None:
    write(finished_run.root, encrypted=encrypted, links=("<script>", "client-1"))
    try:
        page = build(finished_run).read_text()
    finally:
        (finished_run.root / "traffic.jsonl").unlink()

    assert "What crossed the links" in page
    assert ("not encrypted" in page) is not encrypted
    assert size(1245) in page
    assert size(9000) in page
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "What crossed the links" not in build(finished_run).read_text()
