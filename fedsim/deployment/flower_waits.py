"""How Flower's parts are kept from polling, inside processes that we start.

They find out by polling whether there is something for them: a SuperNode asks every three seconds,
an executor every second, a ServerApp every three. Rounds of a small model would be nothing but
waiting. The functions `hasten_*` let a request wait where it arrived: who asks is answered as soon
as there is something, or after `LONGEST_WAIT_S`. What is said, signed, stored and checked stays
Flower's; `_own_replies` adds a check that it lacks.

Everything here is private to Flower. `tests/fedsim/deployment/test_flower_private.py` is the
contract test: it fails when a new Flower moves any of it.
"""

import functools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from logging import ERROR
from types import ModuleType, SimpleNamespace
from typing import Any

from flwr.common.constant import Status
from flwr.proto.fleet_pb2 import PushMessagesResponse
from flwr.proto.runtime_pb2 import PushAppMessagesResponse
from flwr.supercore import log
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

LONGEST_WAIT_S = 1.0
"""Seconds after which one who asked is told that there is nothing."""
MOST_WAITING = 24
"""Requests of nodes that may wait in one process at a time; each holds a thread of forty."""
APPS_WAITING = 4
"""Requests of the ServerApp that may wait besides: it asks again at once where it may not."""
_REMEMBERED = 100
"""Tasks of which a SuperNode remembers the reply; their executors work on one at a time."""
BUSY_S = 0.05
"""Seconds until one asks again who was not let wait."""


