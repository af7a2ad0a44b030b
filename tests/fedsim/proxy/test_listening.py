"""What a tap makes of what crosses, beside the relay."""

import json
import random
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from clients.app import app
from fedsim.config import parse_experiment
from fedsim.deployment import containers
from fedsim.deployment.bundles import bundle
from fedsim.deployment.containers import Directed
from fedsim.engines.flower_private import assume_server_identity
from fedsim.engines.in_process import InProcessGrid
from fedsim.files import read_json, replace_json
from fedsim.proxy import listening
from fedsim.proxy.http import Exchange
from fedsim.proxy.listening import (
    BESIDE,
    MOST_EVENTS,
    Tap,
    _Piece,
    _Reading,
    only_encrypted,
    rounds_heard,
)
from fedsim.proxy.traffic import by_link, read_traffic
from fedsim.records import RunDirectory
from fedsim.schemas.traffic import HeardUpTo
from fedsim.stages.prepare import check, write_plan
from fedsim.wrapped_grid import WrappedGrid
from server.rounds import train
from tests.fedsim.proxy.traffic_maker import from_node, in_pieces, on_the_wire, to_node

TINY = """
name = "tiny"
rounds = 2
partition = { clients = 2 }
model = { name = "mlp", options = { hidden = [6] } }
adversary = { threat = "THREAT" }
"""


def prepared(folder: Path, threat: str = "link-tap") -> RunDirectory:
    run = RunDirectory.create(folder, "tiny")
    write_plan(check(parse_experiment(TINY.replace("THREAT", threat))), run)
    return run


class Nodes(WrappedGrid):
    """Has what a ServerApp and its clients say cross a tap, a connection per node, bundled."""

    tap: Tap

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        messages = list(messages)
        for message in messages:
            sent = Message(bundle(message.content), message.metadata.dst_node_id, "train")
            sent.metadata.message_type = message.metadata.message_type
            message.metadata.__dict__["_message_id"] = sent.object_id
            self.cross(to_node(sent), message.metadata.dst_node_id)
        replies = list(self.inner.send_and_receive(messages, timeout=timeout))
        for reply in replies:
            said = reply.content
            reply.content = bundle(said)
            self.cross(from_node(reply), reply.metadata.src_node_id)
            reply.content = said
        return replies

    def cross(self, calls: "list[tuple[str, bytes, bytes]]", node: int) -> None:
        for direction, data in on_the_wire(calls, chunked=node % 2 == 0):
            for piece in in_pieces(data, (1, 500, 40_000)):
                self.tap.crossed(node, direction, piece)


def test_what_is_heard_on_a_wire_is_what_a_tap_at_the_server_hears(tmp_path: Path) -> None:
    plain, run = prepared(tmp_path), prepared(tmp_path)
    tiny = parse_experiment(TINY.replace("THREAT", "link-tap"))
    train(tiny, plain, InProcessGrid(tiny, plain, app))

    grid = Nodes(InProcessGrid(tiny, run, app))
    grid.tap = Tap(run.root)
    for number, node in enumerate(grid.get_node_ids()):
        grid.tap.opened(node, f"client-{number}")
    train(tiny, run, grid, tap_links=False)
    grid.tap.close()

    assert run.observation_records() == plain.observation_records()
    assert len(run.observation_records()) == 4
    assert run.views_sha256() == plain.views_sha256()
    assert run.events() == []
    assert rounds_heard(run) == 2
    links = by_link(read_traffic(run.root))
    assert [one.link for one in links] == ["client-0", "client-1"]
    assert not any(one.encrypted for one in links)


