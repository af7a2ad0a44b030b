"""Who and what a SuperLink with TLS and keys refuses, and the reason that it gives.

One real SuperLink answers all tests of this file; what it says is Flower's.
"""

import copy
import datetime
import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import tomli_w
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message, MetricRecord, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto, message_from_proto, message_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.superlink.grid.http_grid import HttpGrid
from flwr.supernode import node_auth_http_interceptor
from flwr.supernode.fleet_http_client import FleetHttpClient

from fedsim.deployment import flower_private, parts, processes
from fedsim.deployment.certificates import Certificates, issue, node_key
from fedsim.deployment.flower_private import Control
from fedsim.deployment.parts import HOST, Site
from fedsim.deployment.processes import Part
from fedsim.engines.flower_private import assume_server_identity, empty_run

pytestmark = [pytest.mark.slow, pytest.mark.flwr_runtime]


@dataclass
class Link:
    """A SuperLink, and what it takes to meet it."""

    site: Site
    address: str
    certificates: Certificates
    part: Part


def open_link(folder: Path, **validity: datetime.datetime | datetime.timedelta) -> Link:
    (logs := folder / "logs").mkdir()
    site = Site(folder, logs)
    certificates = issue(folder / "certificates", **validity)  # type: ignore[arg-type]
    (port,) = processes.free_ports(1)
    part = parts.start_superlink(site, port, certificates)
    link = Link(site, f"{HOST}:{port}", certificates, part)
    processes.wait_until(lambda: processes.answers(link.address), part, timeout_s=120.0)
    return link


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    """A sound SuperLink."""
    opened = open_link(tmp_path_factory.mktemp("link"))
    yield opened
    processes.end([opened.part])


def last_words_of_node(link: Link, number: int, authority: Path | None, key: Path | None) -> str:
    """Start a SuperNode that must not get in; return how it ended."""
    (port,) = processes.free_ports(1)
    part = parts.start_supernode(
        link.site, number, of=9, superlink=link.address, port=port, authority=authority, key=key
    )
    try:
        part.process.wait(120.0)
    finally:
        processes.end([part])
    assert part.ended != 0
    return part.log.read_text()


def test_a_node_with_a_key_that_nobody_registered_is_refused(link: Link) -> None:
    rogue = link.site.home / "rogue.key"
    node_key(rogue)

    said = last_words_of_node(link, 1, link.certificates.authority, rogue)

    assert "Exit Code: 305" in said
    assert "[code: 2004] Failed to activate SuperNode." in said
    assert '"POST /v1/fleet/activate-node HTTP/1.1" 412' in link.part.log.read_text()


def test_a_node_without_a_key_is_refused(link: Link) -> None:
    said = last_words_of_node(link, 2, link.certificates.authority, None)

    assert "Exit Code: 305" in said
    assert "[code: 2001] SuperNode authentication is enabled." in said


def test_a_node_that_trusts_another_authority_goes_away_by_itself(
    link: Link, tmp_path: Path
) -> None:
    key = link.site.home / "other.key"
    node_key(key)

    said = last_words_of_node(link, 3, issue(tmp_path / "other").authority, key)

    assert "Exit Code: 305" in said
    assert "CERTIFICATE_VERIFY_FAILED" in said


def test_a_superlink_whose_certificate_is_out_of_date_finds_no_nodes(tmp_path: Path) -> None:
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    stale = open_link(tmp_path, start=yesterday, lifetime=datetime.timedelta(hours=1))
    try:
        key = tmp_path / "node.key"
        node_key(key)

        said = last_words_of_node(stale, 4, stale.certificates.authority, key)
    finally:
        processes.end([stale.part])

    assert "Exit Code: 305" in said
    assert "certificate has expired" in said


def test_nobody_takes_the_task_of_the_server_app_without_the_secret(link: Link) -> None:
    authority = link.certificates.authority.read_bytes()
    client = flower_private._runtime_client(link.address, authority, b"guessed", "flwr-serverapp")

    with client, pytest.raises(httpx.HTTPStatusError) as refusal:
        client.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-serverapp"]))

    assert refusal.value.response.status_code == 401


def director(link: Link, secret: bytes | None = None) -> Control:
    """Who tells a SuperLink what to do, by its secret or another."""
    return Control(
        link.address, link.certificates.authority, secret or link.site.secret.read_bytes()
    )


