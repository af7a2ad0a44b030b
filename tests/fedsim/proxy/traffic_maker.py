"""What crosses when Flower's parts speak, made by Flower's own code, without its processes."""

import itertools
from collections.abc import Iterable

from flwr.app import Message
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import (
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from fedsim.proxy.http import Direction, Exchange, HttpMessage

Call = tuple[str, bytes, bytes]
"""Path, request, answer."""


def objects_of(message: Message) -> dict[str, bytes]:
    """Every object of a message, by name; the message itself comes last."""
    return {name: one.deflate() for name, one in get_all_nested_objects(message).items()}


def to_node(message: Message, *, lacks: Iterable[str] | None = None) -> list[Call]:
    """A node fetches a message, and the objects that it lacks."""
    objects = objects_of(message)
    announced = PullMessagesResponse(message_object_trees=[get_object_tree(message)])
    calls = [("/v1/fleet/pull-messages", b"", announced.SerializeToString())]
    for name in objects if lacks is None else lacks:
        asked = PullObjectRequest(object_id=name)
        got = PullObjectResponse(
            object_found=True, object_available=True, object_content=objects[name]
        )
        calls.append(("/v1/fleet/pull-object", asked.SerializeToString(), got.SerializeToString()))
    return calls


def from_node(message: Message, *, lacks: Iterable[str] | None = None) -> list[Call]:
    """A node brings an answer, and the objects that the SuperLink lacks."""
    objects = objects_of(message)
    announced = PushMessagesRequest(message_object_trees=[get_object_tree(message)])
    calls = [("/v1/fleet/push-messages", announced.SerializeToString(), b"")]
    for name in objects if lacks is None else lacks:
        brought = PushObjectRequest(object_id=name, object_content=objects[name])
        stored = PushObjectResponse(stored=True).SerializeToString()
        calls.append(("/v1/fleet/push-object", brought.SerializeToString(), stored))
    return calls


def exchange(call: Call, status: int = 200) -> Exchange:
    """A call as a request and its answer."""
    path, request, answer = call
    return Exchange(
        HttpMessage(("POST", path, "HTTP/1.1"), {}, request),
        HttpMessage(("HTTP/1.1", str(status), "OK"), {}, answer),
    )


def on_the_wire(calls: Iterable[Call], *, chunked: bool = False) -> list[tuple[Direction, bytes]]:
    """Calls as bytes on one connection, each with its direction."""
    said: list[tuple[Direction, bytes]] = []
    for path, request, answer in calls:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(request)}\r\n\r\n"
        said.append(("up", head.encode() + request))
        if chunked:
            pieces = [answer[i : i + 7] for i in range(0, len(answer), 7)]
            body = b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in pieces) + b"0\r\n\r\n"
            said.append(("down", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body))
        else:
            head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(answer)}\r\n\r\n"
            said.append(("down", head.encode() + answer))
    return said


def in_pieces(data: bytes, sizes: Iterable[int]) -> list[bytes]:
    """Cut bytes into pieces of these sizes, again and again."""
    pieces: list[bytes] = []
    place = 0
    for size in itertools.cycle(sizes):
        if place >= len(data):
            return pieces
        pieces.append(data[place : place + size])
        place += size
    return pieces
