"""Messages, rebuilt from what crosses between nodes and SuperLink."""

import json
import random
from collections.abc import Iterable
from hashlib import sha256

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest
from flwr.supercore.inflatable.inflatable_object import get_object_tree

from fedsim.deployment.bundles import SMALL, bundle
from fedsim.engines.flower_private import assume_server_identity
from fedsim.proxy.rebuild import BESIDE, Objects, Rebuilder
from tests.fedsim.proxy import traffic_maker as maker
from tests.fedsim.proxy.traffic_maker import Call


class Heard:
    """A rebuilder, and what it told."""

    def __init__(self, memory: int = 2**24, largest: int = 2**24) -> None:
        self.down: list[tuple[str, Message]] = []
        self.up: list[tuple[str, Message]] = []
        self.notes: list[tuple[str, str]] = []
        self.rebuild = Rebuilder(
            lambda name, message: self.down.append((name, message)),
            lambda name, message: self.up.append((name, message)),
            lambda kind, text: self.notes.append((kind, text)),
            memory=memory,
            largest=largest,
        )

    def hear(self, calls: Iterable[Call], status: int = 200) -> "Heard":
        for call in calls:
            self.rebuild.hear(maker.exchange(call, status))
        return self


@pytest.fixture(autouse=True)
def _server() -> None:
    assume_server_identity(1)


def content(seed: int = 0, size: int = 3) -> RecordDict:
    """Everything that a message may hold."""
    rng = np.random.default_rng(seed)
    awkward = np.array([np.nan, -0.0, np.inf], dtype=np.float32)
    arrays = {
        "z.weight": Array(rng.normal(size=size).astype(np.float32)),
        "a.bias": Array(awkward),
        "packed": Array("float32", (3,), "own", b"\x00\xff"),
    }
    return RecordDict(
        {
            "metrics": MetricRecord({"loss": 0.1, "counts": [1, 2]}),
            "arrays": ArrayRecord(arrays),
            "config": ConfigRecord({"round": 3, "raw": b"\x00", "names": ["b", "a"]}),
        }
    )


def question(seed: int = 0, node: int = 7, *, size: int = 3, bundled: bool = False) -> Message:
    held = content(seed, size)
    return Message(bundle(held) if bundled else held, node, "train", group_id="3")


def answer(asked: Message, seed: int = 1, *, size: int = 3, bundled: bool = False) -> Message:
    asked.metadata.__dict__["_message_id"] = asked.object_id  # as the SuperLink stamps it
    held = content(seed, size)
    return Message(bundle(held) if bundled else held, reply_to=asked)


def bits(content: RecordDict) -> list[object]:
    """Everything in it, in order."""
    arrays = [
        (name, key, one.dtype, tuple(one.shape), one.stype, one.data)
        for name, part in content.array_records.items()
        for key, one in part.items()
    ]
    metrics = [(name, list(part.items())) for name, part in content.metric_records.items()]
    config = [(name, list(part.items())) for name, part in content.config_records.items()]
    return [list(content), arrays, metrics, config]


@pytest.mark.parametrize("bundled", [False, True], ids=["as it is", "in a bundle"])
@pytest.mark.parametrize("size", [3, SMALL], ids=["small", "in pieces"])
def test_what_is_rebuilt_is_what_was_sent_to_the_last_bit(bundled: bool, size: int) -> None:
    asked = question(size=size, bundled=bundled)
    said = answer(asked, size=size, bundled=bundled)
    heard = Heard()

    heard.hear([*maker.to_node(asked), *maker.from_node(said)])

    ((down_name, down),), ((up_name, up),) = heard.down, heard.up
    assert (down_name, up_name) == (asked.object_id, said.object_id)
    assert bits(down.content) == bits(content(0, size))
    assert bits(up.content) == bits(content(1, size))
    assert (down.metadata.dst_node_id, down.metadata.message_type) == (7, "train")
    assert up.metadata.src_node_id == 7
    assert up.metadata.reply_to_message_id == down_name
    assert heard.notes == []


