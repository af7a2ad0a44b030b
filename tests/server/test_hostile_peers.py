"""Peers that say what no protocol says: they spoil a round for nobody but themselves."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from clients.app import app
from clients.local_training import local_update
from fedsim import peer_wire
from fedsim.config import Experiment, parse_experiment
from fedsim.engines.in_process import InProcessGrid
from fedsim.engines.local import CLIENT_FAILED, FIRST_NODE, failure
from fedsim.equations import Equations
from fedsim.files import read_tensors
from fedsim.peers import federation_of
from fedsim.records import RunDirectory
from fedsim.wire import CONFIG, to_record, to_tensors
from fedsim.wrapped_grid import WrappedGrid
from server import peers

LIAR = 1
NUM_PEERS = 5

Lie = Callable[[Any], None]
"""Changes the content of a reply in place."""


def experiment(protocol: str, topology: str = "ring", adversary: str = "") -> Experiment:
    return parse_experiment(
        f"""
        name = "tiny"
        rounds = 3
        partition = {{ clients = {NUM_PEERS} }}
        model = {{ name = "mlp", options = {{ hidden = [6] }} }}
        training = {{ batch_size = 4, learning_rate = 0.5 }}
        topology = {{ name = "{topology}" }}
        protocol = {{ name = "{protocol}" }}
        adversary = {{ {adversary or 'threat = "relay"'} }}
        """
    )


class Lying(WrappedGrid):
    """A grid on which one peer lies in one hop of round 2, and others may crash in hops."""

    def __init__(
        self, inner: Grid, hop: int, lie: Lie, *, crash: tuple[int, int, int] | None = None
    ) -> None:
        super().__init__(inner)
        self.hop, self.lie, self.crash = hop, lie, crash

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        for message in messages:
            peer = message.metadata.dst_node_id - FIRST_NODE
            place = None
            if message.metadata.message_type == peers.STEP:
                config = message.content.config_records[CONFIG]
                place = config["server-round"], config[peer_wire.HOP], peer
            if place is not None and place == self.crash:
                yield failure(message, CLIENT_FAILED, "out of memory")
                continue
            (reply,) = self.inner.send_and_receive([message], timeout=timeout)
            if place == (2, self.hop, LIAR):
                self.lie(reply.content)
            yield reply


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """An empty run directory."""
    return RunDirectory.create(tmp_path, "tiny")


def played(
    tiny: Experiment,
    run: RunDirectory,
    hop: int,
    lie: Lie,
    *,
    crash: tuple[int, int, int] | None = None,
) -> list[Any]:
    """Play a run with a lie in it; return the rounds."""
    peers.train(tiny, run, Lying(InProcessGrid(tiny, run, app), hop, lie, crash=crash))
    return list(run.rounds())


def says(**values: Any) -> Lie:
    """A lie about what a parcel is."""

    def lie(content: Any) -> None:
        content.config_records["about-000"].update(values)

    return lie


def first_entries(**values: Any) -> Lie:
    """One number in place of a whole vector, and a claim that it is as it should be."""

    def lie(content: Any) -> None:
        tensors = to_tensors(content.array_records["parcel-000"])
        content["parcel-000"] = to_record({name: one[:1] for name, one in tensors.items()})
        says(**values)(content)

    return lie


SIZE = 64 * 6 + 6 + 6 * 10 + 10
"""D of the model."""


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(first_entries(**{"chunk": 0, "num-chunks": SIZE}), id="one entry as a chunk"),
        pytest.param(says(**{"chunk": 0, "num-chunks": 1}), id="all as one chunk"),
        pytest.param(says(chunk="0"), id="chunk is text"),
        pytest.param(says(kind=7), id="kind is a number"),
        pytest.param(says(chunk=b"0"), id="chunk is bytes"),
    ],
)
def test_a_message_of_a_wrong_form_is_refused_by_whoever_hears_it(
    run: RunDirectory, lie: Lie
) -> None:
    found = played(experiment("d-psgd"), run, 0, lie)

    assert [(one["kind"], one["client"]) for one in run.events()] == [
        ("message-refused", 0),
        ("message-refused", 2),
    ]
    assert found[2]["failed"] == []
    assert found[2]["rejected"] == 2


@pytest.mark.parametrize("shape", [(-5,), (2, 5)])
def test_sparse_changes_of_no_shape_are_refused(run: RunDirectory, shape: tuple[Any, ...]) -> None:
    def lie(content: Any) -> None:
        record = content.array_records["parcel-000"]
        values = record["values"]
        record["values"] = Array(values.dtype, shape, values.stype, values.data)

    found = played(experiment("choco"), run, 0, lie)

    assert {one["kind"] for one in run.events()} == {"message-refused"}
    assert found[2]["failed"] == []


@pytest.mark.parametrize("mass", [0.0, -1.0])
def test_mass_that_is_not_above_zero_is_refused(run: RunDirectory, mass: float) -> None:
    def lie(content: Any) -> None:
        tensors = to_tensors(content.array_records["parcel-000"])
        content["parcel-000"] = to_record(tensors | {"mass": torch.tensor([mass]).double()})

    found = played(experiment("push-sum"), run, 0, lie)

    assert {one["kind"] for one in run.events()} == {"message-refused"}
    assert found[2]["rejected"] == 2


@pytest.mark.parametrize(
    ("protocol", "topology", "hop"),
    [
        ("ring-all-reduce", "ring", 1),
        ("ring-all-reduce", "ring", 5),
        ("tree-all-reduce", "star", 1),
    ],
)
@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(first_entries(**{"chunk": SIZE - 1, "num-chunks": SIZE}), id="one entry"),
        pytest.param(says(**{"chunk": 4, "num-chunks": NUM_PEERS}), id="another chunk"),
        pytest.param(says(summed=[0, 1, 2, 3, 4, 99]), id="strangers summed"),
        pytest.param(says(summed=[]), id="nobody summed"),
        pytest.param(says(kind="model"), id="another kind"),
        pytest.param(peer_wire.take_posts, id="nothing"),
    ],
)
def test_a_collective_leaves_out_who_says_what_it_must_not_and_nobody_else(
    run: RunDirectory, protocol: str, topology: str, hop: int, lie: Lie
) -> None:
    tiny = experiment(protocol, topology)

    found = played(tiny, run, hop, lie)

    assert found[2]["failed"] == [LIAR]
    assert found[3]["failed"] == []
    assert found[3]["consensus_distance"] == 0
    heard = Equations(federation=federation_of(tiny), run=run)
    for number in (1, 2, 3):
        heard.take(number)
    assert heard.vectors()


@pytest.mark.parametrize(
    "refusal",
    [
        {"refused": 3, "reasons": ["why"]},
        {"refused": [0], "reasons": 5},
        {"refused": [99] * 5000, "reasons": ["why"] * 5000},
        {"refused": [0] * 5000, "reasons": ["why" * 5000] * 5000},
        {"refused": [0], "reasons": [b"why"]},
    ],
)
def test_the_relay_outlives_what_a_peer_says_that_it_refused(
    run: RunDirectory, refusal: dict[str, Any]
) -> None:
    def lie(content: Any) -> None:
        content[CONFIG] = ConfigRecord({**content.config_records[CONFIG], **refusal})

    found = played(experiment("d-psgd"), run, 1, lie)

    assert found[-1]["round"] == 3
    assert len(run.events()) <= 2 * NUM_PEERS
    assert all(len(one["message"]) < 1000 for one in run.events())


def test_a_peer_cannot_have_those_left_out_who_never_speak_to_it(run: RunDirectory) -> None:
    refusals: list[dict[str, Any]] = [{"refused": [0, 2, 3, 4], "reasons": ["why"] * 4}]

    def lie(content: Any) -> None:
        refusal = refusals.pop() if refusals else {}  # once: then the ring is closed anew
        content[CONFIG] = ConfigRecord({**content.config_records[CONFIG], **refusal})

    found = played(experiment("ring-all-reduce"), run, 2, lie)

    assert found[2]["failed"] == [0, 2]


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(says(more=b"bytes"), id="bytes beside it"),
        pytest.param(
            lambda content: content.array_records["parcel-000"].update(
                mass=Array("float64", (1,), "numpy.ndarray", b"garbage")
            ),
            id="no tensor",
        ),
    ],
)
def test_what_waits_for_a_peer_that_failed_cannot_end_the_run(run: RunDirectory, lie: Lie) -> None:
    found = played(experiment("push-sum"), run, 0, lie, crash=(2, 1, 0))

    assert found[-1]["round"] == 3
    assert found[3]["failed"] == []


def test_a_peer_that_tells_no_model_to_one_that_begins_anew_does_not_end_the_run(
    run: RunDirectory,
) -> None:
    tiny = experiment("ring-all-reduce")

    class Silent(Lying):
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            messages = list(messages)
            alone = len(messages) == 1 and messages[0].metadata.message_type == peers.REPORT
            for reply in super().send_and_receive(messages, timeout=timeout):
                if alone:
                    reply.content["model"] = ArrayRecord({})
                    del reply.content["model"]
                yield reply

    grid = Silent(InProcessGrid(tiny, run, app), 99, lambda _: None, crash=(2, 0, 3))

    peers.train(tiny, run, grid)

    assert [one["kind"] for one in run.events()] == ["client-failed", "update-rejected"]
    assert run.rounds()[3]["clients"] == [0, 1, 2, 4]


def test_defenses_do_not_remember_an_update_that_is_no_number(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = parse_experiment(
        """
        name = "tiny"
        rounds = 3
        partition = { clients = 3 }
        model = { name = "mlp", options = { hidden = [6] } }
        topology = { name = "ring" }
        protocol = { name = "d-psgd" }
        [[defenses]]
        name = "dgc"
        """
    )

    def diverging(*args: Any, server_round: int, client: int, **more: Any) -> Any:
        update = local_update(*args, server_round=server_round, client=client, **more)
        if (server_round, client) == (2, 1):
            for tensor in update.tensors.values():
                tensor.fill_(torch.nan)
        return update

    monkeypatch.setattr("clients.peer.local_update", diverging)

    peers.train(tiny, run, InProcessGrid(tiny, run, app))

    assert [one["failed"] for one in run.rounds()[1:]] == [[], [1], []]
    for path in (run.memory / "client-1").glob("*.safetensors"):
        assert all(torch.isfinite(one).all() for one in read_tensors(path)[0].values())


def test_what_is_said_to_one_peer_many_times_over_is_heard_once(run: RunDirectory) -> None:
    def lie(content: Any) -> None:
        says(to=[0] * 50 + [2] * 50)(content)
        for place in range(1, 20):
            content[f"about-{place:03d}"] = content.config_records["about-000"]
            content[f"parcel-{place:03d}"] = content.array_records["parcel-000"]

    found = played(experiment("push-sum"), run, 0, lie)

    assert [one["messages"] for one in found[1:]] == [10, 10, 10]
    paths = run.memory.glob("client-*-peer/round-00003.safetensors")
    masses = [read_tensors(path)[0]["state/mass"] for path in paths]
    assert float(sum(masses)) == pytest.approx(NUM_PEERS, abs=1e-12)


def test_numbers_of_examples_beyond_any_data_set_are_refused_and_do_not_end_the_run(
    run: RunDirectory,
) -> None:
    def lie(content: Any) -> None:
        content.metric_records["metrics"]["num-examples"] = 1e308

    class Twice(Lying):
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            for reply in super().send_and_receive(messages, timeout=timeout):
                if reply.content.metric_records:
                    lie(reply.content)
                yield reply

    tiny = experiment("d-psgd")
    peers.train(tiny, run, Twice(InProcessGrid(tiny, run, app), 0, lie))

    assert [one["train_loss"] for one in run.rounds()[1:]] == [None] * 3
    assert {event["kind"] for event in run.events()} == {"update-rejected"}
    assert "'num-examples' must be at most" in run.events()[0]["message"]


def test_long_words_of_a_peer_are_cut(run: RunDirectory) -> None:
    def lie(content: Any) -> None:
        content["x" * 100_000] = content.metric_records["metrics"]

    played(experiment("d-psgd"), run, 0, lie)

    (event,) = run.events()
    assert event["kind"] == "update-rejected"
    assert len(event["message"]) < 1000


def test_a_tap_that_hears_a_sum_over_strangers_makes_nothing_of_it(run: RunDirectory) -> None:
    tiny = experiment("ring-all-reduce", adversary='threat = "link-tap", links = [[1, 2]]')
    played(tiny, run, 5, says(summed=[0, 1, 2, 3, 99]))

    heard = Equations(federation=federation_of(tiny), run=run)
    for number in (1, 2, 3):
        heard.take(number)

    assert heard.heard[3]
