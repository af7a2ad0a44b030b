"""The contract with what Flower keeps private: each test fails when a new Flower moves it."""

import asyncio
import importlib
import inspect
import threading
import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.proto.control_pb2 import ListRunsRequest, ListRunsResponse
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

from fedsim.deployment import flower_private, flower_waits
from fedsim.deployment.flower_waits import _Bell, _messages_are_whole, _rings, _sleep_at, _waits


def test_supernodes_sleep_where_we_let_them_wait_instead() -> None:
    from flwr.supernode import start_client_internal as node

    assert "time.sleep(3)" in inspect.getsource(node.start_client_internal)
    assert "time.sleep(0.5)" in inspect.getsource(node._push_messages)
    assert "_pull_and_store_message(" in inspect.getsource(node.start_client_internal)


def test_the_grid_of_a_server_app_sleeps_where_we_let_it_ask_again() -> None:
    from flwr.superlink.grid.http_grid import HttpGrid

    assert "time.sleep(3)" in inspect.getsource(HttpGrid.send_and_receive)


def test_the_superlink_finds_what_we_wrap_by_name_when_it_is_asked() -> None:
    runtime = importlib.import_module("flwr.supercore.routers.runtime.router")
    fleet = importlib.import_module("flwr.superlink.routers.fleet.router")

    for name in ("push_messages", "push_object", "pull_messages", "deactivate_node"):
        assert f"fleet_handlers.{name}(" in inspect.getsource(fleet)
    for name in ("push_messages", "push_object", "pull_messages", "acquire_task"):
        assert f"handlers.{name}(" in inspect.getsource(runtime)


@pytest.mark.parametrize("side", ["superlink", "supernode"])
def test_handlers_take_a_request_and_a_state_first(side: str) -> None:
    from flwr.superlink.servicer.fleet import fleet_handlers
    from flwr.superlink.servicer.runtime import runtime_handlers as at_superlink
    from flwr.supernode.servicer.runtime import runtime_handlers as at_supernode

    waiting: dict[str, list[Callable[..., object]]] = {
        "superlink": [fleet_handlers.pull_messages, at_superlink.pull_messages],
        "supernode": [at_supernode.pull_messages, at_supernode.acquire_task],
    }
    for handler in waiting[side]:
        assert list(inspect.signature(handler).parameters)[:2] == ["request", "state"]


def test_the_layers_that_we_leave_out_are_there_and_do_nothing_without_plugins() -> None:
    from flwr.superlink import main

    names = [getattr(one.cls, "__name__", "") for one in main._get_middleware()]

    assert set(flower_waits._IDLE) <= set(names)
    left = [one for one in names if one not in flower_waits._IDLE]
    assert "NodeAuthMiddleware" in left  # what checks who asks stays
    assert "ControlAuthenticationMiddleware" in left
    assert "_get_middleware()" in inspect.getsource(main.create_app)


def test_functions_that_we_call_where_they_are_were_sent_to_threads() -> None:
    from fastapi.dependencies import utils as dependencies
    from flwr.superlink.routers.fleet import node_auth

    assert "run_in_threadpool(" in inspect.getsource(dependencies.solve_dependencies)
    assert "run_in_threadpool(authenticate_node" in inspect.getsource(node_auth)


def test_an_object_that_has_not_arrived_is_empty_bytes() -> None:
    from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore

    assert 'b""' in inspect.getsource(InMemoryObjectStore)


def answer(*objects: str) -> Any:
    """An answer that brings one message of these parts."""
    from flwr.proto.message_pb2 import ObjectTree
    from flwr.proto.runtime_pb2 import PullAppMessagesResponse

    response = PullAppMessagesResponse()
    if objects:
        response.messages_list.add()
        children = [ObjectTree(object_id=one) for one in objects[1:]]
        response.message_object_trees.append(ObjectTree(object_id=objects[0], children=children))
    return response


class State:
    """Where objects lie."""

    def __init__(self, **held: bytes) -> None:
        self.object_store = SimpleNamespace(get=held.get)


