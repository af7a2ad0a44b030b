"""The ear on real links hears, message by message, what a tap at the server hears."""

from collections.abc import Iterable
from pathlib import Path

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from clients.app import app
from fedsim.config import Experiment, parse_experiment
from fedsim.engines.in_process import InProcessGrid
from fedsim.files import replace_json
from fedsim.records import RunDirectory
from fedsim.stages.prepare import check, write_plan
from fedsim.wire import ARRAYS, CONFIG, PARTITION, ROUND
from fedsim.wrapped_grid import WrappedGrid
from server.adversaries.wire_ear import WireEar
from server.rounds import train


def experiment(adversary: str, more: str = "") -> Experiment:
    return parse_experiment(
        f"""
        name = "tiny"
        rounds = 2
        partition = {{ clients = 3 }}
        model = {{ name = "mlp", options = {{ hidden = [6] }} }}
        adversary = {{ {adversary} }}
        {more}
        """
    )


class Wire(WrappedGrid):
    """Tells an ear what crosses, answers in the wrong order."""

    def __init__(self, inner: Grid, ear: WireEar) -> None:
        super().__init__(inner)
        self.ear = ear

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        messages = list(messages)
        for number, message in enumerate(messages):
            name = f"{id(self)}-{id(message)}-{number}"
            message.metadata.__dict__["_message_id"] = name
            self.ear.asked(name, message)
        replies = list(self.inner.send_and_receive(messages, timeout=timeout))
        for reply in reversed(replies):
            self.ear.answered("", reply)
        return replies


def on_wires(tiny: Experiment, folder: Path) -> tuple[RunDirectory, list[int]]:
    run, over = RunDirectory.create(folder, "wire"), list[int]()
    write_plan(check(tiny), run)
    ear = WireEar(tiny, run, over.append)
    train(tiny, run, Wire(InProcessGrid(tiny, run, app), ear), tap_links=False)
    return run, over


FEDAVG = """
training = { algorithm = "fedavg", batch_size = 4, max_local_steps = 2, learning_rate = 0.01 }
server = { evaluate_clients = true, clients_per_round = 2 }
"""
SECURE = 'defenses = [{ name = "secure-aggregation" }]'
NOISE = 'defenses = [{ name = "gaussian-noise", options = { scale = 0.1 } }, { name = "prune" }]'
TLS = 'defenses = [{ name = "tls" }]'


@pytest.mark.parametrize(
    ("adversary", "more"),
    [
        ('threat = "link-tap"', ""),
        ('threat = "uplink-tap"', ""),
        ('threat = "link-tap", victims = [1], rounds = [2]', ""),
        ('threat = "link-tap"', FEDAVG),
        ('threat = "link-tap"', SECURE),
        ('threat = "link-tap"', NOISE),
        ('threat = "link-tap"', TLS),
    ],
    ids=["both ways", "up", "one victim", "fedavg", "secure sum", "defended", "tls"],
)
def test_it_hears_what_a_tap_at_the_server_hears(tmp_path: Path, adversary: str, more: str) -> None:
    tiny = experiment(adversary, more)
    tap = RunDirectory.create(tmp_path, "tap")
    train(tiny, tap, InProcessGrid(tiny, tap, app))

    wire, over = on_wires(tiny, tmp_path)

    assert tap.observation_records() != []
    assert wire.observation_records() == tap.observation_records()
    assert wire.views_sha256() == tap.views_sha256()
    assert over == [1, 2]


def test_a_round_is_over_when_all_have_answered_or_the_next_begins(tmp_path: Path) -> None:
    talk = Talk(tmp_path)

    def train_in(server_round: int, node: int) -> Message:
        config = ConfigRecord({ROUND: server_round})
        content = RecordDict({CONFIG: config, ARRAYS: ArrayRecord()})
        return talk.ask(Message(content, node, "train"))

    first = [train_in(1, node) for node in (1000, 1001, 1002)]
    for asked in first[:2]:
        talk.ear.answered("", Message(Error(1, "no"), reply_to=asked))
    assert talk.over == []  # one does not answer
    second = [train_in(2, node) for node in (1000, 1001, 1002)]
    assert talk.over == [1]
    talk.ear.answered("", Message(Error(1, "no"), reply_to=first[2]))  # too late to count
    for asked in second:
        talk.ear.answered("", Message(Error(1, "no"), reply_to=asked))
    assert talk.over == [1, 2]
    train_in(3, 1000)
    assert talk.over == [1, 2]


def test_without_it_a_server_whose_links_are_tapped_hears_nothing(tmp_path: Path) -> None:
    tiny = experiment('threat = "link-tap"')
    run = RunDirectory.create(tmp_path, "tap")

    train(tiny, run, InProcessGrid(tiny, run, app), tap_links=False)

    assert run.observation_records() == []