def until(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20.0
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_of_what_is_encrypted_there_is_nothing_but_sizes_and_times(tmp_path: Path) -> None:
    run = prepared(tmp_path)
    tap, rng = Tap(run.root), random.Random(1)

    tap.opened(0, "client-0")
    tap.crossed(0, "up", b"\x16\x03\x01" + rng.randbytes(500))
    tap.crossed(0, "up", rng.randbytes(100))
    tap.crossed(0, "down", rng.randbytes(7000))
    tap.crossed(0, "up", rng.randbytes(9))
    tap.closed(0)
    tap.close()

    bursts = list(read_traffic(run.root))
    assert [(one["direction"], one["bytes"]) for one in bursts] == [
        ("up", 603),
        ("down", 7000),
        ("up", 9),
    ]
    assert all(one["encrypted"] and one["link"] == "client-0" for one in bursts)
    assert run.observation_records() == []
    assert run.events() == []
    (link,) = by_link(bursts)
    assert (link.bytes_up, link.bytes_down, link.connections, link.bursts) == (612, 7000, 1, 3)
    assert link.encrypted


def test_a_burst_ends_with_a_pause_and_is_written_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "LOOK_S", 0.05)
    monkeypatch.setattr("fedsim.proxy.traffic.PAUSE_S", 0.1)
    run = prepared(tmp_path)
    tap = Tap(run.root)

    tap.opened(0, "client-0")
    tap.crossed(0, "up", b"\x16abc")
    until(lambda: len(list(read_traffic(run.root))) == 1)
    tap.crossed(0, "up", b"de")
    tap.close()

    assert [one["bytes"] for one in read_traffic(run.root)] == [4, 2]


def test_garbage_is_an_event_and_the_next_connection_is_heard(tmp_path: Path) -> None:
    run = prepared(tmp_path)
    tap, rng = Tap(run.root), random.Random(2)

    for connection in range(100):
        tap.opened(connection, f"client-{connection % 2}")
        for _ in range(5):
            tap.crossed(connection, rng.choice(("up", "down")), rng.randbytes(46) + b"\r\n\r\n")
        tap.closed(connection)
    tap.close()

    events = run.events()
    assert len(events) == MOST_EVENTS
    assert {one["kind"] for one in events} == {"tap-garbled"}
    assert events[-1]["message"].endswith("more of this kind are not recorded")
    assert sum(one["bytes"] for one in read_traffic(run.root)) == 100 * 250


def test_a_tap_that_is_left_behind_says_so_and_relays_unheard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    found = Tap._find_run

    def late(tap: Tap) -> RunDirectory | None:
        gate.wait(20)
        return found(tap)

    monkeypatch.setattr(Tap, "_find_run", late)
    run = prepared(tmp_path)
    tap = Tap(run.root, most_behind=2 * BESIDE + 10 * (BESIDE + 100))

    tap.opened(0, "client-0")
    for _ in range(100):
        tap.crossed(0, "up", bytes(100))
    tap.opened(1, "client-1")
    tap.crossed(1, "up", bytes(100))
    tap.closed(1)
    tap.closed(0)
    gate.set()
    tap.close()

    assert sum(one["bytes"] for one in read_traffic(run.root)) == 1000
    events = [(one["kind"], one["message"].split(";")[0]) for one in run.events()]
    assert sorted(events) == [
        ("tap-behind", "client-0: more crossed than could be read"),
        ("tap-behind", "more crossed than could be read"),
    ]
    assert tap._behind == 0


@pytest.mark.parametrize("data", [b"x", b""], ids=["bytes one by one", "connections"])
def test_what_waits_takes_no_more_room_than_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    gate = threading.Event()
    monkeypatch.setattr(Tap, "_find_run", lambda _: gate.wait(20) and None)
    tap = Tap(tmp_path, most_behind=100 * BESIDE)

    tap.opened(0, "client-0")
    for number in range(1, 1000):
        if data:
            tap.crossed(0, "up", data)
        else:
            tap.opened(number, "client-0")
            tap.closed(number)

    assert tap._pieces.qsize() <= 100
    gate.set()
    tap.close()
    assert tap._pieces.qsize() == 0


OK = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n"
ASK = b"POST /v1 HTTP/1.1\r\ncontent-length: 0\r\n\r\n"


