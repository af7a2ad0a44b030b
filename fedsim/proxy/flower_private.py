"""What the proxy needs of Flower's private parts, and nothing else of ours touches.

Flower's parts speak protocol buffers over HTTP. A message is a tree of objects, each named by the
SHA-256 of its bytes: `pull-messages` and `push-messages` tell which objects a message consists of,
`pull-object` and `push-object` carry them one by one, and what the other end has is not sent again.

`tests/fedsim/proxy/test_flower_private.py` is the contract test: it fails when a new Flower moves
any of this.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Array, Message
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse, PushObjectRequest
from flwr.supercore.inflatable.inflatable_object import (
    get_object_head_values_from_object_content,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import (
    inflate_object_from_contents,
    validate_object_content,
)

PULL_MESSAGES = "/v1/fleet/pull-messages"
PUSH_MESSAGES = "/v1/fleet/push-messages"
PULL_OBJECT = "/v1/fleet/pull-object"
PUSH_OBJECT = "/v1/fleet/push-object"

MOST_PARTS = 100_000
"""Objects that one message may consist of."""
_DIVIDER = b"\x00"
_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Announced:
    """A message of which it was told what it consists of.

    Attributes:
        identity: Of the message; also the name of the object at the root of its tree.
        parts: Names of all its objects.
    """

    identity: str
    parts: frozenset[str]


def announced_down(response: bytes) -> list[Announced]:
    """Return the messages that an answer to `pull-messages` announces.

    Raises:
        Exception: It is no such answer.
    """
    return _announced(PullMessagesResponse.FromString(response))


def announced_up(request: bytes) -> list[Announced]:
    """Return the messages that a request to `push-messages` announces.

    Raises:
        Exception: It is no such request.
    """
    return _announced(PushMessagesRequest.FromString(request))


def _announced(told: PullMessagesResponse | PushMessagesRequest) -> list[Announced]:
    found = []
    for tree in told.message_object_trees:
        parts: set[str] = set()
        for part in iterate_object_tree(tree):
            if not _DIGEST.fullmatch(part.object_id):  # of any length, they would take any room
                raise ValueError(f"no name of an object: {part.object_id[:80]!r}")
            parts.add(part.object_id)
            if len(parts) > MOST_PARTS:
                raise ValueError(f"a message of more than {MOST_PARTS} objects")
        found.append(Announced(tree.object_id, frozenset(parts)))
    return found


def pulled_object(request: bytes, response: bytes) -> tuple[str, bytes] | None:
    """Return name and content of the object that `pull-object` gave, if it gave one.

    Raises:
        Exception: They are no such request and answer.
    """
    answer = PullObjectResponse.FromString(response)
    if not (answer.object_found and answer.object_available):
        return None
    return PullObjectRequest.FromString(request).object_id, answer.object_content


def pushed_object(request: bytes) -> tuple[str, bytes]:
    """Return name and content of the object that `push-object` brought.

    Raises:
        Exception: It is no such request.
    """
    told = PushObjectRequest.FromString(request)
    return told.object_id, told.object_content


def inflate(identity: str, contents: Mapping[str, bytes], *, largest: int) -> Message:
    """Return the message that these objects make up.

    Args:
        identity: Name of the root of the tree.
        contents: Objects by name, of this message or more.
        largest: Bytes of all arrays that are made room for.

    Raises:
        Exception: They make up no message, or a larger one.
    """
    _check(identity, contents, largest)
    message = inflate_object_from_contents(identity, dict(contents), keep_object_contents=True)
    if not isinstance(message, Message):
        raise ValueError(f"expected a message, got {type(message).__name__}")
    return message


def content_of(identity: str, contents: Mapping[str, bytes]) -> str | None:
    """Return the name of the object that a message has as its content; None if it has none."""
    _, children, _ = get_object_head_values_from_object_content(contents[identity])
    return children[0] if children else None


def _check(identity: str, contents: Mapping[str, bytes], largest: int) -> None:
    """Refuse what would take more room than the bytes that came: a chunk may be named often."""
    room, seen, left = 0, {identity}, [identity]
    while left:
        content = contents[left.pop()]
        validate_object_content(content)
        kind, children, _ = get_object_head_values_from_object_content(content)
        if kind == Array.__qualname__:
            told = json.loads(content[content.index(_DIVIDER) + 1 :])
            sizes = [len(contents[child]) for child in children]
            room += sum(sizes[place] for place in told["arraychunk_ids"])
            if room > largest:
                raise ValueError(f"arrays of more than {largest} bytes")
        left += [child for child in children if child not in seen]
        seen.update(children)