class _Bell:
    """Wakes those who wait for something to change in this process."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self.times = 0

    def ring(self) -> None:
        """Say that something changed."""
        with self._condition:
            self.times += 1
            self._condition.notify_all()

    def wait(self, times: int, timeout: float) -> None:
        """Wait until it has rung more than `times` times."""
        with self._condition:
            self._condition.wait_for(lambda: self.times > times, timeout)


@contextmanager
def _seat(seats: threading.Semaphore) -> Iterator[bool]:
    """Offer a place among those who may wait, if there is one."""
    taken = seats.acquire(blocking=False)
    try:
        yield taken
    finally:
        if taken:
            seats.release()


Handler = Callable[..., Any]


def _rings(bell: _Bell, module: ModuleType, names: Iterable[str]) -> None:
    """Have these functions of a module ring after they did their work."""

    def wrapped(function: Handler) -> Handler:
        @functools.wraps(function)
        def ringing(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            bell.ring()
            return result

        return ringing

    for name in names:
        setattr(module, name, wrapped(getattr(module, name)))


def _waits(
    bell: _Bell,
    module: ModuleType,
    name: str,
    found: Callable[[Any, Any], bool | None],
    most: int = MOST_WAITING,
) -> None:
    """Have a function of a module wait for an answer that is worth giving.

    `found` is asked of the answer and the state: True to give it, None to ask again for another
    one, False to wait until the one at hand is whole. At most `most` wait at a time.
    """
    function: Handler = getattr(module, name)
    seats = threading.BoundedSemaphore(most)

    @functools.wraps(function)
    def waiting(request: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        deadline = time.monotonic() + LONGEST_WAIT_S
        with _seat(seats) as may_wait:
            while True:
                times = bell.times
                answer = function(request, state, *args, **kwargs)
                if found(answer, state) is not None:
                    break
                left = deadline - time.monotonic()
                if left <= 0 or not may_wait:
                    return answer
                bell.wait(times, left)
            # what comes in parts is delivered when its last part is there
            deadline = time.monotonic() + LONGEST_WAIT_S
            while not found(answer, state) and (left := deadline - time.monotonic()) > 0:
                bell.wait(bell.times, min(left, BUSY_S))
        return answer

    setattr(module, name, waiting)


def _messages_are_whole(answer: Any, state: Any) -> bool | None:
    """Whether an answer brings messages, and everything in them has arrived."""
    if not answer.messages_list:
        return None
    return not any(
        state.object_store.get(part.object_id) == b""
        for tree in answer.message_object_trees
        for part in iterate_object_tree(tree)
    )


def _brings_task(answer: Any, _state: Any) -> bool | None:
    return True if answer.HasField("task") else None


def _offers_again(module: ModuleType) -> None:
    """Have a task offered again to an executor that asks for one, if it never began the last.

    A node has one executor, which asks for a task when it has none: so the answer that brought the
    last one was lost, with the process that had asked for it.
    """
    function: Handler = module.acquire_task
    last: list[Any] = []

    @functools.wraps(function)
    def acquire_task(request: Any, state: Any) -> Any:
        for answer in last:
            for task in state.get_tasks(task_ids=[answer.task.task_id]):
                if task.status.status == Status.STARTING:
                    return answer
        answer = function(request, state)
        last[:] = [answer] if answer.HasField("task") else []
        return answer

    module.acquire_task = acquire_task  # type: ignore[attr-defined]


def _tells_again(module: ModuleType) -> None:
    """Have a SuperNode say again which message a task is about, to a successor who must excuse it.

    What the message holds is handed out once, as ever.
    """
    function: Handler = module.pull_messages
    told: dict[int, Any] = {}

    @functools.wraps(function)
    def pull_messages(request: Any, state: Any, task: Any) -> Any:
        if task.task_id not in told:
            answer = function(request, state, task)
            if not answer.messages_list:
                return answer
            told.clear()  # an executor works on one task at a time
            told[task.task_id] = answer
        return told[task.task_id]

    module.pull_messages = pull_messages  # type: ignore[attr-defined]


def _answers_once(module: ModuleType) -> None:
    """Have a SuperNode take one reply to each task, whole, and no second one.

    An executor that died while it brought a reply has a successor, which brings it again. Flower
    would pass a second reply on in place of the next one, and wait for ever for the rest of half a
    first one.
    """
    function: Handler = module.push_messages
    replied: dict[int, str] = {}

    @functools.wraps(function)
    def push_messages(request: Any, state: Any, task: Any) -> Any:
        reply = request.messages_list[0].metadata.message_id if request.messages_list else ""
        if task.task_id in replied:
            under_way = reply == replied[task.task_id] and reply in state.msg_store
            if not under_way:
                return PushAppMessagesResponse(message_ids=[reply])
        elif reply:
            replied[task.task_id] = reply
            while len(replied) > _REMEMBERED:
                replied.pop(next(iter(replied)))
        return function(request, state, task)

    module.push_messages = push_messages  # type: ignore[attr-defined]


def _sleep_at(module: ModuleType, sleep: Callable[[float], None], **more: Handler) -> None:
    """Give a module another `time.sleep`; nothing of `time` changes for it but that and `more`."""
    own = SimpleNamespace(**vars(time) | {"sleep": sleep} | more)
    module.time = own  # type: ignore[attr-defined]


def _own_replies(module: ModuleType) -> None:
    """Have the SuperLink take replies only from the node that they say they are from.

    Flower checks that who speaks is the node it says, and that a reply says it is from the node
    that was asked, but not that the two are one: a node could reply for another.
    """
    function: Handler = module.push_messages

    @functools.wraps(function)
    def push_messages(request: Any, state: Any) -> Any:
        for message in request.messages_list:
            if message.metadata.src_node_id != request.node.node_id:
                log(
                    ERROR,
                    "Node %s brought a reply of node %s, which is not taken",
                    request.node.node_id,
                    message.metadata.src_node_id,
                )
                return PushMessagesResponse()
        return function(request, state)

    module.push_messages = push_messages  # type: ignore[attr-defined]


_IDLE = (
    "ControlLicenseMiddleware",
    "ControlEventLogMiddleware",
    "FleetEventLogMiddleware",
    "RuntimeTracingMiddleware",
)
"""Layers around every request that do nothing without Flower's paid plugins, or a collector of
traces, and take a third of its time."""


def _lighten(*modules: ModuleType) -> None:
    """Have quick functions of these modules called where they are, and not in another thread."""

    async def call(function: Handler, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    for module in modules:
        module.run_in_threadpool = call  # type: ignore[attr-defined]


def hasten_superlink() -> None:
    """Have the SuperLink of this process answer nodes and the ServerApp without polling."""
    from fastapi.dependencies import utils as dependencies
    from flwr.superlink import main
    from flwr.superlink.routers.fleet import node_auth
    from flwr.superlink.servicer.fleet import fleet_handlers
    from flwr.superlink.servicer.runtime import runtime_handlers

    bell = _Bell()
    _own_replies(fleet_handlers)
    _rings(bell, fleet_handlers, ("push_messages", "push_object", "deactivate_node"))
    _rings(bell, runtime_handlers, ("push_messages", "push_object"))
    _waits(bell, fleet_handlers, "pull_messages", _messages_are_whole)
    _waits(bell, runtime_handlers, "pull_messages", _messages_are_whole, APPS_WAITING)
    layers = main._get_middleware()
    main._get_middleware = lambda: [
        one for one in layers if getattr(one.cls, "__name__", "") not in _IDLE
    ]
    _lighten(dependencies, node_auth)


def hasten_supernode() -> None:
    """Have the SuperNode of this process pass messages on as they come."""
    from fastapi.dependencies import utils as dependencies
    from flwr.supernode import start_client_internal as node
    from flwr.supernode.servicer.runtime import runtime_handlers

    bell = _Bell()
    _rings(bell, node, ("_pull_and_store_message",))
    _answers_once(runtime_handlers)
    _rings(bell, runtime_handlers, ("push_messages", "push_object"))
    _waits(bell, runtime_handlers, "acquire_task", _brings_task)
    _offers_again(runtime_handlers)
    _tells_again(runtime_handlers)
    _waits(bell, runtime_handlers, "pull_messages", _messages_are_whole)

    def sleep(seconds: float) -> None:
        if seconds >= 1.0:  # nothing came of a request that waited already
            time.sleep(BUSY_S)
        else:  # its executor works on a message, or its answer comes in parts
            bell.wait(bell.times, BUSY_S)

    _sleep_at(node, sleep)
    _lighten(dependencies)


def hasten_grid() -> None:
    """Have the ServerApp of this process ask again at once: its requests wait at the SuperLink.

    Its deadlines run by a clock that never jumps: Flower's would move with that of the machine.
    """
    from flwr.superlink.grid import http_grid

    _sleep_at(http_grid, lambda _: time.sleep(0.001), time=time.monotonic)
