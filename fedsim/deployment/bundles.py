"""A message as one object, instead of two for every tensor.

Flower stores and sends each part of a message by itself, named by its hash, and every part costs
a request on each of five legs from the ServerApp to a ClientApp and back: of a small model, a
round consists of little else. So apps of a deployment hand Flower what they say in one piece, and
take it apart at the other end. Nothing is lost or rounded, and who listens can do the same.
"""

from collections.abc import Iterable

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsim.deployment.flower_private import content_from_bytes, content_to_bytes
from fedsim.wrapped_grid import WrappedGrid

BUNDLE = "fedsim.bundle"
"""Name of the record that holds all others; also how an array says that it is no array."""
SMALL = 1 << 20
"""Bytes up to which a bundle is one object; Flower sends larger ones in pieces of 5 MB."""


def bundle(content: RecordDict) -> RecordDict:
    """Return everything in `content` in one record."""
    data = content_to_bytes(content)
    if len(data) <= SMALL:
        return RecordDict({BUNDLE: ConfigRecord({BUNDLE: data})})
    return RecordDict({BUNDLE: ArrayRecord({BUNDLE: Array("uint8", (len(data),), BUNDLE, data)})})


def unbundle(content: RecordDict) -> RecordDict:
    """Return what `bundle` was given; anything else comes back as it is.

    A bundle that cannot be read holds nothing: whoever checks what came will miss all of it.
    """
    if set(content) != {BUNDLE}:
        return content
    record = content[BUNDLE]
    held = record.get(BUNDLE)
    data = held.data if isinstance(held, Array) else held
    if not isinstance(data, bytes):
        return RecordDict()
    try:
        return content_from_bytes(data)
    except Exception:  # bytes of a stranger: no list of what decoders raise is whole
        return RecordDict()


class Bundling(WrappedGrid):
    """Hand messages on in bundles."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send bundles."""
        return self.inner.push_messages(self._bundled(messages))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Open what came."""
        return [_opened(reply) for reply in self.inner.pull_messages(message_ids)]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send bundles, and open what came back."""
        replies = self.inner.send_and_receive(self._bundled(messages), timeout=timeout)
        return [_opened(reply) for reply in replies]

    def _bundled(self, messages: Iterable[Message]) -> list[Message]:
        # new messages: whoever gave us these may read them again
        return [
            Message(
                bundle(one.content),
                one.metadata.dst_node_id,
                one.metadata.message_type,
                ttl=one.metadata.ttl,
                group_id=one.metadata.group_id,
            )
            for one in messages
        ]


class BundlingClientApp(ClientApp):
    """A ClientApp that is asked, and answers, in bundles."""

    def __init__(self, inner: ClientApp) -> None:
        super().__init__()
        self.inner = inner

    def __call__(self, message: Message, context: Context) -> Message:
        """Open what was asked, have it answered, and bundle the answer."""
        _opened(message)
        reply = self.inner(message, context)
        if reply.has_content():
            reply.content = bundle(reply.content)
        return reply


def _opened(message: Message) -> Message:
    if message.has_content():
        message.content = unbundle(message.content)
    return message