class Talk:
    """An ear, and who talks to it out of turn."""

    def __init__(self, folder: Path) -> None:
        tiny = experiment('threat = "link-tap"')
        self.run = RunDirectory.create(folder, "wire")
        write_plan(check(tiny), self.run)
        self.over: list[int] = []
        self.ear = WireEar(tiny, self.run, self.over.append)
        self.grid = InProcessGrid(tiny, self.run, app)
        self.number = 0

    def ask(self, message: Message) -> Message:
        self.number += 1
        message.metadata.__dict__["_message_id"] = str(self.number)
        self.ear.asked(str(self.number), message)
        return message


def test_a_node_plays_no_client_that_there_is_not(tmp_path: Path) -> None:
    talk = Talk(tmp_path)

    for told in (3, -1, "1"):
        asked = talk.ask(Message(RecordDict(), 1000, "query"))
        claim = RecordDict({CONFIG: ConfigRecord({PARTITION: told})})
        talk.ear.answered("", Message(claim, reply_to=asked))

    assert talk.ear.client_of == {}


class Rounds(Talk):
    """A talk of several runs, whose nodes 1000, ... play clients 0, ..."""

    def begin(self, run_id: int) -> None:
        for client in range(3):
            asked = self.ask(self.of(run_id, RecordDict(), 1000 + client, "query"))
            said = RecordDict({CONFIG: ConfigRecord({PARTITION: client})})
            self.ear.answered("", Message(said, reply_to=asked))

    def play(self, run_id: int, server_round: int) -> None:
        config = ConfigRecord({ROUND: server_round})
        content = RecordDict({CONFIG: config, ARRAYS: ArrayRecord()})
        for node in (1000, 1001, 1002):
            asked = self.ask(self.of(run_id, content, node, "train"))
            self.ear.answered("", Message(Error(1, "no"), reply_to=asked))

    def of(self, run_id: int, content: RecordDict, node: int, kind: str) -> Message:
        message = Message(content, node, kind)
        message.metadata.__dict__["_run_id"] = run_id
        return message

    @property
    def kinds(self) -> list[str]:
        return [one["kind"] for one in self.run.events()]


def test_a_run_in_its_middle_is_not_taken_for_the_one_that_begins(tmp_path: Path) -> None:
    talk = Rounds(tmp_path)

    talk.play(run_id=5, server_round=7)
    talk.begin(run_id=6)
    talk.play(run_id=5, server_round=8)
    talk.play(run_id=6, server_round=1)

    assert talk.ear.run_id == 6
    assert talk.ear.client_of == {1000: 0, 1001: 1, 1002: 2}
    assert talk.over == [1]
    assert talk.kinds == ["tap-other-run"]


def test_a_run_that_is_resumed_is_heard_under_its_new_number(tmp_path: Path) -> None:
    talk = Rounds(tmp_path)
    talk.begin(run_id=5)
    talk.play(run_id=5, server_round=1)
    talk.play(run_id=5, server_round=2)

    talk.begin(run_id=6)
    talk.play(run_id=5, server_round=3)
    talk.play(run_id=6, server_round=2)
    talk.play(run_id=6, server_round=3)

    assert talk.ear.run_id == 6
    assert talk.over == [1, 2, 3]
    assert talk.kinds == ["tap-moved-on"]


def test_once_the_run_is_done_no_other_is_written_over_it(tmp_path: Path) -> None:
    talk = Rounds(tmp_path)
    talk.begin(run_id=5)
    talk.play(run_id=5, server_round=1)
    replace_json(talk.run.summary, {"status": "done"})

    for run_id in (6, 7):
        talk.begin(run_id)
        talk.play(run_id, server_round=1)
        talk.play(run_id, server_round=2)

    assert talk.ear.run_id == 5
    assert talk.over == [1]
    assert talk.kinds == ["tap-other-run"]


def test_what_other_apps_say_is_left_out(tmp_path: Path) -> None:
    talk = Rounds(tmp_path)

    talk.ask(talk.of(3, RecordDict(), 1000, "train"))
    talk.ask(talk.of(3, RecordDict({CONFIG: ConfigRecord({ROUND: "one"})}), 1000, "train"))

    assert talk.ear.run_id is None
    assert talk.kinds == ["tap-other-run"]


def test_an_answer_to_what_nobody_asked_or_asked_another_says_nothing(tmp_path: Path) -> None:
    talk = Talk(tmp_path)
    asked = talk.ask(Message(RecordDict(), 1000, "query"))
    claim = RecordDict({CONFIG: ConfigRecord({PARTITION: 1})})
    other = Message(claim, reply_to=asked)
    other.metadata.__dict__["_src_node_id"] = 1001

    talk.ear.answered("", other)
    talk.ear.answered("", Message(Error(1, "no"), reply_to=asked))
    talk.ear.answered("", Message(claim, reply_to=asked))  # its first answer was an error

    assert talk.ear.client_of == {}
