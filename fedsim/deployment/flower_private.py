"""What a deployment needs of Flower's private parts, and nothing else of ours touches.

`tests/fedsim/deployment/test_flower_private.py` is the contract test: it fails when a new Flower
moves any of these.
"""

import hashlib
import ssl
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, Any, Self

import httpx
import tomli_w
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Context, Message, RecordDict
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import PUBLIC_KEY_ALREADY_IN_USE_MESSAGE, SubStatus
from flwr.common.serde import (
    fab_to_proto,
    message_from_proto,
    message_to_proto,
    recorddict_from_proto,
    recorddict_to_proto,
)
from flwr.proto.control_pb2 import RegisterNodeRequest, StartRunRequest
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.auth import create_superexec_auth_metadata, derive_auth_secret
from flwr.supercore.constant import TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from flwr.supernode.runtime.run_clientapp import (
    pull_task_input,
    push_message,
    push_task_output,
)

from fedsim.deployment.flower_waits import (
    BUSY_S,
    hasten_grid,
    hasten_superlink,
    hasten_supernode,
)

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

CRASHED = 8
"""Flower's error code for a ClientApp that stopped responding."""
ANSWER_S = 5.0
"""Seconds that a SuperLink may take to say that it is well."""
ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
CONTROL = "/v1/control/"
"""Where a SuperLink takes orders: to start runs, to register nodes, and the like."""


def run_superlink(arguments: list[str]) -> None:
    """Be a SuperLink until ended."""
    from flwr.superlink.cli.flower_superlink import flower_superlink

    hasten_superlink()
    obey_the_director_alone()
    sys.argv = ["flower-superlink", *arguments]
    flower_superlink()


def obey_the_director_alone() -> None:
    """Have the SuperLink of this process refuse orders of who does not hold its secret (401).

    Flower takes them from everybody who reaches it, and the oldest run is what the ServerApp
    carries out, code included.
    """
    from flwr.superlink import main
    from starlette.middleware import Middleware

    layers = main._get_middleware()
    # the layer that reads requests goes before the one that checks what they are signed with
    names = [getattr(one.cls, "__name__", "") for one in layers]
    layers.insert(names.index("ProtobufTranslationMiddleware") + 1, Middleware(_DirectorAlone))
    main._get_middleware = lambda: list(layers)


