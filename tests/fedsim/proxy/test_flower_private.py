"""The contract with what Flower keeps private: each test fails when a new Flower moves it."""

import inspect
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import PullObjectRequest, PushObjectRequest
from flwr.supercore.inflatable.inflatable_object import get_object_id
from flwr.supernode.fleet_http_client import FleetHttpClient

from fedsim.engines.flower_private import assume_server_identity
from fedsim.proxy import flower_private
from tests.fedsim.proxy.traffic_maker import objects_of


@pytest.mark.parametrize(
    ("method", "path", "request_type"),
    [
        ("PullMessages", flower_private.PULL_MESSAGES, PullMessagesRequest),
        ("PushMessages", flower_private.PUSH_MESSAGES, PushMessagesRequest),
        ("PullObject", flower_private.PULL_OBJECT, PullObjectRequest),
        ("PushObject", flower_private.PUSH_OBJECT, PushObjectRequest),
    ],
)
def test_nodes_speak_plain_http_at_the_paths_that_are_listened_to(
    monkeypatch: pytest.MonkeyPatch, method: str, path: str, request_type: Any
) -> None:
    asked = []

    class Sent(Exception):
        pass

    def send(_self: object, context: object) -> None:
        asked.append(context.request)  # type: ignore[attr-defined]
        raise Sent

    monkeypatch.setattr(FleetHttpClient, "_send", send)
    client = FleetHttpClient.from_server_address("127.0.0.1:1", True, None, [])

    with pytest.raises(Sent):
        getattr(client, method)(request_type())

    (request,) = asked
    assert (request.method, request.url.path) == ("POST", path)
    assert request.content == request_type().SerializeToString()


def test_announcements_carry_the_trees_of_messages() -> None:
    for announced in (PullMessagesResponse, PushMessagesRequest):
        assert "message_object_trees" in announced.DESCRIPTOR.fields_by_name


def test_objects_are_named_by_the_sha256_of_their_bytes_and_the_root_by_the_message() -> None:
    assume_server_identity(1)
    message = Message(RecordDict(), 7, "train")

    objects = objects_of(message)

    assert get_object_id(b"x") == (
        "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    )
    assert list(objects)[-1] == message.object_id
    assert all(get_object_id(held) == name for name, held in objects.items())
    from flwr.superlink.grid import http_grid

    assert "message_id" in inspect.getsource(http_grid)


def test_an_array_names_its_chunks_by_their_places() -> None:
    """What is checked before room is made for an array."""
    zeros = Array(np.zeros(3_000_000, dtype=np.float64))
    message = Message(RecordDict({"a": ArrayRecord({"w": zeros})}), 7, "train")

    (array,) = [one for one in objects_of(message).values() if one.startswith(b"Array ")]
    found = flower_private.inflate(message.object_id, objects_of(message), largest=2**25)

    assert b"arraychunk_ids" in array
    assert found.content.array_records["a"]["w"].data == zeros.data
    with pytest.raises(ValueError, match="arrays of more than"):
        flower_private.inflate(message.object_id, objects_of(message), largest=2**24)


def test_only_a_message_is_taken_for_one() -> None:
    message = Message(RecordDict(), 7, "train")
    objects = objects_of(message)

    with pytest.raises(ValueError, match="expected a message, got RecordDict"):
        flower_private.inflate(next(iter(objects)), objects, largest=10)
    assert flower_private.content_of(message.object_id, objects) == next(iter(objects))