@pytest.mark.parametrize("before", [b"", OK % 3 + b"yes"], ids=["at once", "after an answer"])
def test_what_was_kept_of_a_connection_that_turns_to_garbage_is_heard_and_let_go_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes
) -> None:
    heard: list[Exchange] = []
    monkeypatch.setattr("fedsim.proxy.rebuild.Rebuilder.hear", lambda _, one: heard.append(one))
    reading = _Reading(prepared(tmp_path))
    answer = OK % 200_000 + bytes(200_000)

    for connection in range(5):
        reading.take(_Piece(connection, 1.0, link="client-0"))
        reading.take(_Piece(connection, 1.0, direction="up", data=ASK + ASK))
        down = before + answer + b"garbage\r\n\r\n"
        reading.take(_Piece(connection, 1.0, direction="down", data=down))
        reading.take(_Piece(connection, 1.0))

    assert reading.noted == {"tap-garbled": 5}
    assert reading.budget.held == 0
    assert len(heard) == (10 if before else 5)
    assert heard[-1].response.body == bytes(200_000)


def test_a_connection_that_says_more_than_there_is_room_for_is_relayed_unheard(
    tmp_path: Path,
) -> None:
    reading = _Reading(prepared(tmp_path))
    reading.budget.most = 5000
    for connection in range(3):
        reading.take(_Piece(connection, 1.0, link="client-0"))
        reading.take(_Piece(connection, 1.0, direction="up", data=b"GET /" + b"x" * 2000))

    assert reading.noted == {"tap-too-large": 1}
    assert [wire.conversation is None for wire in reading.wires.values()] == [False, False, True]
    reading.close()
    assert reading.budget.held == 0


def test_half_an_answer_that_a_gap_ends_is_not_taken_for_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Exchange] = []
    monkeypatch.setattr("fedsim.proxy.rebuild.Rebuilder.hear", lambda _, one: heard.append(one))
    reading = _Reading(prepared(tmp_path))
    reading.take(_Piece(0, 1.0, link="client-0"))
    reading.take(_Piece(0, 1.0, direction="up", data=ASK))
    reading.take(_Piece(0, 1.0, direction="down", data=b"HTTP/1.1 200 OK\r\n\r\nhalf"))

    reading.deafen(0, "tap-behind", "a gap")

    assert heard == []
    assert reading.budget.held == 0


def test_connections_beyond_those_that_are_listened_to_are_an_event_unless_encrypted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "MOST_CONNECTIONS", 2)
    run = prepared(tmp_path)
    tap = Tap(run.root)

    for connection, said in enumerate((b"POST ", b"POST ", b"POST ", b"\x16abc")):
        tap.opened(connection, f"client-{connection}")
        tap.crossed(connection, "up", said)
    tap.close()

    (event,) = run.events()
    assert event["kind"] == "tap-crowded"
    assert event["message"].startswith("client-2: ")


def test_a_full_log_is_one_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.proxy.traffic.LARGEST_LOG", 100)
    run = prepared(tmp_path)
    tap = Tap(run.root)

    tap.opened(0, "client-0")
    for _ in range(10):
        tap.crossed(0, "up", b"\x16x")
        tap.crossed(0, "down", b"\x16y")
    tap.close()

    assert [one["kind"] for one in run.events()] == ["tap-full"]


def test_a_burst_is_written_while_others_keep_talking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "LOOK_S", 0.2)
    monkeypatch.setattr("fedsim.proxy.traffic.PAUSE_S", 0.1)
    run = prepared(tmp_path)
    tap = Tap(run.root)
    tap.opened(0, "client-0")
    tap.opened(1, "client-1")
    tap.crossed(0, "up", b"\x16abc")

    def goes_on() -> bool:
        tap.crossed(1, "up", b"\x16")
        return [one["link"] for one in read_traffic(run.root)] == ["client-0"]

    until(goes_on)
    tap.close()