def test_parts_may_come_in_any_order_among_those_of_others() -> None:
    asked = [question(node, node) for node in range(5)]
    calls = [call for one in asked for call in maker.to_node(one)]

    for seed in range(5):
        first = [one for one in calls if one[0].endswith("messages")]
        rest = [one for one in calls if not one[0].endswith("messages")]
        random.Random(seed).shuffle(rest)
        heard = Heard().hear([*first, *rest])
        assert {name for name, _ in heard.down} == {one.object_id for one in asked}


def test_what_was_sent_once_is_not_sent_again() -> None:
    asked = question()
    other = question(node=8)  # the same content for another node
    heard = Heard().hear(maker.to_node(asked))

    heard.hear(maker.to_node(other, lacks=[other.object_id]))
    echo = Message(content(0), reply_to=asked)
    heard.hear(maker.from_node(echo, lacks=[echo.object_id]))

    assert [one.metadata.dst_node_id for _, one in heard.down] == [7, 8]
    assert bits(heard.up[0][1].content) == bits(content(0))
    # and what all nodes are sent is unpacked once
    assert heard.down[0][1].content is heard.down[1][1].content


def test_a_message_of_which_a_part_is_missing_is_not_heard() -> None:
    asked = question()
    calls = maker.to_node(asked)

    assert Heard().hear(calls[:-1]).down == []
    assert Heard().hear(calls, status=500).down == []


def test_an_object_that_is_not_what_its_name_says_is_refused() -> None:
    asked = question()
    path, request, _ = maker.to_node(asked)[-1]
    forged = maker.to_node(question(9))[-1][2]
    heard = Heard().hear(maker.to_node(asked)[:-1])

    heard.hear([(path, request, forged)])

    assert heard.down == []
    assert heard.notes[0][0] == "tap-unreadable"
    assert "not what its name says" in heard.notes[0][1]


def test_only_so_many_bytes_are_remembered() -> None:
    objects = Objects(10 * BESIDE)

    for number in range(50):
        objects.put(str(number), bytes(30))
    objects.put("huge", bytes(10 * BESIDE))

    assert objects.held <= 10 * BESIDE
    assert sum(str(number) in objects for number in range(50)) == 9  # names take room as well
    assert "49" in objects
    assert "0" not in objects
    assert "huge" not in objects


@pytest.mark.parametrize(
    "name", ["a" * 10_000_000, "a" * 63, "g" * 64, "A" * 64, "", "a" * 64 + "\n"]
)
def test_names_that_no_object_can_have_are_noted_and_not_kept(name: str) -> None:
    tree = ObjectTree(object_id="0" * 64, children=[ObjectTree(object_id=name)])
    announced = PushMessagesRequest(message_object_trees=[tree]).SerializeToString()

    heard = Heard().hear([("/v1/fleet/push-messages", announced, b"")])

    assert [kind for kind, _ in heard.notes] == ["tap-unreadable"]
    assert "no name of an object" in heard.notes[0][1]
    assert not heard.rebuild._open


def test_what_was_forgotten_is_noted_when_it_is_needed() -> None:
    asked = question(size=1000)
    heard = Heard(memory=5000).hear(maker.to_node(asked)[:-1])

    heard.hear(call for seed in range(5) for call in maker.to_node(question(seed + 5, size=1000)))
    heard.hear(maker.to_node(asked)[-1:])

    assert ("tap-unreadable", "ValueError") in [
        (kind, text.split(": ")[1]) for kind, text in heard.notes
    ]


def pushed(name: str, held: bytes) -> Call:
    request = PushObjectRequest(object_id=name, object_content=held)
    return ("/v1/fleet/push-object", request.SerializeToString(), b"")


def put(kind: str, children: list[str], body: bytes) -> tuple[str, bytes]:
    held = f"{kind} {','.join(children)} {len(body)}".encode() + b"\x00" + body
    return sha256(held).hexdigest(), held


