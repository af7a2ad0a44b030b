"""How Flower's parts are kept from polling, inside processes that we start.

They find out by polling whether there is something for them: a SuperNode asks every three seconds,
an executor every second, a ServerApp every three. Rounds of a small model would be nothing but
waiting. The functions `hasten_*` let a request wait where it arrived: who asks is answered as soon
as there is something, or after `LONGEST_WAIT_S`. What is said, signed, stored and checked stays
Flower's.

Everything here is private to Flower. `tests/fedsim/deployment/test_flower_private.py` is the
contract test: it fails when a new Flower moves any of it.
"""

import functools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

LONGEST_WAIT_S = 1.0
"""Seconds after which one who asked is told that there is nothing."""
MOST_WAITING = 24
"""Requests that may wait in one process at a time; each holds a thread of forty."""
BUSY_S = 0.05
"""Seconds until one asks again who was not let wait."""


class _Bell:
    """Wakes those who wait for something to change in this process."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._waiting = threading.BoundedSemaphore(MOST_WAITING)
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
    def seat(self) -> Iterator[bool]:
        """Offer a place among those who may wait, if there is one."""
        taken = self._waiting.acquire(blocking=False)
        try:
            yield taken
        finally:
            if taken:
                self._waiting.release()


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
    bell: _Bell, module: ModuleType, name: str, found: Callable[[Any, Any], bool | None]
) -> None:
    """Have a function of a module wait for an answer that is worth giving.

    `found` is asked of the answer and the state: True to give it, None to ask again for another
    one, False to wait until the one at hand is whole.
    """
    function: Handler = getattr(module, name)

    @functools.wraps(function)
    def waiting(request: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        deadline = time.monotonic() + LONGEST_WAIT_S
        with bell.seat() as may_wait:
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


def _sleep_at(module: ModuleType, sleep: Callable[[float], None]) -> None:
    """Give a module another `time.sleep`; nothing else of `time` changes for it."""
    own = SimpleNamespace(**vars(time))
    own.sleep = sleep
    module.time = own  # type: ignore[attr-defined]


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
    _rings(bell, fleet_handlers, ("push_messages", "push_object", "deactivate_node"))
    _rings(bell, runtime_handlers, ("push_messages", "push_object"))
    _waits(bell, fleet_handlers, "pull_messages", _messages_are_whole)
    _waits(bell, runtime_handlers, "pull_messages", _messages_are_whole)
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
    _rings(bell, runtime_handlers, ("push_messages", "push_object"))
    _waits(bell, runtime_handlers, "acquire_task", _brings_task)
    _waits(bell, runtime_handlers, "pull_messages", _messages_are_whole)

    def sleep(seconds: float) -> None:
        if seconds >= 1.0:  # nothing came of a request that waited already
            time.sleep(BUSY_S)
        else:  # its executor works on a message, or its answer comes in parts
            bell.wait(bell.times, BUSY_S)

    _sleep_at(node, sleep)
    _lighten(dependencies)


def hasten_grid() -> None:
    """Have the ServerApp of this process ask again at once: its requests wait at the SuperLink."""
    from flwr.superlink.grid import http_grid

    _sleep_at(http_grid, lambda _: time.sleep(0.001))
