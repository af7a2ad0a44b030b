"""Messages as one object each."""

from collections.abc import Sequence

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp

from fedsim.deployment.bundles import (
    BUNDLE,
    SMALL,
    Bundling,
    BundlingClientApp,
    bundle,
    unbundle,
)
from fedsim.engines.flower_private import assume_server_identity
from fedsim.engines.local import LocalGrid


def content(size: int = 3) -> RecordDict:
    """Everything that a message may hold."""
    awkward = np.array([np.nan, -0.0, np.inf], dtype=np.float32)
    arrays = {
        "z.weight": Array(np.arange(size, dtype=np.float32)),
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


@pytest.fixture(autouse=True)
def _server() -> None:
    assume_server_identity(1)


@pytest.mark.parametrize("size", [3, SMALL], ids=["small", "large"])
def test_what_comes_out_of_a_bundle_is_what_went_in_to_the_last_bit(size: int) -> None:
    sent = content(size)

    got = unbundle(bundle(sent))

    assert set(got) == set(sent)
    arrays, wanted = got.array_records["arrays"], sent.array_records["arrays"]
    assert list(arrays) == list(wanted)  # sums are taken in this order
    for name, array in wanted.items():
        other = arrays[name]
        assert (other.dtype, tuple(other.shape), other.stype) == (
            array.dtype,
            tuple(array.shape),
            array.stype,
        )
        assert other.data == array.data
    assert dict(got.metric_records["metrics"]) == dict(sent.metric_records["metrics"])
    assert dict(got.config_records["config"]) == dict(sent.config_records["config"])


def test_a_small_message_is_one_record_and_a_large_one_goes_in_flowers_pieces() -> None:
    small, large = bundle(content()), bundle(content(SMALL))

    assert isinstance(small[BUNDLE], ConfigRecord)
    assert isinstance(large[BUNDLE], ArrayRecord)


def test_equal_contents_are_equal_bundles_so_that_flower_stores_them_once() -> None:
    assert bundle(content()) == bundle(content())


@pytest.mark.parametrize(
    "held",
    [
        ConfigRecord({BUNDLE: b"\xff\xff\xff"}),
        ConfigRecord({BUNDLE: 7}),
        ConfigRecord({}),
        MetricRecord({BUNDLE: 1}),
        ArrayRecord({BUNDLE: Array("uint8", (3,), BUNDLE, b"\xff\xff\xff")}),
    ],
    ids=["bytes", "number", "empty", "metrics", "array"],
)
def test_a_bundle_that_cannot_be_read_holds_nothing(
    held: ConfigRecord | MetricRecord | ArrayRecord,
) -> None:
    assert unbundle(RecordDict({BUNDLE: held})) == RecordDict()


def test_what_is_no_bundle_stays_as_it_is() -> None:
    assert unbundle(content()) == content()


def context() -> Context:
    return Context(run_id=1, node_id=7, node_config={}, state=RecordDict(), run_config={})


def test_a_client_app_sees_what_was_meant_and_its_answer_goes_in_a_bundle() -> None:
    app, seen = ClientApp(), []

    @app.train()
    def train(message: Message, _: Context) -> Message:
        seen.append(message.content)
        return Message(content(), reply_to=message)

    reply = BundlingClientApp(app)(Message(bundle(content()), 7, "train"), context())

    assert seen == [content()]
    assert set(reply.content) == {BUNDLE}
    assert unbundle(reply.content) == content()


def test_an_error_needs_no_bundle() -> None:
    app = ClientApp()

    @app.query()
    def refuse(message: Message, _: Context) -> Message:
        return Message(Error(300, "no"), reply_to=message)

    reply = BundlingClientApp(app)(Message(RecordDict(), 7, "query"), context())

    assert reply.error.reason == "no"


class Echo(LocalGrid):
    """A grid whose nodes send back what they get."""

    def deliver(self, messages: Sequence[Message], timeout: float | None) -> list[Message]:
        self.sent = list(messages)
        return [Message(one.content, reply_to=one) for one in self.sent]


def test_a_server_app_sends_bundles_and_sees_what_was_meant() -> None:
    echo = Echo(1)
    message = Message(content(), 7, "train", group_id="3", ttl=60.0)

    (reply,) = Bundling(echo).send_and_receive([message])

    (sent,) = echo.sent
    assert set(sent.content) == {BUNDLE}
    about = sent.metadata
    assert (about.dst_node_id, about.message_type, about.group_id) == (7, "train", "3")
    assert about.ttl == 60.0
    assert reply.content == content()
    assert message.content == content()  # what we were given stays as it was


def test_pushing_and_pulling_is_bundled_too() -> None:
    echo = Echo(1)
    grid = Bundling(echo)

    ids = grid.push_messages([Message(content(), 7, "train")])
    (reply,) = grid.pull_messages(ids)

    assert set(echo.sent[0].content) == {BUNDLE}
    assert reply.content == content()
