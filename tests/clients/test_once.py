"""A client answers a request once."""

import pytest
from flwr.app import Context, Message, RecordDict

from clients.once import once
from fedsim.engines.flower_private import assume_server_identity
from fedsim.engines.local import FIRST_NODE
from fedsim.wire import REPEATED


def answered(*groups: str) -> list[bool]:
    """Whether each of these requests, in order, was answered."""
    assume_server_identity(1)
    context = Context(
        run_id=1, node_id=FIRST_NODE, node_config={}, state=RecordDict(), run_config={}
    )
    found = []
    for group in groups:
        message = Message(RecordDict(), FIRST_NODE, "train", group_id=group)
        reply = once(message, context, lambda asked, _: Message(RecordDict(), reply_to=asked))
        assert reply.metadata.group_id == group
        if reply.has_error():
            assert reply.error.code == REPEATED
        found.append(not reply.has_error())
    return found


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (("a.1", "a.2", "a.5"), [True, True, True]),
        (("a.1", "a.1", "a.2"), [True, False, True]),
        (("a.2", "a.1", "a.3"), [True, False, True]),
        (("a.7", "b.1", "b.1"), [True, True, False]),  # another server, after a kill
        (("", "", "a.1", ""), [True, True, True, True]),  # a server that does not number
    ],
    ids=["in order", "twice", "late", "another server", "no numbers"],
)
def test_no_request_is_answered_twice_or_after_a_newer_one(
    groups: tuple[str, ...], expected: list[bool]
) -> None:
    assert answered(*groups) == expected
