"""Messages survive being taken apart, and what they hold is not copied on the way."""

import pickle
from typing import Any

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)

from fedsim.engines.flower_private import assume_server_identity
from fedsim.engines.parcels import pack_replies, put_together, take_apart, unpack_reply
from fedsim.held_arrays import HeldArray
from fedsim.wire import to_tensors


@pytest.fixture
def content() -> RecordDict:
    arrays = ArrayRecord({"bytes": Array(np.arange(3.0))})
    arrays["held"] = HeldArray.of(np.arange(6, dtype=np.float32).reshape(2, 3))
    arrays["number"] = HeldArray.of(np.asarray(7))
    return RecordDict(
        {
            "arrays": arrays,
            "metrics": MetricRecord({"num-examples": 3, "losses": [0.5, 0.25]}),
            "config": ConfigRecord({"name": "x", "on": True, "raw": b"\x00"}),
        }
    )


def travelled(value: Any) -> Any:
    """Return a value as another process gets it."""
    return pickle.loads(pickle.dumps(value, protocol=5))  # noqa: S301 - our own


def test_a_content_that_was_taken_apart_and_pickled_says_the_same(content: RecordDict) -> None:
    again = put_together(travelled(take_apart(content)))

    assert again == content
    assert list(again) == list(content)
    assert list(again.array_records["arrays"]) == ["bytes", "held", "number"]


def test_replies_come_back_with_their_metadata_and_errors_with_their_reason(
    content: RecordDict,
) -> None:
    assume_server_identity(1)  # whose messages they are
    request = Message(RecordDict(), 1000, "train", group_id="server.7", ttl=5.0)
    sent = [
        Message(content, reply_to=request),
        Message(RecordDict(), reply_to=request),
        Message(Error(2, "boom"), reply_to=request),
        Message(Error(3), reply_to=request),
    ]

    came = [unpack_reply(one) for one in travelled(pack_replies(sent))]

    assert [one.metadata for one in came] == [one.metadata for one in sent]
    assert [one.has_error() for one in came] == [False, False, True, True]
    assert came[0].content == content
    assert len(came[1].content) == 0
    assert [(one.error.code, one.error.reason) for one in came[2:]] == [(2, "boom"), (3, None)]


def test_what_lies_in_the_object_store_is_read_there_without_a_copy() -> None:
    stored = np.arange(6, dtype=np.float32)
    stored.flags.writeable = False  # as Ray hands it out

    content = put_together([("arrays", "arrays", [("x", stored)])])

    read = to_tensors(content.array_records["arrays"], shared=True)["x"]
    assert read.data_ptr() == stored.ctypes.data
    assert read.tolist() == stored.tolist()
    assert content.array_records["arrays"]["x"] == HeldArray.of(stored)
