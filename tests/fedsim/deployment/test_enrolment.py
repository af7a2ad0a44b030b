"""Nodes that nobody counted get a number each, and are let in."""

import base64
import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedsim.deployment.enrolment import Membership, enrol, enrolled, gathered, welcome
from fedsim.errors import Damaged, RunFailed


class Clock:
    """A clock that goes on only while somebody sleeps, and does something at given times."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def node(tmp_path: Path, name: str) -> Membership:
    own = tmp_path / name
    own.mkdir(exist_ok=True)
    return enrol(shared(tmp_path), own)


def shared(tmp_path: Path) -> Path:
    folder = tmp_path / "enrolment"
    folder.mkdir(exist_ok=True)
    return folder


def test_nodes_that_come_at_once_get_the_numbers_from_zero_and_each_another(
    tmp_path: Path,
) -> None:
    shared(tmp_path)

    with ThreadPoolExecutor(16) as pool:
        members = list(pool.map(lambda one: node(tmp_path, f"own-{one}"), range(32)))

    assert sorted(one.number for one in members) == list(range(32))


def test_a_node_that_is_started_again_has_its_number_and_its_key(tmp_path: Path) -> None:
    first = node(tmp_path, "a")
    node(tmp_path, "b")
    key = first.key.read_bytes()

    again = node(tmp_path, "a")

    assert again == first
    assert again.key.read_bytes() == key
    assert [one.number for one in enrolled(shared(tmp_path))] == [0, 1]


def test_a_node_killed_between_its_claim_and_its_memory_finds_the_claim_again(
    tmp_path: Path,
) -> None:
    node(tmp_path, "a")
    memory = tmp_path / "a" / "node.json"
    memory.write_text(json.dumps({"token": json.loads(memory.read_text())["token"]}))

    assert node(tmp_path, "a").number == 0


def test_a_node_keeps_its_number_in_a_folder_that_was_emptied(tmp_path: Path) -> None:
    node(tmp_path, "a")
    second = node(tmp_path, "b")
    (tmp_path / "enrolment").rename(tmp_path / "gone")

    assert node(tmp_path, "b").number == second.number == 1


def test_a_number_that_another_node_took_is_refused(tmp_path: Path) -> None:
    node(tmp_path, "a")
    (tmp_path / "enrolment").rename(tmp_path / "gone")
    node(tmp_path, "b")

    with pytest.raises(RunFailed, match="another node plays client 0 now"):
        node(tmp_path, "a")


def test_nobody_else_may_read_the_key_of_a_node(tmp_path: Path) -> None:
    assert stat.S_IMODE(node(tmp_path, "a").key.stat().st_mode) == 0o600


def test_what_a_node_hands_in_is_its_public_key_and_no_more(tmp_path: Path) -> None:
    me = node(tmp_path, "a")

    (told,) = enrolled(shared(tmp_path))

    assert told.number == 0
    texts = [path.read_text() for path in me.desk.iterdir()]
    assert not any("PRIVATE" in text for text in texts)


P_256 = bytes.fromhex("2a8648ce3d030107")


@pytest.mark.parametrize("what", ["no key", "unknown curve", "no curve"])
def test_a_key_that_is_none_is_refused_by_name(tmp_path: Path, what: str) -> None:
    me = node(tmp_path, "a")
    path = me.desk / "public.pem"
    if what == "no key":
        path.write_text("not a key")
    elif what == "no curve":
        key = ed25519.Ed25519PrivateKey.generate().public_key()
        path.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    else:
        header, *lines, footer = path.read_text().splitlines()
        der = base64.b64decode("".join(lines))
        assert P_256 in der
        lines = [base64.b64encode(der.replace(P_256, P_256[:-1] + b"\x7f")).decode()]
        path.write_text("\n".join([header, *lines, footer]))

    with pytest.raises(Damaged, match=r"public\.pem: not a public key"):
        enrolled(shared(tmp_path))


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("node.key", "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNza"),
        ("node.key", ""),
        ("node.json", "{}"),
        ("node.json", ""),
        ("node.json", '{"token": "mine", "number": "one"}'),
    ],
)
def test_a_memory_that_was_damaged_is_refused_by_name(tmp_path: Path, name: str, left: str) -> None:
    node(tmp_path, "a")
    (tmp_path / "a" / name).write_text(left)

    with pytest.raises(Damaged, match=name):
        node(tmp_path, "a")


def test_a_node_is_welcome_once_it_was_told(tmp_path: Path) -> None:
    me = node(tmp_path, "a")
    assert not me.welcome

    welcome(shared(tmp_path), 0, 17)

    assert me.welcome


def test_gathering_ends_when_nobody_came_for_a_while(tmp_path: Path) -> None:
    clock = Clock()
    node(tmp_path, "own-0")

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if clock.now >= 3.0:
            node(tmp_path, "own-1")
        if clock.now >= 7.0:
            node(tmp_path, "own-2")

    there = gathered(
        shared(tmp_path), least=2, settle_s=5.0, timeout_s=60.0, clock=clock, sleep=sleep
    )

    assert [one.number for one in there] == [0, 1, 2]
    assert 12.0 <= clock.now < 13.0  # five seconds after the last one


def test_gathering_too_few_is_given_up_with_how_many_came(tmp_path: Path) -> None:
    clock = Clock()
    node(tmp_path, "a")

    with pytest.raises(RunFailed, match="1 nodes enrolled within 9 s, at least 2 are needed"):
        gathered(
            shared(tmp_path), least=2, settle_s=1.0, timeout_s=9.0, clock=clock, sleep=clock.sleep
        )


def test_a_gap_between_the_numbers_is_refused(tmp_path: Path) -> None:
    first = node(tmp_path, "a")
    node(tmp_path, "b")
    (first.desk / "public.pem").unlink()
    clock = Clock()

    with pytest.raises(RunFailed, match=r"enrolled as \[1\], and one is missing"):
        gathered(
            shared(tmp_path), least=1, settle_s=1.0, timeout_s=9.0, clock=clock, sleep=clock.sleep
        )