def test_a_message_is_whole_when_its_last_part_is_there() -> None:
    assert _messages_are_whole(answer(), State()) is None
    assert _messages_are_whole(answer("a", "b"), State(a=b"1", b=b"")) is False
    assert _messages_are_whole(answer("a", "b"), State(a=b"1", b=b"2")) is True
    assert _messages_are_whole(answer("a"), State()) is True  # deleted: whoever asks is told


def asked(
    answers: list[Any], state: State, bell: _Bell, most: int = flower_waits.MOST_WAITING
) -> tuple[ModuleType, list[float]]:
    """A module whose function gives these answers in turn, and when it was called."""
    module, calls = ModuleType("asked"), list[float]()

    def pull(request: object, state: State) -> Any:
        calls.append(time.monotonic())
        return answers.pop(0) if len(answers) > 1 else answers[0]

    module.pull = pull  # type: ignore[attr-defined]
    _waits(bell, module, "pull", _messages_are_whole, most)
    return module, calls


def test_who_asks_is_answered_when_something_came_and_not_before() -> None:
    bell = _Bell()
    module, calls = asked([answer(), answer("a")], State(a=b"1"), bell)
    threading.Timer(0.2, bell.ring).start()
    start = time.monotonic()

    got = module.pull(None, State(a=b"1"))

    assert got.messages_list
    assert len(calls) == 2
    assert 0.15 < time.monotonic() - start < flower_waits.LONGEST_WAIT_S


def test_who_asks_in_vain_is_told_so_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower_waits, "LONGEST_WAIT_S", 0.1)
    module, _ = asked([answer()], State(), _Bell())

    assert not module.pull(None, State()).messages_list


def test_a_message_in_parts_is_asked_for_once_and_given_when_it_is_whole() -> None:
    bell, held = _Bell(), {"a": b"1", "b": b""}
    state = State()
    state.object_store = SimpleNamespace(get=held.get)
    module, calls = asked([answer("a", "b")], state, bell)

    def arrive() -> None:
        held["b"] = b"2"
        bell.ring()

    threading.Timer(0.1, arrive).start()
    module.pull(None, state)

    assert held["b"] == b"2"
    assert len(calls) == 1


def test_only_so_many_wait_and_others_are_answered_at_once() -> None:
    bell = _Bell()
    module, _ = asked([answer()], State(), bell, most=1)
    first = threading.Thread(target=module.pull, args=(None, State()))
    first.start()
    time.sleep(0.1)
    start = time.monotonic()

    module.pull(None, State())

    assert time.monotonic() - start < 0.5
    first.join()


def test_a_server_app_may_wait_however_many_nodes_do() -> None:
    bell = _Bell()
    nodes, _ = asked([answer()], State(), bell, most=1)
    apps, calls = asked([answer()], State(), bell, most=1)
    waits = threading.Thread(target=nodes.pull, args=(None, State()))
    waits.start()
    start = time.monotonic()

    apps.pull(None, State())

    assert time.monotonic() - start >= flower_waits.LONGEST_WAIT_S
    assert len(calls) <= 3
    waits.join()


def test_what_changes_something_rings() -> None:
    bell, module = _Bell(), ModuleType("some")
    module.push = lambda value: value + 1  # type: ignore[attr-defined]

    _rings(bell, module, ["push"])

    assert module.push(1) == 2
    assert bell.times == 1


def test_only_the_sleep_of_one_module_changes() -> None:
    module, slept = ModuleType("some"), list[float]()
    module.time = time  # type: ignore[attr-defined]

    _sleep_at(module, slept.append)
    module.time.sleep(3)

    assert slept == [3]
    assert module.time.monotonic is time.monotonic
    assert time.sleep is not module.time.sleep


