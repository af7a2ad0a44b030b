"""Peers that encrypt what they say: the same training, and a relay that hears sizes alone."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from attacks.observation import Kind
from clients.app import app
from fedsim import peer_wire, sealed_wire
from fedsim.config import Experiment, parse_experiment
from fedsim.end_to_end import Keyring, Where
from fedsim.engines.in_process import InProcessGrid
from fedsim.engines.local import CLIENT_FAILED, FIRST_NODE, failure
from fedsim.errors import ConfigError
from fedsim.files import digest, read_json, read_tensors
from fedsim.records import RunDirectory
from fedsim.stages.isolate import Isolator
from fedsim.views import views_of
from fedsim.wire import CONFIG
from fedsim.wrapped_grid import WrappedGrid
from server import peers

PROTOCOLS = [
    ("gradient-sharing", "ring"),
    ("d-psgd", "ring"),
    ("gradient-tracking", "ring"),
    ("push-sum", "one-peer-exponential"),
    ("gossip", "ring"),
    ("choco", "ring"),
    ("ring-all-reduce", "ring"),
    ("tree-all-reduce", "tree"),
]


def experiment(
    protocol: str = "d-psgd",
    topology: str = "ring",
    *,
    encrypted: bool = True,
    adversary: str = 'threat = "relay"',
    rounds: int = 2,
) -> Experiment:
    return parse_experiment(
        f"""
        name = "tiny"
        rounds = {rounds}
        partition = {{ clients = 4 }}
        model = {{ name = "mlp", options = {{ hidden = [3] }} }}
        training = {{ batch_size = 4, learning_rate = 0.5 }}
        topology = {{ name = "{topology}" }}
        protocol = {{ name = "{protocol}", encrypted = {str(encrypted).lower()} }}
        adversary = {{ {adversary} }}
        """
    )


Change = Callable[[Message], None]


class Meddling(WrappedGrid):
    """A relay that looks at every message before it is delivered, and at every reply."""

    def __init__(self, inner: Grid, down: Change | None = None, up: Change | None = None) -> None:
        super().__init__(inner)
        self.down, self.up = down, up
        self.crash: set[tuple[int, int, int]] = set()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        for message in messages:
            if self.down is not None:
                self.down(message)
            if when(message) in self.crash:
                yield failure(message, CLIENT_FAILED, "out of memory")
                continue
            for reply in self.inner.send_and_receive([message], timeout=timeout):
                if self.up is not None and not reply.has_error():
                    self.up(reply)
                yield reply


def when(message: Message) -> tuple[int, int, int]:
    config = message.content.config_records.get(CONFIG, ConfigRecord())
    number, hop = config.get("server-round", 0), config.get(peer_wire.HOP, -1)
    assert isinstance(number, int)
    assert isinstance(hop, int)
    return number, hop, message.metadata.dst_node_id - FIRST_NODE


def train(tiny: Experiment, folder: Path, **relay: Any) -> RunDirectory:
    run = RunDirectory.create(folder, "tiny")
    peers.train(tiny, run, Meddling(InProcessGrid(tiny, run, app), **relay))
    return run


def weights(run: RunDirectory) -> str:
    tensors, _ = read_tensors(run.checkpoint)
    return digest({name: one for name, one in tensors.items() if name.startswith("weights/")})


def kinds_of_events(run: RunDirectory) -> set[str]:
    return {event["kind"] for event in run.events()}


def reasons(run: RunDirectory) -> list[str]:
    return [event["message"] for event in run.events()]


# what changes, and what does not


@pytest.mark.parametrize(("protocol", "topology"), PROTOCOLS)
def test_encrypted_peers_come_to_the_bits_of_those_that_are_not(
    tmp_path: Path, protocol: str, topology: str
) -> None:
    plain = train(experiment(protocol, topology, encrypted=False), tmp_path / "plain")
    sealed = train(experiment(protocol, topology), tmp_path / "sealed")

    assert sealed.events() == []
    assert weights(sealed) == weights(plain)
    assert [one["messages"] for one in sealed.rounds()[1:]] == [
        one["messages"] for one in plain.rounds()[1:]
    ]


@pytest.mark.parametrize(
    "adversary",
    ['threat = "relay"', 'threat = "link-tap"', 'threat = "link-tap", links = [[0, 1]]'],
)
@pytest.mark.parametrize("protocol", ["d-psgd", "choco", "ring-all-reduce"])
def test_whoever_carries_encrypted_messages_hears_sizes_alone(
    tmp_path: Path, adversary: str, protocol: str
) -> None:
    tiny = experiment(protocol, adversary=adversary)
    run = train(tiny, tmp_path)

    heard = [one for view in (*views_of(run, 1), *views_of(run, 2)) for one in view.messages]
    assert heard
    assert all(one.parcel is None and one.num_bytes > 0 for one in heard)
    assert all(not read_tensors(path)[0] for path in run.views.glob("*.safetensors"))

    Isolator(tiny, run).step(trained=True)
    seen = [run.read_observation(str(one["id"])) for one in run.observation_records()]
    assert seen
    assert {one.kind for one in seen} == {Kind.SIZES_ONLY}


@pytest.mark.parametrize(
    ("protocol", "adversary"),
    [
        ("d-psgd", 'threat = "curious-neighbour"'),
        ("choco", 'threat = "curious-neighbour", peers = [2]'),
        ("ring-all-reduce", 'threat = "coalition", peers = [0, 2]'),
        ("gossip", 'threat = "curious-neighbour"'),
    ],
)
def test_a_curious_neighbour_hears_the_same_bits_as_without_encryption(
    tmp_path: Path, protocol: str, adversary: str
) -> None:
    views = []
    for encrypted in (False, True):
        tiny = experiment(protocol, encrypted=encrypted, adversary=adversary)
        run = train(tiny, tmp_path / str(encrypted))
        views.append({path.name: path.read_bytes() for path in sorted(run.views.iterdir())})

    assert views[0]
    assert views[1] == views[0]


def test_an_active_neighbour_still_hears_the_others_before_it_speaks(tmp_path: Path) -> None:
    adversary = 'threat = "active-neighbour", victims = [1]'
    plain = train(experiment(encrypted=False, adversary=adversary), tmp_path / "plain")
    sealed = train(experiment(adversary=adversary), tmp_path / "sealed")
    honest = train(experiment(), tmp_path / "honest")

    assert weights(sealed) == weights(plain) != weights(honest)


def test_no_byte_of_a_model_or_of_its_name_crosses_the_relay(tmp_path: Path) -> None:
    carried: list[bytes] = []

    def look(message: Message) -> None:
        if peer_wire.STEP in message.metadata.message_type:
            for name, record in message.content.array_records.items():
                assert name.startswith("parcel-")
                carried.extend(array.data for array in record.values())
            for name, config in message.content.config_records.items():
                if name.startswith("about-"):
                    assert set(config) <= {
                        "kind",
                        "to",
                        "sender",
                        "said-in-round",
                        "said-in-hop",
                        "summed",
                    }
                    assert config["kind"] == "sealed"

    run = train(experiment(), tmp_path, down=look, up=look)

    assert run.events() == []
    assert carried
    assert not any(b"model" in one or b"float32" in one for one in carried)
    assert len(set(carried)) >= 16  # each is for one receiver, under a nonce of its own


def test_two_runs_of_one_experiment_have_the_same_weights_and_other_ciphertexts(
    tmp_path: Path,
) -> None:
    said: list[list[bytes]] = [[], []]

    def note(place: int) -> Change:
        def look(message: Message) -> None:
            for record in message.content.array_records.values():
                said[place].extend(
                    array.data for name, array in record.items() if name == peer_wire.SEALED
                )

        return look

    first = train(experiment(), tmp_path / "first", up=note(0))
    second = train(experiment(), tmp_path / "second", up=note(1))

    assert weights(first) == weights(second)
    assert len(said[0]) == len(said[1]) == 16
    assert not set(said[0]) & set(said[1])


def test_the_keys_of_peers_are_for_their_owner_alone(tmp_path: Path) -> None:
    run = train(experiment(), tmp_path)

    files = sorted(run.memory.glob("keys-client-*.json"))
    assert len(files) == 4
    assert run.memory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    secrets = {read_json(path)["secret"] for path in files}
    assert len(secrets) == 4
    elsewhere = [path for path in run.root.rglob("*") if path.is_file() and path not in files]
    for secret in secrets:
        raw = bytes.fromhex(secret)
        for path in elsewhere:
            content = path.read_bytes()
            assert secret.encode() not in content
            assert raw not in content


def test_encryption_without_peers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"protocol\.encrypted is for peers"):
        parse_experiment('name = "x"\nprotocol.encrypted = true')


# a relay that meddles


def parcels_for(message: Message) -> list[str]:
    return [name for name in message.content.array_records if name.startswith("parcel-")]


def flipped(record: ArrayRecord) -> ArrayRecord:
    array = record[peer_wire.SEALED]
    data = bytearray(array.data)
    data[len(data) // 2] ^= 1
    return ArrayRecord(
        {peer_wire.SEALED: Array(array.dtype, tuple(array.shape), array.stype, bytes(data))}
    )


def test_a_flipped_bit_is_refused_and_the_round_goes_on(tmp_path: Path) -> None:
    def flip(message: Message) -> None:
        if when(message) == (2, 1, 1):
            name = parcels_for(message)[0]
            message.content[name] = flipped(message.content.array_records[name])

    run = train(experiment(rounds=3), tmp_path, down=flip)

    (event,) = run.events()
    assert event["kind"] == "message-refused"
    assert event["client"] == 1
    assert "it was changed on its way" in event["message"]
    assert [one["rejected"] for one in run.rounds()[1:]] == [0, 1, 0]
    assert all(one["clients"] == [0, 1, 2, 3] for one in run.rounds()[1:])


def test_a_collective_begins_again_without_whose_messages_are_changed(tmp_path: Path) -> None:
    done: list[bool] = []

    def flip(message: Message) -> None:
        if when(message) == (1, 2, 1) and not done:
            done.append(True)
            name = parcels_for(message)[0]
            message.content[name] = flipped(message.content.array_records[name])

    run = train(experiment("ring-all-reduce", rounds=3), tmp_path, down=flip)

    assert kinds_of_events(run) == {"message-refused", "begun-again", "caught-up"}
    assert run.rounds()[-1]["consensus_distance"] == pytest.approx(0, abs=1e-5)


def about_of(message: Message, name: str) -> Any:
    return message.content.config_records["about-" + name.removeprefix("parcel-")]


@pytest.mark.parametrize("renamed", [True, False])
def test_a_replayed_message_is_refused(tmp_path: Path, renamed: bool) -> None:
    kept: list[Any] = []

    def replay(message: Message) -> None:
        if when(message) == (1, 1, 1):
            name = parcels_for(message)[0]
            kept.append((message.content.array_records[name], dict(about_of(message, name))))
        if when(message) == (2, 1, 1):
            name = parcels_for(message)[0]
            message.content[name] = kept[0][0]
            about = about_of(message, name)
            assert about["sender"] == kept[0][1]["sender"]
            if not renamed:  # the relay is honest about when it was said
                about["said-in-round"] = 1

    run = train(experiment(), tmp_path, down=replay)

    expected = "it was changed on its way" if renamed else "it was said in round 1, hop 0"
    assert len(run.events()) == 1
    assert expected in reasons(run)[0]


def test_a_message_that_comes_twice_is_heard_once(tmp_path: Path) -> None:
    def double(message: Message) -> None:
        if when(message) == (2, 1, 1):
            name = parcels_for(message)[0]
            message.content["parcel-900"] = message.content.array_records[name]
            message.content["about-900"] = about_of(message, name)

    once = train(experiment(), tmp_path / "once")
    twice = train(experiment(), tmp_path / "twice", down=double)

    assert "it came twice" in reasons(twice)[0]
    assert weights(twice) == weights(once)


def test_a_message_for_another_peer_is_refused(tmp_path: Path) -> None:
    kept: list[Any] = []

    def readdress(message: Message) -> None:
        number, hop, peer = when(message)
        if (number, hop) != (2, 1):
            return
        if peer == 0:  # what peer 1 told peer 0 is given to peer 2
            name = next(n for n in parcels_for(message) if about_of(message, n)["sender"] == 1)
            kept.append(message.content.array_records[name])
        if peer == 2:
            name = next(n for n in parcels_for(message) if about_of(message, n)["sender"] == 1)
            message.content[name] = kept[0]

    run = train(experiment(), tmp_path, down=readdress)

    assert ["encrypted for another peer" in one for one in reasons(run)] == [True]


def test_a_message_of_another_run_is_refused(tmp_path: Path) -> None:
    kept: list[Any] = []

    def keep(message: Message) -> None:
        if when(message) == (1, 1, 1):
            kept.append(message.content.array_records[parcels_for(message)[0]])

    def cross(message: Message) -> None:
        if when(message) == (1, 1, 1):
            message.content[parcels_for(message)[0]] = kept[0]

    train(experiment(), tmp_path / "one", down=keep)
    run = train(experiment(), tmp_path / "other", down=cross)

    assert ["round, hop or run" in one for one in reasons(run)] == [True]


def test_a_message_that_is_not_encrypted_is_refused(tmp_path: Path) -> None:
    plain: list[Any] = []

    def keep(message: Message) -> None:
        if when(message) == (1, 1, 1):
            name = parcels_for(message)[0]
            plain.append((message.content.array_records[name], about_of(message, name)))

    def downgrade(message: Message) -> None:
        if when(message) == (1, 1, 1):
            message.content["parcel-000"], message.content["about-000"] = plain[0]

    train(experiment(encrypted=False), tmp_path / "plain", down=keep)
    run = train(experiment(), tmp_path / "sealed", down=downgrade)

    assert ["it is not encrypted" in one for one in reasons(run)] == [True]


def test_keys_that_change_in_the_middle_are_refused(tmp_path: Path) -> None:
    tiny = experiment(rounds=2)
    run = train(experiment(rounds=1), tmp_path)

    def another_key(message: Message) -> None:
        if sealed_wire.MEET in message.metadata.message_type and when(message)[2] == 1:
            message.content = RecordDict(dict(message.content))  # the relay made one for all
            keys = sealed_wire.roster_of(message.content)
            keys[0] = bytes(range(32))
            sealed_wire.put_roster(message.content, keys)

    before = (run.memory / "keys-client-1.json").read_text()
    peers.train(tiny, run, Meddling(InProcessGrid(tiny, run, app), down=another_key))

    assert ["that of peer 0 is another than before" in one for one in reasons(run)] == [True]
    assert (run.memory / "keys-client-1.json").read_text() == before
    assert run.rounds()[-1]["clients"] == [0, 1, 2, 3]  # the keys known before still do


def test_a_peer_notices_that_the_relay_gives_out_another_key_as_its_own(tmp_path: Path) -> None:
    def in_the_middle(message: Message) -> None:
        if sealed_wire.MEET in message.metadata.message_type:
            keys = sealed_wire.roster_of(message.content)
            keys[1] = bytes(range(32))
            sealed_wire.put_roster(message.content, keys)

    run = train(experiment(rounds=1), tmp_path, down=in_the_middle)

    assert any("this peer's own is another" in one for one in reasons(run))


# peers that fail


def test_a_peer_that_missed_a_round_begins_anew_from_an_encrypted_model(tmp_path: Path) -> None:
    models: list[Any] = []

    def look(message: Message) -> None:
        if peer_wire.ADOPT in message.metadata.message_type:
            models.append(message.content.array_records["parcel-000"])

    tiny = experiment("ring-all-reduce", rounds=3)
    run = RunDirectory.create(tmp_path, "tiny")
    grid = Meddling(InProcessGrid(tiny, run, app), down=look)
    grid.crash = {(1, 1, 2)}
    peers.train(tiny, run, grid)

    assert {"begun-again", "caught-up"} <= kinds_of_events(run)
    assert "message-refused" not in kinds_of_events(run)
    assert [set(one) for one in models] == [{peer_wire.SEALED}]
    assert run.rounds()[-1]["clients"] == [0, 1, 2, 3]


def test_what_comes_late_is_still_read_and_a_run_that_is_resumed_has_the_same_bits(
    tmp_path: Path,
) -> None:
    ends = []
    for encrypted in (False, True):
        run = RunDirectory.create(tmp_path / str(encrypted), "tiny")
        for rounds in (2, 4):  # the peer is back after the run was resumed
            tiny = experiment("choco", encrypted=encrypted, rounds=rounds)
            grid = Meddling(InProcessGrid(tiny, run, app))
            grid.crash = {(2, 1, 1)}
            peers.train(tiny, run, grid)
        assert "message-refused" not in kinds_of_events(run)
        ends.append(weights(run))

    assert ends[0] == ends[1]


def test_a_peer_that_told_no_key_is_asked_again_in_the_next_round(tmp_path: Path) -> None:
    tiny = experiment(rounds=2)
    run = RunDirectory.create(tmp_path, "tiny")
    failed: list[bool] = []

    class Busy(Meddling):
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            for message in messages:
                asks = sealed_wire.TELL_KEY in message.metadata.message_type
                if asks and when(message)[2] == 3 and not failed:
                    failed.append(True)
                    yield failure(message, CLIENT_FAILED, "busy")
                else:
                    yield from super().send_and_receive([message], timeout=timeout)

    peers.train(tiny, run, Busy(InProcessGrid(tiny, run, app)))

    assert [one["clients"] for one in run.rounds()[1:]] == [[0, 1, 2], [0, 1, 2, 3]]


# what a hostile peer may put inside


@pytest.mark.parametrize(
    "inside",
    [
        b"",
        b"\x00\x00\x00\x02{}",
        b"\xff\xff\xff\xff{}",
        b"\x00\x00\x00\x04null",
        b"\x00\x00\xff\xff" + b"[" * 0xFFFF,
        b'\x00\x00\x00\x23{"place":0,"about":{},"arrays":[1]}',
        b'\x00\x00\x00\x46{"place":0,"about":{},"arrays":[["a","f4",[1],"numpy.ndarray",999999]]}',
        b'\x00\x00\x00\x3f{"place":0,"about":{"kind":[[]]},"arrays":[["a","f4",[-1],"x",0]]}',
    ],
)
def test_what_is_encrypted_and_no_parcel_is_refused(tmp_path: Path, inside: bytes) -> None:
    tiny = experiment(rounds=2)
    run = RunDirectory.create(tmp_path, "tiny")

    def lie(reply: Message) -> None:
        if reply.metadata.src_node_id - FIRST_NODE != 0 or parcels_for(reply) == []:
            return
        ring = Keyring.from_json((run.memory / "keys-client-0.json").read_text())
        where = Where(purpose="hop", round=len(run.rounds()), hop=0)
        for name in parcels_for(reply):
            (receiver,) = about_of(reply, name)["to"]
            sealed = np.frombuffer(ring.seal(inside, receiver, where), dtype=np.uint8)
            reply.content[name] = ArrayRecord({peer_wire.SEALED: Array(sealed)})

    peers.train(tiny, run, Meddling(InProcessGrid(tiny, run, app), up=lie))

    assert kinds_of_events(run) == {"message-refused"}
    assert all("what was encrypted is no parcel" in one for one in reasons(run))
    assert len(run.rounds()) == 3