@pytest.mark.parametrize(("said", "nothing"), [(b"\x16abc", True), (b"POST ", False)])
def test_whether_there_is_anything_to_wait_for_is_told_at_once(
    tmp_path: Path, said: bytes, nothing: bool
) -> None:
    run = prepared(tmp_path)
    assert not only_encrypted(run)
    tap = Tap(run.root)

    tap.opened(0, "client-0")
    tap.crossed(0, "up", b"\x16abc")
    until(lambda: only_encrypted(run))
    tap.opened(1, "client-1")
    tap.crossed(1, "up", said)
    tap.close()

    assert only_encrypted(run) is nothing
    HeardUpTo.model_validate(read_json(run.root / "heard.json"))


def test_nobody_waits_for_rounds_of_which_all_is_encrypted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "HEAR_OUT_S", 5.0)
    run = prepared(tmp_path)
    run.append_round({"round": 2})
    replace_json(run.root / "heard.json", {"round": 0, "encrypted": True})
    began = time.monotonic()

    Directed(parse_experiment(TINY.replace("THREAT", "link-tap")), run)._hear_out()

    assert time.monotonic() - began < 2.5


def test_it_waits_for_a_run_and_loses_nothing_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "LOOK_S", 0.05)
    old = prepared(tmp_path)
    tap = Tap(tmp_path)
    tap.opened(0, "client-0")
    tap.crossed(0, "up", b"\x16abc")

    new = prepared(tmp_path)
    until(lambda: (new.root / "heard.json").is_file())
    tap.close()

    assert len(list(read_traffic(new.root))) == 1
    assert list(read_traffic(old.root)) == []


def test_it_ends_before_there_is_a_run(tmp_path: Path) -> None:
    tap = Tap(tmp_path / "none")
    tap.opened(0, "client-0")

    tap.close()

    assert not (tmp_path / "none").exists()


def test_a_tap_that_breaks_lets_everything_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = prepared(tmp_path)
    run.config.write_text("no = [toml")
    tap = Tap(run.root)
    until(lambda: not tap._thread.is_alive())

    tap.opened(0, "client-0")
    tap.crossed(0, "up", b"x")
    tap.closed(0)
    tap.close()

    assert tap._pieces.qsize() == 1  # the end, and nothing before it
    assert "hears nothing any more" in caplog.text
    assert [one["kind"] for one in run.events()] == ["tap-crashed"]


def test_a_reader_that_breaks_is_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepared(tmp_path)

    def breaks(*_: object) -> None:
        raise ZeroDivisionError("a fault of the reader")

    monkeypatch.setattr("fedsim.proxy.http.Conversation.feed", breaks)
    tap = Tap(run.root)
    tap.opened(0, "client-0")
    tap.crossed(0, "up", b"POST ")
    until(lambda: not tap._thread.is_alive())
    tap.crossed(0, "up", b"x")
    tap.close()

    (event,) = run.events()
    assert event["kind"] == "tap-crashed"
    assert "ZeroDivisionError('a fault of the reader')" in event["message"]


def test_a_full_disk_is_an_event_if_that_can_be_written_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepared(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedsim.proxy.traffic.append_line", full)
    tap = Tap(run.root)
    tap.opened(0, "client-0")
    tap.crossed(0, "up", b"\x16x")
    tap.crossed(0, "down", b"y")
    tap.closed(0)
    tap.close()

    (event,) = run.events()
    assert event["kind"] == "tap-lost"
    assert "No space left on device" in event["message"]


@pytest.mark.parametrize("threat", ["curious-server"])
def test_where_no_link_is_tapped_it_counts_alone(tmp_path: Path, threat: str) -> None:
    run = prepared(tmp_path, threat)
    assume_server_identity(1)
    asked = Message(RecordDict({"config": ConfigRecord({})}), 7, "train")
    tap = Tap(run.root)

    tap.opened(0, "client-0")
    for direction, data in on_the_wire(to_node(asked)):
        tap.crossed(0, direction, data)
    tap.close()

    assert list(read_traffic(run.root))
    assert run.events() == []
    assert json.loads((run.root / "heard.json").read_text()) == {"round": 0, "encrypted": False}