def test_the_deadline_of_a_server_app_does_not_move_with_the_clock_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flwr.superlink.grid import http_grid
    from flwr.superlink.grid.http_grid import HttpGrid

    clock, ahead_s, pulls = time.time, 0.0, list[float]()
    monkeypatch.setattr(time, "time", lambda: clock() + ahead_s)
    monkeypatch.setattr(http_grid, "time", time)  # so that it is put back in the end
    flower_waits.hasten_grid()
    grid = HttpGrid(token="of a task")  # noqa: S106
    monkeypatch.setattr(grid, "push_messages", lambda _: ["asked"])

    def pull(_: object) -> list[object]:
        nonlocal ahead_s
        ahead_s = 3600.0
        pulls.append(time.monotonic())
        return []

    monkeypatch.setattr(grid, "pull_messages", pull)

    assert list(grid.send_and_receive([], timeout=0.3)) == []

    assert len(pulls) > 2
    assert 0.2 < pulls[-1] - pulls[0] < 5.0


def test_a_task_whose_offer_was_lost_is_offered_again_until_it_is_begun() -> None:
    from flwr.common.constant import Status
    from flwr.proto.runtime_pb2 import AcquireTaskRequest, AcquireTaskResponse
    from flwr.proto.task_pb2 import Task, TaskStatus

    status = {1: Status.STARTING, 2: Status.STARTING}
    offers = [
        AcquireTaskResponse(task=Task(task_id=number), token=str(number)) for number in (1, 2)
    ]
    module, state = ModuleType("some"), SimpleNamespace()
    module.acquire_task = lambda request, state: offers.pop(0)  # type: ignore[attr-defined]
    state.get_tasks = lambda task_ids: [
        Task(task_id=one, status=TaskStatus(status=status[one])) for one in task_ids
    ]
    flower_waits._offers_again(module)

    def ask() -> str:
        return str(module.acquire_task(AcquireTaskRequest(), state).token)

    assert [ask(), ask()] == ["1", "1"]
    status[1] = Status.RUNNING
    assert [ask(), ask()] == ["2", "2"]


def test_a_task_that_is_claimed_and_not_begun_is_starting() -> None:
    from flwr.supercore.corestate.in_memory_corestate import InMemoryCoreState

    assert "Status.STARTING" in inspect.getsource(InMemoryCoreState.claim_task)
    assert "Status.RUNNING" in inspect.getsource(InMemoryCoreState.activate_task)


def test_a_supernode_takes_one_reply_to_a_task_and_the_rest_of_half_a_reply() -> None:
    from flwr.proto.runtime_pb2 import PushAppMessagesRequest, PushAppMessagesResponse

    module, taken = ModuleType("some"), list[str]()
    state = SimpleNamespace(msg_store={})

    def original(request: Any, state: Any, task: Any) -> Any:
        taken.append(request.messages_list[0].metadata.message_id)
        state.msg_store[taken[-1]] = "waits to be passed on"
        return PushAppMessagesResponse(objects_to_push=["part"])

    def push(task: int, reply: str) -> list[str]:
        request = PushAppMessagesRequest()
        request.messages_list.add().metadata.message_id = reply
        answer = module.push_messages(request, state, SimpleNamespace(task_id=task))
        return list(answer.objects_to_push)

    module.push_messages = original  # type: ignore[attr-defined]
    flower_waits._answers_once(module)

    assert push(1, "reply") == ["part"]
    assert push(1, "reply") == ["part"]  # its executor died half way: go on where it was
    assert push(1, "an error instead") == []
    state.msg_store.clear()  # it was passed on
    assert push(1, "reply") == []
    assert push(2, "next") == ["part"]
    assert taken == ["reply", "reply", "next"]


def test_a_supernode_keeps_replies_by_id_until_it_passed_them_on() -> None:
    from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

    assert "self.msg_store[msg_id] = MessageEntry" in inspect.getsource(InMemoryNodeState)
    assert "self.msg_store.pop(msg_id" in inspect.getsource(InMemoryNodeState.delete_messages)


def test_a_supernode_says_again_which_message_a_task_is_about() -> None:
    module, answers = ModuleType("some"), [answer("a"), answer("b")]
    module.pull_messages = lambda *_: answers.pop(0) if answers else answer()  # type: ignore[attr-defined]
    flower_waits._tells_again(module)

    def pull(task: int) -> list[str]:
        got = module.pull_messages(None, None, SimpleNamespace(task_id=task))
        return [tree.object_id for tree in got.message_object_trees]

    assert [pull(1), pull(1), pull(2), pull(2), pull(3)] == [["a"], ["a"], ["b"], ["b"], []]