PROJECT: dict[str, Any] = {
    "project": {"name": "some", "version": "1.0.0"},
    "tool": {
        "flwr": {"app": {"publisher": "us", "components": {"serverapp": "a:b", "clientapp": "a:b"}}}
    },
}


def test_a_superlink_starts_no_run_and_lets_in_no_node_for_who_lacks_the_secret(
    link: Link,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()

    with director(link, b"guessed") as stranger:
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            stranger.start(PROJECT)
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            stranger.register(key)

    with director(link) as control:
        assert control.register(key)  # nobody registered it before


def fleet(link: Link, key: ec.EllipticCurvePrivateKey) -> FleetHttpClient:
    """What speaks for a node."""
    return FleetHttpClient.from_server_address(
        link.address,
        False,
        link.certificates.authority.read_bytes(),
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            node_auth_http_interceptor.NodeAuthHttpInterceptor(key, key.public_key()),
        ],
    )


@dataclass
class Member:
    """A node that was let in."""

    key: ec.EllipticCurvePrivateKey
    node: Node
    client: FleetHttpClient


@pytest.fixture
def members(link: Link) -> Iterator[list[Member]]:
    """Two nodes that were let in."""
    made = []
    for _ in range(2):
        key = ec.generate_private_key(ec.SECP256R1())
        with director(link) as control:
            node_id = control.register(key.public_key())
        client = fleet(link, key)
        public = public_key_to_bytes(key.public_key())
        client.ActivateNode(ActivateNodeRequest(public_key=public, heartbeat_interval=30.0))
        assert node_id is not None
        made.append(Member(key, Node(node_id=node_id), client))
    yield made
    for member in made:
        member.client.close()


def status_of(error: pytest.ExceptionInfo[httpx.HTTPStatusError]) -> tuple[int, str]:
    return error.value.response.status_code, error.value.response.text


