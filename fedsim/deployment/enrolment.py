"""How nodes that nobody counted beforehand get a number each, and are let in.

They share a folder with whoever directs the run. A node claims the next free number by giving that
name to a folder of its own, which the file system lets one of them do. It leaves its public key
there, and the director leaves word once the SuperLink knows that key. A node that is started again
finds its number and its key where it alone looks.

Who can write to the folder can enrol: it is for nodes that may take part.
"""

import errno
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedsim.deployment.certificates import node_key
from fedsim.errors import Damaged, RunFailed
from fedsim.files import Record, check_plain, read_json, replace_bytes, replace_json

MOST_NODES = 10_000
"""Numbers that there are."""
LARGEST_KEY = 4096
"""Bytes of a public key."""
_KEY, _WELCOME, _OWNER = "public.pem", "welcome.json", "owner.json"


@dataclass(frozen=True)
class Membership:
    """A node's number, and how it shows who it is.

    Attributes:
        number: The client that it plays.
        desk: Its folder among those of all nodes.
        key: Its private key, which nobody else may read.
    """

    number: int
    desk: Path
    key: Path

    @property
    def welcome(self) -> bool:
        """Whether the SuperLink knows it."""
        return (self.desk / _WELCOME).is_file()


@dataclass(frozen=True)
class Enrolled:
    """A node that asks to be let in.

    Attributes:
        number: The client that it plays.
        key: Its public key.
    """

    number: int
    key: ec.EllipticCurvePublicKey


def enrol(folder: Path, own: Path) -> Membership:
    """Claim a number, or the one that this node had before, and hand in the public key.

    Args:
        folder: What all nodes share.
        own: What this node alone may look into, and finds again when it is started again.

    Raises:
        RunFailed: No number is left, or another node has taken this one's.
        Damaged: What it remembers cannot be read.
    """
    memory, secret = own / "node.json", own / "node.key"
    known = _remembered(memory) if memory.is_file() else {"token": uuid4().hex}
    if "number" not in known:
        replace_json(memory, known)  # before the claim: so that it is recognised as ours
    number = _claim(folder, known)
    if known.get("number") != number:
        replace_json(memory, known | {"number": number})
    key = _own_key(secret) if secret.is_file() else node_key(secret)
    desk = _desk(folder, number)
    replace_bytes(
        desk / _KEY,
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
    )
    return Membership(number, desk, secret)


def _remembered(memory: Path) -> Record:
    known = read_json(memory)
    token, number = known.get("token"), known.get("number", 0)
    if not isinstance(token, str) or not isinstance(number, int):
        raise Damaged(f"{memory}: not what a node remembers; remove it to have the node enrol anew")
    return known


def _own_key(secret: Path) -> ec.EllipticCurvePrivateKey:
    key: object = None
    with suppress(ValueError, TypeError, UnsupportedAlgorithm):
        key = serialization.load_ssh_private_key(secret.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Damaged(f"{secret}: not the key of a node; remove it to have another made")
    return key


def _claim(folder: Path, known: Record) -> int:
    token, before = known["token"], known.get("number")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".claim-") as made:
        claim = Path(made) / "claim"
        for number in [before] if isinstance(before, int) else range(MOST_NODES):
            desk = _desk(folder, number)
            replace_json(claim / _OWNER, {"token": token})
            try:
                claim.rename(desk)  # with its owner in it: a folder that is not empty stays
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                owner = desk / _OWNER
                if owner.is_file() and read_json(owner).get("token") == token:
                    return number
                continue
            return number
    if before is not None:
        raise RunFailed(f"another node plays client {before} now; start this one from new")
    raise RunFailed(f"all {MOST_NODES} numbers of '{folder}' are taken")


def enrolled(folder: Path) -> list[Enrolled]:
    """Return the nodes that have a number and handed in a key, in order.

    Raises:
        Damaged: What one handed in is no such key.
    """
    found = []
    for path in folder.glob(f"node-*/{_KEY}"):
        number = path.parent.name.removeprefix("node-")
        if not (number.isascii() and number.isdigit()):
            continue
        check_plain(path, LARGEST_KEY)
        key: object = None
        with suppress(ValueError, TypeError, UnsupportedAlgorithm):
            key = serialization.load_pem_public_key(path.read_bytes())
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise Damaged(f"{path}: not a public key on an elliptic curve that is known")
        found.append(Enrolled(int(number), key))
    return sorted(found, key=lambda one: one.number)


def gathered(
    folder: Path,
    *,
    least: int,
    settle_s: float,
    timeout_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Enrolled]:
    """Wait until nodes are there and no further one comes; return those numbered from 0 on.

    Args:
        folder: What all nodes share.
        least: Nodes without which nothing starts.
        settle_s: Seconds in which nobody came, after which those who are there are all.
        timeout_s: Seconds after which it is given up.
        clock: Tells the time, in seconds.
        sleep: Waits.

    Raises:
        RunFailed: Too few came, or a number before the last is missing.
    """
    begin = newest = clock()
    there = enrolled(folder)
    while len(there) < least or clock() - newest < settle_s:
        if clock() - begin > timeout_s:
            raise RunFailed(
                f"{len(there)} nodes enrolled within {timeout_s:g} s, at least {least} are needed"
            )
        sleep(0.2)
        now = enrolled(folder)
        if len(now) > len(there):
            newest = clock()
        there = now
    numbers = [one.number for one in there]
    if numbers != list(range(len(there))):
        raise RunFailed(
            f"nodes enrolled as {numbers}, and one is missing between them; start all from new"
        )
    return there


def welcome(folder: Path, number: int, node_id: int | None) -> None:
    """Tell a node that the SuperLink knows it; by which id, where that is known."""
    replace_json(_desk(folder, number) / _WELCOME, {"node_id": node_id})


def _desk(folder: Path, number: int) -> Path:
    return folder / f"node-{number}"