SECRET = b"of who directs"
ORDERS = sorted(path for _, path in PROTOBUF_REQUEST_TYPES if path.startswith("/v1/control"))


class Loopback(httpx.BaseTransport):
    """Brings requests to an application in this process."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app)) as client:
                return await client.send(request)

        answer = asyncio.run(ask())
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A SuperLink without keys, in this process."""
    from flwr.superlink import main

    monkeypatch.setattr(main, "_get_middleware", main._get_middleware)  # so that it is put back
    flower_private.obey_the_director_alone()
    app = main.create_app()
    app.state.superexec_auth_secret = SECRET
    return app


@pytest.fixture
def superlink(app: Any) -> httpx.Client:
    """Who asks it."""
    return httpx.Client(transport=Loopback(app), base_url="http://superlink")


def control(superlink: httpx.Client, *interceptors: object) -> ControlHttpClient:
    """Who gives orders, each request passed through these."""
    client = ControlHttpClient("http://superlink", interceptors=interceptors)  # type: ignore[arg-type]
    client._client = superlink
    return client


class Heard:
    """Keeps requests as they cross the link."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    def intercept(self, context: Any, call_next: Any) -> Any:
        self.requests.append(context.request)
        return call_next(context)


def test_all_orders_of_a_superlink_have_one_door() -> None:
    from flwr.superlink.routers.control import router

    assert "/v1/control/start-run" in ORDERS
    assert {route.path for route in router.routes} == set(ORDERS)  # type: ignore[attr-defined]
    assert all(path.startswith(flower_private.CONTROL) for path in ORDERS)


def test_a_superlink_takes_no_order_that_is_not_signed(superlink: httpx.Client) -> None:
    signed_by_another = flower_private._Signed(b"another").intercept
    for path in ORDERS:
        request = superlink.build_request(
            "POST", path, content=b"", headers={"content-type": "application/protobuf"}
        )
        assert superlink.send(request).status_code == 401, path
        message = PROTOBUF_REQUEST_TYPES["POST", path]()
        context = SimpleNamespace(request=request, message=message)
        answer = signed_by_another(context, lambda one: superlink.send(one.request))
        assert answer.status_code == 401, path


def test_an_order_is_taken_from_who_holds_the_secret_and_once(superlink: httpx.Client) -> None:
    heard = Heard()
    director = control(superlink, flower_private._Signed(SECRET), heard)

    assert isinstance(director.ListRuns(ListRunsRequest()), ListRunsResponse)

    (request,) = heard.requests
    assert superlink.send(request).status_code == 401  # the same again
    assert SECRET.decode() not in str(request.headers)


@pytest.mark.parametrize("change", ["path", "body"])
def test_a_signature_is_worth_nothing_for_another_order(
    superlink: httpx.Client, change: str
) -> None:
    def changed(context: Any, call_next: Any) -> Any:
        request = superlink.build_request(
            "POST",
            "/v1/control/list-nodes" if change == "path" else context.request.url.path,
            content=ListRunsRequest(limit=3).SerializeToString() if change == "body" else b"",
            headers=context.request.headers,
        )
        return superlink.send(request)

    between = SimpleNamespace(intercept=changed)
    director = control(superlink, flower_private._Signed(SECRET), between)

    with pytest.raises(Exception, match="401"):
        director.ListRuns(ListRunsRequest())


def test_a_header_does_not_lead_around_the_door(superlink: httpx.Client) -> None:
    answer = superlink.post(
        "/v1/control/list-runs",
        headers={"content-type": "application/protobuf", "host": "x/v1/fleet/get-run?"},
    )

    assert answer.status_code == 401


def test_a_superlink_without_a_secret_takes_no_orders(app: Any, superlink: httpx.Client) -> None:
    app.state.superexec_auth_secret = None
    director = control(superlink, flower_private._Signed(SECRET))

    with pytest.raises(Exception, match="401"):
        director.ListRuns(ListRunsRequest())
