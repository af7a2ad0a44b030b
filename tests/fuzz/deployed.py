"""What a deployment, a tap and the live page parse, with seeds to mutate.

None of them may end by an error, but a target must tell what was refused: where a reader notes what
it cannot read, or leaves it out, the target says so by an error of its own.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Message, RecordDict

from fedsim.deployment.bundles import BUNDLE, bundle, unbundle
from fedsim.deployment.enrolment import enrol, enrolled
from fedsim.deployment.flower_private import content_from_bytes
from fedsim.deployment.spool import SpoolPool, folder_of
from fedsim.engines.flower_private import assume_server_identity
from fedsim.errors import FedsimError
from fedsim.files import read_json
from fedsim.pool import Job
from fedsim.proxy.http import Budget, Conversation, Direction, Garbled
from fedsim.proxy.listening import only_encrypted, rounds_heard
from fedsim.proxy.rebuild import Rebuilder
from fedsim.proxy.traffic import by_link, read_traffic
from fedsim.records import RunDirectory
from fedsim.report.attack_kinds import attack_kinds
from fedsim.report.reading import attack_labels, settings
from fedsim.watch.cards import Wanted, cards
from fedsim.watch.pictures import Pictures
from fedsim.watch.tensors import Missing, RunTensors
from fedsim.watch.watched import Watched
from fedsim.wire import to_record
from tests.fedsim.proxy import traffic_maker
from tests.fedsim.watch.synthetic import Made
from tests.fuzz.mutate import Tree
from tests.fuzz.parser import DOCUMENT, Target, Unbuildable, written


def deployed_targets(folder: Path) -> list[Target]:
    """Return all of them; they write their files below a folder."""
    run = RunDirectory.create(folder, "deployed")
    return [
        *_tap_targets(),
        *_part_targets(folder, run),
        *_page_targets(folder / "page"),
    ]


# the tap

ASK = b"POST /v1 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
ANSWER = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4;x=y\r\nWiki\r\n0\r\nT: z\r\n\r\n"
LONG = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nyes"


def _tap_targets() -> list[Target]:
    assume_server_identity(1)
    held = RecordDict({"arrays": to_record({"w": torch.ones(3, 4)}), "c": ConfigRecord({"x": 1})})
    asked = Message(bundle(held), 7, "train", group_id="3")
    asked.metadata.__dict__["_message_id"] = asked.object_id  # as the SuperLink stamps it
    said = Message(bundle(held), reply_to=asked)
    calls = [list(call) for call in (*traffic_maker.to_node(asked), *traffic_maker.from_node(said))]
    data = bundle(held)[BUNDLE][BUNDLE]
    return [
        Target(
            name="requests at a tap",
            seeds=[ASK + ASK, ASK + ANSWER.replace(b"HTTP/1.1 200 OK", b"PUT /v1 HTTP/1.1")],
            feed=lambda data: _converse([("up", data), ("down", ANSWER + LONG)]),
            refusals=(Garbled,),
        ),
        Target(
            name="answers at a tap",
            seeds=[ANSWER + LONG, LONG + ANSWER],
            feed=lambda data: _converse([("up", ASK + ASK), ("down", data)]),
            refusals=(Garbled,),
        ),
        Target(name="exchanges at a tap", seeds=[calls], feed=_rebuild),
        Target(name="bundle of a message", seeds=[data], feed=_unbundle),
    ]


def _converse(said: list[tuple[Direction, bytes]]) -> object:
    budget = Budget(2**20)
    talk = Conversation(2**16, budget)
    found = []
    try:
        for direction, data in said:
            for half in (data[: len(data) // 2], data[len(data) // 2 :]):
                found += talk.feed(direction, half)
    finally:
        found += talk.close()
        for one in found:
            budget.give(one.kept)
        assert budget.held == 0
    return found


def _rows(tree: Tree, *kinds: type) -> list[Tree]:
    """Return a tree that is a list of lists of these kinds; of another, nobody can be told."""
    rows = tree if isinstance(tree, list) else [None]
    for row in rows:
        if not isinstance(row, list) or [type(one) for one in row] != list(kinds):
            raise Unbuildable
    return rows


def _rebuild(tree: Tree) -> object:
    notes: list[str] = []
    heard: list[str] = []

    def hear(identity: str, _: Message) -> None:
        heard.append(identity)

    rebuilder = Rebuilder(hear, hear, lambda _, said: notes.append(said), memory=2**24)
    for path, request, answer in _rows(tree, str, bytes, bytes):
        rebuilder.hear(traffic_maker.exchange((path, request, answer)))
    if any("MemoryError" in note for note in notes):  # it catches whatever a decoder raises
        raise MemoryError
    if notes or len(heard) < 2:
        raise FedsimError("something was not heard")
    return heard


def _unbundle(data: Tree) -> object:
    if not isinstance(data, bytes):
        raise Unbuildable
    found = unbundle(RecordDict({BUNDLE: ConfigRecord({BUNDLE: data})}))
    try:
        content_from_bytes(data)
    except Exception as error:  # `unbundle` does not tell what was wrong, and must not fail of it
        raise FedsimError("it cannot be read") from error
    return found


# parts of a deployment


def _part_targets(folder: Path, run: RunDirectory) -> list[Target]:
    desks, own = folder / "desks", folder / "own"
    desks.mkdir()
    own.mkdir()
    enrol(desks, own)
    note = read_json(own / "node.json")
    key = desks / "node-0" / "public.pem"
    pem = key.read_bytes()
    other = ec.generate_private_key(ec.SECP521R1()).public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    pool = SpoolPool(run, clock=lambda: 0.0)
    answer = folder_of(run) / "000001.answer.json"
    done = run.root / "reconstructions" / "a--dlg.json"
    done.write_text("{}")
    said = {"observation": "a", "attack": "dlg", "status": "done", "reason": None}

    def poll(content: bytes) -> object:
        pool.open.clear()
        pool.number = 0
        pool.submit(Job(("a",), "dlg", 1.0))
        answer.write_bytes(content)
        (found,) = pool.poll()
        if found.get("lost"):
            raise FedsimError(found["reason"])
        return found

    heard, traffic = run.root / "heard.json", run.root / "traffic.jsonl"
    return [
        Target(
            name="key of a node",
            seeds=[pem, other.public_bytes(serialization.Encoding.PEM, form)],
            feed=written(key, lambda: enrolled(desks)),
        ),
        Target(
            name="note of a node",
            seeds=[note],
            feed=written(own / "node.json", lambda: enrol(desks, own)),
            form=DOCUMENT,
        ),
        Target(
            name="answer of an attack worker", seeds=[{"answers": [said]}], feed=poll, form=DOCUMENT
        ),
        Target(
            name="what a tap heard",
            seeds=[{"round": 3, "encrypted": False}],
            feed=written(heard, lambda: (rounds_heard(run), only_encrypted(run))),
            form=DOCUMENT,
        ),
        Target(
            name="traffic",
            seeds=[b"".join(json.dumps(one).encode() + b"\n" for one in _bursts())],
            feed=written(traffic, lambda: by_link(read_traffic(run.root))),
        ),
    ]


def _bursts() -> list[dict[str, Tree]]:
    burst = {"connection": 0, "link": "client-0", "direction": "up", "encrypted": False}
    when = {"time": "2026-01-01T00:00:00+00:00", "seconds": 0.5, "bytes": 1000}
    return [burst | when, burst | when | {"direction": "down", "encrypted": True}]


# the live page, and the report


def _page_targets(root: Path) -> list[Target]:
    made = Made(root, rounds=3, clients=2)
    made.begin()
    for number in (1, 2):
        made.play(number)
    made.attack(1, 0)
    run, name = made.run, made.observation(1, 0)
    pristine = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    rounds, scores = pristine[root / "rounds.jsonl"], json.loads(pristine[root / "scores.jsonl"])
    job = {
        "attack": "dlg",
        "observations": [made.observation(2, 0)],
        "started": "2999-01-01T00:00:00+00:00",
        "time_budget_s": 100.0,
        "guesses": {made.observation(2, 0): {"step": 3, "images": 1}},
    }
    film = root / "reconstructions" / f"{name}--dlg.safetensors"

    def page(file: str, taken_in: Callable[[Watched], object]) -> Callable[[bytes], object]:
        path = root / file

        def feed(content: bytes) -> object:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            try:
                watched = Watched(root)
                watched.look()
                told = json.dumps([watched.since(0), cards(watched, Wanted())], allow_nan=False)
                if not taken_in(watched):
                    raise FedsimError("it was left out")
                return told
            finally:
                path.unlink()
                if path in pristine:
                    path.write_bytes(pristine[path])

        return feed

    def line(feed: Callable[[bytes], object]) -> Callable[[bytes], object]:
        return lambda content: feed(content + b"\n")

    def experiment() -> object:
        return settings(run), attack_labels(run), attack_kinds(run, {"oracle": 0, "active": 0})

    config = root / "config.toml"
    bursts = b"".join(json.dumps(one).encode() + b"\n" for one in _bursts())
    documents: Mapping[str, Tree] = {
        "threat.json": read_json(root / "threat.json"),
        "environment.json": {"format": 1, "started": "2026-01-01T00:00:00"},
        "summary.json": {"status": "done", "rounds": 2, "seconds": {"total": 3.0}},
    }
    return [
        Target(
            name="page: rounds",
            seeds=[rounds],
            feed=page("rounds.jsonl", lambda one: len(one.rounds) == 2),
        ),
        Target(
            name="page: a score",
            seeds=[scores],
            feed=line(page("scores.jsonl", lambda one: one.book.entries)),
            form=DOCUMENT,
        ),
        Target(
            name="page: traffic",
            seeds=[bursts],
            feed=page("traffic.jsonl", lambda one: one.traffic.links and not one.traffic.left_out),
        ),
        *(
            Target(
                name=f"page: {file}",
                seeds=[seed],
                feed=page(file, lambda one, file=file: one.documents.get(file)),  # type: ignore[misc]
                form=DOCUMENT,
            )
            for file, seed in documents.items()
        ),
        Target(
            name="page: experiment",
            seeds=[pristine[config]],
            feed=page("config.toml", lambda one: one.config),
        ),
        Target(
            name="page: job of a worker",
            seeds=[job],
            feed=page("progress/w.json", lambda one: one.working),
            form=DOCUMENT,
        ),
        Target(
            name="page: film",
            seeds=[pristine[film]],
            feed=written(film, lambda: Pictures(RunTensors(root)).film(name, "dlg", 0)),
            refusals=(Missing,),
        ),
        Target(
            name="report: experiment",
            seeds=[pristine[config]],
            feed=written(config, experiment),
        ),
    ]