def bomb() -> list[Call]:
    """A message whose one array names one chunk a hundred million times... in few bytes."""
    said = answer(question())
    objects = dict(maker.objects_of(said))
    chunk = put("ArrayChunk", [], bytes(1_000_000))
    told = {"dtype": "float32", "shape": [3], "stype": "x", "arraychunk_ids": [0] * 100_000}
    array = put("Array", [chunk[0]], json.dumps(told).encode())
    record = put("ArrayRecord", [array[0]], json.dumps({"w": array[0]}).encode())
    held = put("RecordDict", [record[0]], json.dumps({"arrays": record[0]}).encode())
    body = objects[said.object_id].partition(b"\x00")[2]
    root = put("Message", [held[0]], body)
    tree = ObjectTree(
        object_id=root[0],
        children=[ObjectTree(object_id=one[0]) for one in (held, record, array, chunk)],
    )
    announced = PushMessagesRequest(message_object_trees=[tree]).SerializeToString()
    return [
        ("/v1/fleet/push-messages", announced, b""),
        *(pushed(*one) for one in (chunk, array, record, held, root)),
    ]


def test_few_bytes_cannot_make_room_for_many() -> None:
    heard = Heard().hear(bomb())

    assert heard.up == []
    assert "arrays of more than" in heard.notes[0][1]


def test_a_message_that_cannot_be_rebuilt_spoils_no_other() -> None:
    asked = question()
    shared, *_ = maker.objects_of(asked)
    bad = put("Message", [shared], b"\xff\xff")
    tree = ObjectTree(object_id=bad[0], children=[ObjectTree(object_id=shared)])
    announced = PushMessagesRequest(message_object_trees=[tree]).SerializeToString()
    heard = Heard().hear([("/v1/fleet/push-messages", announced, b""), pushed(*bad)])

    heard.hear(maker.to_node(asked))  # its first object completes the other as well

    assert [name for name, _ in heard.down] == [asked.object_id]
    assert [kind for kind, _ in heard.notes] == ["tap-unreadable"]


def test_who_tells_of_a_message_that_it_has_other_parts_does_not_hide_it() -> None:
    asked = question()
    tree = get_object_tree(asked)
    tree.children.append(ObjectTree(object_id="0" * 64))
    forged = PushMessagesRequest(message_object_trees=[tree]).SerializeToString()
    heard = Heard().hear([("/v1/fleet/push-messages", forged, b"")])

    heard.hear(maker.to_node(asked))

    assert [name for name, _ in heard.down] == [asked.object_id]
    assert heard.up == []


def test_an_ear_that_fails_is_noted_and_the_next_message_is_heard() -> None:
    heard, failures = Heard(), [OSError(28, "No space left on device"), KeyError("arrays")]

    def fail(_name: str, _message: Message) -> None:
        raise failures.pop(0)

    heard.rebuild.asked = fail
    heard.hear(call for node in (1, 2) for call in maker.to_node(question(node, node)))

    assert heard.notes == [
        ("tap-lost", "what was heard cannot be written: No space left on device"),
        ("tap-unreadable", "a message: KeyError: \"'arrays'\""),
    ]


def test_what_strangers_push_is_read_or_noted_and_never_raises() -> None:
    rng = random.Random(3)
    asked = question()
    calls = [*maker.to_node(asked), *maker.from_node(answer(asked, bundled=True)), *bomb()[:1]]
    heard = Heard(memory=2**20, largest=2**20)

    for _ in range(3000):
        path, request, response = rng.choice(calls)
        heard.hear([(path, mutated(request, rng), mutated(response, rng))])
    names_fit = 0
    for _ in range(2000):  # objects whose names fit, so that what they hold is looked at
        _, children = rng.choice(list(maker.objects_of(asked).items()))
        held = mutated(children, rng)
        name = sha256(held).hexdigest()
        tree = get_object_tree(asked)
        tree.object_id = name
        told = PushMessagesRequest(message_object_trees=[tree]).SerializeToString()
        heard.hear([("/v1/fleet/push-messages", told, b""), pushed(name, held)])
        names_fit += 1

    assert names_fit == 2000
    assert {kind for kind, _ in heard.notes} == {"tap-unreadable"}
    assert heard.rebuild.objects.held <= 2**20
    fresh = question(77)
    heard.hear(maker.to_node(fresh))
    assert heard.down[-1][0] == fresh.object_id  # it still hears


def mutated(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randrange(4)):
        place = rng.randrange(len(out) + 1)
        how = rng.randrange(3)
        if how == 0 and out:
            out[place - 1] ^= 1 << rng.randrange(8)
        elif how == 1:
            out[place:place] = rng.randbytes(rng.randrange(1, 9))
        else:
            del out[place : place + rng.randrange(1, 30)]
    return bytes(out)
