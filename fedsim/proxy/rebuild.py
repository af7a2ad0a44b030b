"""Messages, rebuilt from what crosses between nodes and SuperLink."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256

from flwr.app import Message, RecordDict

from fedsim.deployment.bundles import unbundle
from fedsim.proxy import flower_private as flower
from fedsim.proxy.http import Exchange

MEMORY = 2**29
"""Bytes of objects that are kept; nodes and SuperLink soon forget what they had, too."""
BESIDE = 512
"""Bytes that an object takes beside its content; of small ones there may be very many."""
MOST_OPEN = 4096
"""Messages of which something is still to come."""
MOST_OPEN_PARTS = 1_000_000
"""Objects that are still to come, of all of them."""
RECENT = 4
"""Contents sent to nodes that are kept unpacked: in a round all nodes are sent the same."""

OnMessage = Callable[[str, Message], None]
"""(identity, message) -> nothing; it is not to change the message."""
Note = Callable[[str, str], None]
"""(kind, message) -> nothing; where what could not be read is told."""


class Objects:
    """Objects by name, the most recently used ones: what was sent once is not sent again.

    Args:
        memory: Bytes that they may take, with `BESIDE` for each.
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.held = 0
        self._contents: OrderedDict[str, bytes] = OrderedDict()

    def __contains__(self, name: object) -> bool:
        return name in self._contents

    def __getitem__(self, name: str) -> bytes:
        self._contents.move_to_end(name)
        return self._contents[name]

    def put(self, name: str, content: bytes) -> None:
        """Keep one more; those not used for longest make room for it."""
        if name in self._contents:
            self._contents.move_to_end(name)
            return
        if len(content) + BESIDE > self.memory:
            return
        self._contents[name] = content
        self.held += len(content) + BESIDE
        while self.held > self.memory:
            self.held -= len(self._contents.popitem(last=False)[1]) + BESIDE


@dataclass
class _Open:
    """A message of which something is still to come."""

    parts: frozenset[str]
    down: bool
    missing: set[str] = field(default_factory=set)


class Rebuilder:
    """Puts messages together from requests and their answers, in the order in which they cross.

    Args:
        asked: Told of every message to a node that is whole.
        answered: Told of every answer of a node that is whole.
        note: Told of what could not be read.
        memory: Bytes of objects that are kept.
        largest: Bytes of the arrays of one message.
    """

    def __init__(
        self,
        asked: OnMessage,
        answered: OnMessage,
        note: Note,
        *,
        memory: int = MEMORY,
        largest: int = MEMORY,
    ) -> None:
        self.asked = asked
        self.answered = answered
        self.note = note
        self.largest = largest
        self.objects = Objects(memory)
        # by all that was told: who tells of the same message otherwise stands in nobody's way
        self._open: OrderedDict[flower.Announced, _Open] = OrderedDict()
        self._open_parts = 0
        self._recent: OrderedDict[str, RecordDict] = OrderedDict()

    def hear(self, exchange: Exchange) -> None:
        """Take in one request and its answer; what cannot be read is noted, and nothing else."""
        method, path, _ = exchange.request.start
        if method != "POST" or exchange.response.status != 200:
            return
        request, response = exchange.request.body, exchange.response.body
        if request is None or response is None:  # too large: whoever read it said so
            return
        try:
            if path == flower.PULL_MESSAGES:
                for one in flower.announced_down(response):
                    self._expect(one, down=True)
            elif path == flower.PUSH_MESSAGES:
                for one in flower.announced_up(request):
                    self._expect(one, down=False)
            elif path == flower.PULL_OBJECT:
                self._take(flower.pulled_object(request, response))
            elif path == flower.PUSH_OBJECT:
                self._take(flower.pushed_object(request))
        except Exception as error:  # bytes of a stranger: no list of what decoders raise is whole
            self.note("tap-unreadable", f"{path}: {_said(error)}")

    def _try(self, told: flower.Announced) -> None:
        """Rebuild a message of which everything came; one that cannot be spoils no other."""
        whole = self._open.pop(told)
        self._open_parts -= len(whole.parts)
        try:
            self._rebuild(told.identity, whole)
        except OSError as error:
            self.note("tap-lost", f"what was heard cannot be written: {error.strerror or error}")
        except Exception as error:
            self.note("tap-unreadable", f"a message: {_said(error)}")

    def _expect(self, told: flower.Announced, *, down: bool) -> None:
        if told in self._open:
            return
        missing = {part for part in told.parts if part not in self.objects}
        self._open[told] = _Open(told.parts, down, missing)
        self._open_parts += len(told.parts)
        if not missing:
            self._try(told)
        while len(self._open) > MOST_OPEN or self._open_parts > MOST_OPEN_PARTS:
            _, oldest = self._open.popitem(last=False)
            self._open_parts -= len(oldest.parts)

    def _take(self, came: tuple[str, bytes] | None) -> None:
        if came is None:
            return
        name, content = came
        if sha256(content).hexdigest() != name:
            raise ValueError(f"an object is not what its name says: {name[:80]!r}")
        self.objects.put(name, content)
        for one in self._open.values():
            one.missing.discard(name)
        for told in [one for one, whole in self._open.items() if not whole.missing]:
            self._try(told)

    def _rebuild(self, identity: str, whole: _Open) -> None:
        if not all(part in self.objects for part in whole.parts):
            raise ValueError("a part of a message came too long ago to be remembered")
        contents = {part: self.objects[part] for part in whole.parts}
        message = flower.inflate(identity, contents, largest=self.largest)
        if message.has_content():
            if whole.down:
                message.content = self._recently(flower.content_of(identity, contents), message)
            else:
                message.content = unbundle(message.content)
        (self.asked if whole.down else self.answered)(identity, message)

    def _recently(self, name: str | None, message: Message) -> RecordDict:
        """Return the content of a message to a node, taken out of its bundle once for all nodes."""
        if name is None:
            return message.content
        if name not in self._recent:
            self._recent[name] = unbundle(message.content)
            while len(self._recent) > RECENT:
                self._recent.popitem(last=False)
        return self._recent[name]


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]!r}"
