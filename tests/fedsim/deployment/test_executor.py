"""What plays the ClientApps of SuperNodes."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients import participant as participant_module
from fedsim.config import parse_experiment
from fedsim.deployment import executor
from fedsim.deployment.executor import Crew, serve
from fedsim.deployment.flower_private import CRASHED, Task, TaskSource
from fedsim.deployment.flower_waits import BUSY_S
from fedsim.engines.flower_private import assume_server_identity


class Over(Exception):
    """The source has no more to give."""


class Source(TaskSource):
    """A source whose tasks and answers are lists."""

    def __init__(self, *tokens: str | Exception | None) -> None:
        self.tokens = list(tokens)
        self.given: list[tuple[str, Message, Context | None]] = []
        self.beats = 0
        self.token = ""

    def acquire(self) -> str | None:
        if not self.tokens:
            raise Over
        one = self.tokens.pop(0)
        if isinstance(one, Exception):
            raise one
        return one

    def take(self, token: str) -> Task:
        self.show(token)
        return Task(question(), context())

    def ask_again(self, token: str) -> Message:
        self.show(token)
        return question()

    def give(self, reply: Message, context: Context | None) -> None:
        self.given.append((self.token, reply, context))

    def beat(self) -> None:
        self.beats += 1

    def show(self, token: str) -> None:
        self.token = token


def question() -> Message:
    assume_server_identity(1)
    return Message(RecordDict(), 7, "query")


def context() -> Context:
    return Context(run_id=1, node_id=7, node_config={}, state=RecordDict(), run_config={})


def app(answer: Callable[[Message], Message]) -> ClientApp:
    made = ClientApp()

    @made.query()
    def respond(message: Message, _: Context) -> Message:
        return answer(message)

    return made


def echo(message: Message) -> Message:
    return Message(RecordDict(), reply_to=message)


def serve_all(source: Source, answer: Callable[[Message], Message], memo: Path) -> None:
    with pytest.raises(Over):
        serve(source, app(answer), memo)


def test_every_task_is_answered_with_its_own_token_and_context(tmp_path: Path) -> None:
    source = Source("one", None, "two")

    serve_all(source, echo, tmp_path / "memo")

    assert [token for token, _, _ in source.given] == ["one", "two"]
    assert all(context is not None for _, _, context in source.given)
    assert list(tmp_path.iterdir()) == []


def test_a_supernode_that_has_no_task_is_not_asked_again_at_once(tmp_path: Path) -> None:
    began = time.monotonic()

    serve_all(Source(*[None] * 6), echo, tmp_path / "memo")

    assert time.monotonic() - began >= 6 * BUSY_S


def test_an_exception_is_an_answer_and_the_next_task_is_taken(tmp_path: Path) -> None:
    def fail(message: Message) -> Message:
        raise ValueError("no data")

    source = Source("one", "two")

    serve_all(source, fail, tmp_path / "memo")

    assert [reply.error.reason for _, reply, _ in source.given] == ["ValueError: no data"] * 2


def test_a_supernode_that_is_not_there_is_waited_for(tmp_path: Path) -> None:
    source = Source(httpx.ConnectError("nobody"), httpx.ReadTimeout("slow"), "one")

    serve_all(source, echo, tmp_path / "memo")

    assert len(source.given) == 1


def test_while_a_task_is_worked_on_there_are_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "HEARTBEAT_S", 0.01)
    source = Source("one")

    def slow(message: Message) -> Message:
        time.sleep(0.2)
        return echo(message)

    serve_all(source, slow, tmp_path / "memo")

    assert source.beats >= 3
    assert threading.active_count() < 10


def test_a_successor_answers_for_the_process_that_died_over_a_message(tmp_path: Path) -> None:
    memo = tmp_path / "memo"

    class Death(BaseException):
        """The process ends without a word."""

    def die(message: Message) -> Message:
        kept.append(memo.read_bytes())
        raise Death

    kept: list[bytes] = []
    with pytest.raises(Death):
        serve(Source("one"), app(die), memo)
    memo.write_bytes(kept[0])  # a real death cleans nothing up
    source = Source()

    serve_all(source, echo, memo)

    ((whose, reply, state),) = source.given
    assert whose == "one"
    assert (reply.error.code, reply.error.reason) == (CRASHED, "the process of the ClientApp died")
    assert reply.metadata.dst_node_id == 1
    assert reply.metadata.src_node_id == 7
    assert state is None  # what the node remembers stays as it was
    assert not memo.exists()


def test_a_reply_that_a_process_died_over_is_brought_again_as_it_was(tmp_path: Path) -> None:
    memo = tmp_path / "memo"
    asked = question()
    said = Message(RecordDict({"values": MetricRecord({"loss": 0.5})}), reply_to=asked)

    class Death(BaseException):
        """The process ends without a word."""

    class Deadly(Source):
        def give(self, reply: Message, context: Context | None) -> None:
            kept.append(memo.read_bytes())
            raise Death

    kept: list[bytes] = []
    with pytest.raises(Death):
        serve(Deadly("one"), app(lambda _: said), memo)
    memo.write_bytes(kept[0])
    source = Source()

    serve_all(source, echo, memo)

    ((whose, reply, _),) = source.given
    assert whose == "one"
    assert reply.object_id == said.object_id  # the same one to Flower, so that it counts once
    assert reply.content == said.content


@pytest.mark.parametrize("where", ["take", "give"])
def test_a_successor_answers_for_a_process_that_an_error_ended(tmp_path: Path, where: str) -> None:
    class Broken(Source):
        """Something that nobody foresaw happens in it."""

    def fail(self: Source, *_: object) -> None:
        raise ValueError("not foreseen")

    setattr(Broken, where, fail)
    with pytest.raises(ValueError, match="not foreseen"):
        serve(Broken("one"), app(echo), tmp_path / "memo")
    source = Source()

    serve_all(source, echo, tmp_path / "memo")

    ((whose, reply, _),) = source.given
    assert whose == "one"
    assert reply.has_error() == (where == "take")  # what was about to be said is not lost
    assert list(tmp_path.iterdir()) == []


def test_a_task_is_answered_when_the_disk_is_full(tmp_path: Path) -> None:
    (tmp_path / "memo.new").symlink_to("/dev/full")
    source = Source("one", "two")

    serve_all(source, echo, tmp_path / "memo")

    assert [(token, reply.has_error()) for token, reply, _ in source.given] == [
        ("one", False),
        ("two", False),
    ]


def test_a_note_that_is_of_no_use_does_not_stop_the_successor(tmp_path: Path) -> None:
    memo = tmp_path / "memo"
    memo.write_bytes(b"old\n")

    class Unwilling(Source):
        def give(self, reply: Message, context: Context | None) -> None:
            if reply.has_error():
                raise httpx.HTTPError("no such task")
            super().give(reply, context)

    source = Unwilling("one")
    serve_all(source, echo, memo)

    assert [token for token, _, _ in source.given] == ["one"]


@pytest.mark.filterwarnings("ignore:This process")
def test_a_process_that_dies_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "RESTART_S", 0.0)

    def work(number: int) -> None:
        (tmp_path / f"{number}-{os.getpid()}").touch()
        if number == 0 and len(list(tmp_path.glob("0-*"))) < 3:
            os._exit(9)
        time.sleep(600)

    outsider = os.fork()
    if outsider == 0:  # a process of its own: the crew waits for any child there is
        os.setsid()
        Crew(work, 2).watch()
        os._exit(0)
    try:
        deadline = time.monotonic() + 30.0
        while len(list(tmp_path.iterdir())) < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)

        assert len(list(tmp_path.glob("0-*"))) == 3  # died twice
        assert len(list(tmp_path.glob("1-*"))) == 1  # was left in peace
    finally:
        os.killpg(outsider, signal.SIGKILL)
        os.waitpid(outsider, 0)


@pytest.mark.parametrize(("device", "loaded"), [("cpu", 1), ("cuda", 0)])
def test_data_are_loaded_once_before_there_are_processes_but_no_gpu_is_touched(
    monkeypatch: pytest.MonkeyPatch, device: str, loaded: int
) -> None:
    calls: list[tuple[str, int]] = []
    monkeypatch.setattr(participant_module, "participant", lambda *given: calls.append(given))
    text = parse_experiment(f'name = "tiny"\nengine = {{ device = "{device}" }}').model_dump_json()

    executor.warm_up(text)

    assert calls == [(text, 0)] * loaded