class _DirectorAlone:
    """A layer around a SuperLink: orders must be signed as an executor signs that it wants a task.

    The signature covers path, body, time and a number used once, so that the secret itself never
    crosses the link, and who hears a request on plain HTTP can neither change nor repeat it.
    """

    def __init__(self, app: "ASGIApp") -> None:
        self.app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Pass a request on, or refuse it."""
        # the path by which it is routed; that of `request.url` can be bent by a header
        if scope["type"] == "http" and scope["path"].startswith(CONTROL):
            _check_director(scope)
        await self.app(scope, receive, send)


def _check_director(scope: "Scope") -> None:
    from fastapi import Request
    from flwr.supercore.dependencies.superexec import authenticate_superexec_request
    from flwr.supercore.error import ApiErrorCode, FlowerError

    request = Request(scope)
    state = request.app.state
    if state.superexec_auth_secret is None:  # Flower checks nothing then
        raise FlowerError(
            ApiErrorCode.RUNTIME_AUTHENTICATION_FAILED, "this SuperLink has no secret"
        )
    authenticate_superexec_request(request, state.linkstate_factory.state(), scope["path"])


def run_supernode(arguments: list[str]) -> None:
    """Be a SuperNode until ended."""
    from flwr.supernode.cli.flower_supernode import flower_supernode

    hasten_supernode()
    sys.argv = ["flower-supernode", *arguments]
    flower_supernode()


def run_server_app(address: str, authority: Path | None, secret: bytes) -> None:
    """Take the one ServerApp task that a SuperLink has, and carry it out."""
    from flwr.superlink.runtime.run_serverapp import run_serverapp

    hasten_grid()
    certificates = None if authority is None else authority.read_bytes()
    client = _runtime_client(address, certificates, secret, "flwr-serverapp")
    request = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
    while True:
        with suppress(httpx.TransportError):
            answer = client.AcquireTask(request)
            if answer.HasField("task"):
                break
        time.sleep(BUSY_S)
    client.close()
    run_serverapp(
        runtime_api_address=address,
        log_queue=Queue(),
        token=answer.token,
        insecure=authority is None,
        certificates=certificates,
        runtime_dependency_install=False,
    )


def _runtime_client(
    address: str, certificates: bytes | None, secret: bytes, name: str, *more: Any
) -> RuntimeHttpClient:
    return RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=certificates is None,
        root_certificates=certificates,
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name=name),
            SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={ACQUIRE}),
            *more,
        ],
    )


class _Token:
    """Shows the token of the task at hand, where there is one."""

    def __init__(self) -> None:
        self.inner: RuntimeTokenHttpInterceptor | None = None

    def show(self, token: str) -> None:
        """Show this token from now on; an empty one: none."""
        self.inner = RuntimeTokenHttpInterceptor(token) if token else None

    def intercept(self, context: Any, call_next: Any) -> httpx.Response:
        """Add the token to a request."""
        if self.inner is None:
            return call_next(context)  # type: ignore[no-any-return]
        return self.inner.intercept(context, call_next)


@dataclass(frozen=True)
class Task:
    """A message that a ClientApp is to answer."""

    message: Message
    context: Context


class TaskSource:
    """Where an executor takes tasks from, and brings answers to: the SuperNode's Runtime API.

    Args:
        address: Of the SuperNode's Runtime API, on this machine.
        secret: What executors and their SuperNode share.
    """

    def __init__(self, address: str, secret: bytes) -> None:
        self._token = _Token()
        self._client = _runtime_client(address, None, secret, "flwr-clientapp", self._token)

    def acquire(self) -> str | None:
        """Return the token of a task, if there is one; may wait a little for one.

        Raises:
            httpx.TransportError: Nobody answers at the address.
        """
        self._token.show("")
        answer = self._client.AcquireTask(
            AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
        )
        return answer.token if answer.HasField("task") else None

    def take(self, token: str) -> Task:
        """Return the message to answer, and the context to answer it in."""
        self._token.show(token)
        message, context, _, _ = pull_task_input(self._client)
        return Task(message, context)

    def ask_again(self, token: str) -> Message:
        """Return the message of a task that was taken, without its content.

        Raises:
            RuntimeError: The SuperNode does not know.
        """
        self._token.show(token)
        answer = self._client.PullMessages(PullAppMessagesRequest())
        if not answer.messages_list:
            raise RuntimeError("the SuperNode does not say what the task was about")
        return message_from_proto(answer.messages_list[0])

    def give(self, reply: Message, context: Context | None) -> None:
        """Bring an answer, and the context as it is now; None leaves it as it was."""
        about = reply.metadata
        carrier = context or Context(about.run_id, about.src_node_id, {}, RecordDict(), {})
        push_message(self._client, reply, carrier)
        failed = reply.has_error()
        status = SubStatus.FAILED if failed else SubStatus.COMPLETED
        push_task_output(self._client, context, status, reply.error.reason or "" if failed else "")

    def beat(self) -> None:
        """Say that the task goes on; what comes of saying so does not matter."""
        with suppress(httpx.HTTPError):
            self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest())

    def show(self, token: str) -> None:
        """Speak for this task from now on."""
        self._token.show(token)


def message_to_bytes(message: Message) -> bytes:
    """Return a message as Flower writes it."""
    return bytes(message_to_proto(message).SerializeToString(deterministic=True))


def message_from_bytes(data: bytes) -> Message:
    """Return the message that `message_to_bytes` wrote."""
    return message_from_proto(ProtoMessage.FromString(data))


def content_to_bytes(content: RecordDict) -> bytes:
    """Return the content of a message as Flower writes it."""
    return bytes(recorddict_to_proto(content).SerializeToString(deterministic=True))


def content_from_bytes(data: bytes) -> RecordDict:
    """Return the content that `content_to_bytes` wrote.

    Raises:
        Exception: They are no such bytes.
    """
    return recorddict_from_proto(ProtoRecordDict.FromString(data))


# who directs


class _Signed:
    """Signs orders, as `_DirectorAlone` wants them."""

    def __init__(self, secret: bytes) -> None:
        self._secret = derive_auth_secret(secret)

    def intercept(self, context: Any, call_next: Any) -> httpx.Response:
        """Add the signature to a request."""
        request: httpx.Request = context.request
        signature = create_superexec_auth_metadata(
            auth_secret=self._secret, method=request.url.path, request=context.message
        )
        request.headers.update(signature)
        return call_next(context)  # type: ignore[no-any-return]


class Control:
    """Registers nodes at a SuperLink, and starts the run.

    Args:
        address: Of the SuperLink.
        authority: Certificate of who signed the SuperLink's; None where it has none.
        secret: What the SuperLink knows its director by.
    """

    def __init__(self, address: str, authority: Path | None, secret: bytes) -> None:
        self.address = address
        self.certificates = None if authority is None else authority.read_bytes()
        self._client = ControlHttpClient.from_server_address(
            server_address=address,
            insecure=authority is None,
            root_certificates=self.certificates,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="fedsim"), _Signed(secret)],
        )

    def answers(self) -> bool:
        """Whether the SuperLink says, within some seconds, that it is well."""
        trusted = None
        if self.certificates is not None:
            trusted = ssl.create_default_context(cadata=self.certificates.decode())
        scheme = "http" if trusted is None else "https"
        with suppress(httpx.HTTPError):
            url = f"{scheme}://{self.address}/health"
            said = httpx.get(url, verify=trusted or False, timeout=ANSWER_S, trust_env=False)
            return said.is_success
        return False

    def register(self, key: ec.EllipticCurvePublicKey) -> int | None:
        """Let a node in by its public key; return its id, or None if the key is known already.

        Raises:
            httpx.HTTPError: The SuperLink refuses it, or cannot be reached.
        """
        request = RegisterNodeRequest(public_key=public_key_to_bytes(key))
        try:
            return int(self._client.RegisterNode(request).node_id)
        except httpx.HTTPStatusError as error:
            if PUBLIC_KEY_ALREADY_IN_USE_MESSAGE in error.response.text:
                return None
            raise

    def start(self, project: Mapping[str, Any]) -> int:
        """Start the run of an app that is a project file and nothing else; return its id."""
        content, _ = build_fab_from_files({"pyproject.toml": tomli_w.dumps(project).encode()})
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        return int(self._client.StartRun(StartRunRequest(fab=fab_to_proto(fab))).run_id)

    def declare_lost(self, node_id: int, key: ec.EllipticCurvePrivateKey) -> None:
        """Say that a node is gone, as it would have said itself; who waits for it need not."""
        with FleetHttpClient.from_server_address(
            self.address,
            self.certificates is None,
            self.certificates,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(key, key.public_key()),
            ],
        ) as client:
            client.DeactivateNode(DeactivateNodeRequest(node_id=node_id))

    def __enter__(self) -> Self:
        """Return it; its connection ends with the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the connection."""
        self._client.close()