def test_a_request_that_was_signed_too_long_ago_is_refused(
    members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.datetime.now(datetime.UTC)
    member = members[0]
    member.client.PullMessages(PullMessagesRequest(node=member.node))
    for minutes in (-6, 6):  # a recording played again later, and a clock that was moved
        then = now + datetime.timedelta(minutes=minutes)
        monkeypatch.setattr(node_auth_http_interceptor, "now", lambda then=then: then)

        with pytest.raises(httpx.HTTPStatusError) as refusal:
            member.client.PullMessages(PullMessagesRequest(node=member.node))

        assert status_of(refusal) == (401, '{"detail":"Invalid SuperNode authentication"}')


def test_a_node_cannot_speak_for_another(members: list[Member]) -> None:
    one, other = members

    with pytest.raises(httpx.HTTPStatusError) as refusal:
        one.client.PullMessages(PullMessagesRequest(node=other.node))

    assert status_of(refusal)[0] == 401


def test_the_director_is_told_whether_a_key_is_known_or_none(
    link: Link, members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    with director(link) as control:
        assert control.register(members[0].key.public_key()) is None
        monkeypatch.setattr(flower_private, "public_key_to_bytes", lambda _: b"no key")
        with pytest.raises(httpx.HTTPStatusError):
            control.register(members[0].key.public_key())


def test_a_superlink_answers_who_trusts_its_authority_and_nobody_answers_elsewhere(
    link: Link, tmp_path: Path
) -> None:
    def answers(address: str, authority: Path) -> bool:
        with Control(address, authority, b"unasked") as control:
            return control.answers()

    (nobody,) = processes.free_ports(1)

    assert answers(link.address, link.certificates.authority)
    assert not answers(link.address, issue(tmp_path / "others").authority)
    assert not answers(f"{HOST}:{nobody}", link.certificates.authority)


def test_a_node_cannot_let_in_another(link: Link, members: list[Member]) -> None:
    public = public_key_to_bytes(members[0].key.public_key())

    with pytest.raises(httpx.HTTPStatusError) as refusal:
        members[0].client.RegisterNode(RegisterNodeFleetRequest(public_key=public))

    code, said = status_of(refusal)
    assert code == 412
    assert "All SuperNodes must be registered" in said


@dataclass
class Running:
    """A run, as its ServerApp sees it."""

    id: int
    grid: HttpGrid

    def ask(self, member: Member) -> Message:
        """Send a node a message; return it as the node gets it."""
        assume_server_identity(self.id)
        (sent,) = self.grid.push_messages([Message(RecordDict(), member.node.node_id, "query")])
        got = member.client.PullMessages(PullMessagesRequest(node=member.node)).messages_list[0]
        assert got.metadata.message_id == sent
        return message_from_proto(got)


@pytest.fixture
def runs(link: Link) -> Iterator[list[Running]]:
    """Two runs under way."""
    made = []
    authority = link.certificates.authority
    secret = link.site.secret.read_bytes()
    for _ in range(2):
        with director(link) as control:
            number = control.start(PROJECT)
        with flower_private._runtime_client(
            link.address, authority.read_bytes(), secret, "flwr-serverapp"
        ) as client:
            taken = client.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-serverapp"]))
        grid = HttpGrid(link.address, False, authority.read_bytes(), token=taken.token)
        grid._runtime_client.PullTaskInput(PullTaskInputRequest())
        grid.set_run(empty_run(number))
        made.append(Running(number, grid))
    yield made
    for one in made:
        one.grid.close()


def reply(member: Member, message: Message, loss: float, run_id: int | None = None) -> list[str]:
    """Bring a reply; return the parts that the SuperLink asks for: none if it does not take it."""
    values = MetricRecord({"loss": loss})
    said = Message(RecordDict({"values": values}), reply_to=message)
    if run_id is not None:
        said.metadata.__dict__["_run_id"] = run_id
    said.metadata.__dict__["_message_id"] = said.object_id
    answer = member.client.PushMessages(
        PushMessagesRequest(
            node=member.node,
            messages_list=[message_to_proto(remove_content_from_message(said))],
            message_object_trees=[get_object_tree(said)],
            clientapp_runtime_list=[0.0],
        )
    )
    return list(answer.objects_to_push)


LASTING_APP = b"""
import time
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    while True:
        print("nodes:", list(grid.get_node_ids()), flush=True)
        time.sleep(0.5)
"""


def test_a_superlink_that_was_started_again_knows_nobody_and_the_server_app_ends(
    tmp_path: Path,
) -> None:
    link = open_link(tmp_path)
    project = copy.deepcopy(PROJECT)
    project["tool"]["flwr"]["app"]["components"] = {"serverapp": "own:app", "clientapp": "own:app"}
    files = {"pyproject.toml": tomli_w.dumps(project).encode(), "own.py": LASTING_APP}
    content, _ = build_fab_from_files(files)
    fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
    with ExitStack() as stack:
        stack.callback(lambda: processes.end([link.part]))
        with director(link) as control:
            control._client.StartRun(StartRunRequest(fab=fab_to_proto(fab)))
        server_app = parts.start_server_app(link.site, link.address, link.certificates.authority)
        stack.callback(processes.end, [server_app])
        processes.wait_until(
            lambda: "nodes: []" in server_app.log.read_text(), server_app, timeout_s=240.0
        )

        processes.end([link.part])
        port = int(link.address.rpartition(":")[2])
        link.part = parts.start_superlink(link.site, port, link.certificates)

        server_app.process.wait(240.0)  # without it, `Ending` tells that it was no good end

    assert "401" in server_app.log.read_text()


def test_of_two_replies_to_a_message_the_first_counts(
    link: Link, members: list[Member], runs: list[Running]
) -> None:
    asked = runs[0].ask(members[0])

    assert reply(members[0], asked, 0.0)
    assert not reply(members[0], asked, 0.001)
    assert "duplicate reply" in link.part.log.read_text()


def test_a_reply_that_was_recorded_in_one_run_is_worth_nothing_in_another(
    link: Link, members: list[Member], runs: list[Running]
) -> None:
    asked = runs[0].ask(members[0])

    assert not reply(members[0], asked, 0.0, run_id=runs[1].id)
    assert "`metadata.run_id` is invalid" in link.part.log.read_text()
    assert reply(members[0], asked, 0.0)


def test_a_node_cannot_reply_to_what_another_was_asked(
    link: Link, members: list[Member], runs: list[Running]
) -> None:
    asked = runs[0].ask(members[0])

    with pytest.raises(httpx.HTTPStatusError) as refusal:
        members[1].client.PushMessages(
            PushMessagesRequest(node=members[0].node, messages_list=[message_to_proto(asked)])
        )
    assert status_of(refusal)[0] == 401
    assert not reply(members[1], asked, 0.0)
    assert f"brought a reply of node {members[0].node.node_id}" in link.part.log.read_text()
    assert reply(members[0], asked, 0.0)
