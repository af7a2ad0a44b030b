"""What parses what others wrote, with seeds to mutate and the errors that it may raise.

A target returns normally, or raises one of its documented errors. Files go to a folder that is
given; a target that reads several mutates one of them.
"""

import gzip
import io
import json
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import tomli_w
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from scipy.io import savemat
from tokenizers import BertWordPieceTokenizer

from attacks.observation import Kind, Observation, Reconstruction, Snapshot
from fedsim import lock
from fedsim.config import parse_experiment, shipped
from fedsim.data.corpora import tsv
from fedsim.data.matlab import read_mat
from fedsim.data.mnist import read_idx
from fedsim.data.pickled import read_pickled_arrays
from fedsim.data.tables import adult, csv_table
from fedsim.data.vocabulary import read_vocabulary
from fedsim.end_to_end import Keyring, KeysDiffer, Where
from fedsim.errors import FedsimError
from fedsim.files import (
    parse_lines,
    read_json,
    read_lines,
    read_tensors,
    replace_tensors,
)
from fedsim.packing import pack, unpack
from fedsim.peer_wire import Addressed, deliver, delivered, open_parcel, posts_of, put_post
from fedsim.protocols.peer_protocol import MessageKind, Parcel
from fedsim.records import RunDirectory
from fedsim.sealed_wire import _from_bytes, _to_bytes, public_of, put_sealed, roster_of, unsealed
from fedsim.secure_sum import messages
from fedsim.secure_sum.coordinator import Revealed
from fedsim.secure_sum.field import Layout
from fedsim.secure_sum.keys import ProtocolError, PublicKeys
from fedsim.secure_sum.member import Member
from fedsim.topologies.edge_file import edges
from fedsim.truth import seal, unseal, unseal_update
from fedsim.views import Heard, View, add_to_view, read_view
from fedsim.wire import (
    METRICS,
    PACKED,
    read_metrics,
    read_training_metrics,
    read_update,
    to_record,
    to_tensors,
)
from server import checkpoint, relay_checkpoint
from tests.fuzz.deployed import deployed_targets
from tests.fuzz.mutate import Tree
from tests.fuzz.parser import DOCUMENT, Target, Unbuildable, written


def targets(folder: Path) -> list[Target]:
    """Return all of them; they write their files below a folder."""
    run = RunDirectory.create(folder, "fuzz")
    return [
        *_file_targets(folder, run),
        *_record_targets(run),
        *_checkpoint_targets(run),
        *_wire_targets(),
        *_peer_targets(),
        *_secure_targets(),
        *_text_targets(folder),
        *_data_targets(folder),
        *deployed_targets(folder),
        *(_broken() if os.environ.get("FEDSIM_FUZZ_BREAK") else []),
    ]


def _broken() -> list[Target]:
    """Return parsers that do what none may: the harness must notice."""

    def fail(number: int) -> None:
        if number != 1:
            raise KeyError(number)

    def hang(number: int) -> None:
        while number == -1:
            pass

    def hoard(number: int) -> None:
        try:
            bytearray(1 if number == 1 else 2**31)
        except MemoryError as error:
            raise FedsimError("no") from error

    feeds = {"fails": fail, "hoards": hoard}
    return [
        *(Target(name=f"self test: {name}", seeds=[1], feed=feed) for name, feed in feeds.items()),
        Target(name="self test: hangs", seeds=[1], feed=hang),
    ]


# files of a run


_TENSORS = {
    "update/w": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "visible/w": torch.ones(3, 4, dtype=torch.bool),
    "update/b": torch.tensor(1.5),
    "x": torch.zeros(0, 4, dtype=torch.bfloat16),
}


def _file_targets(folder: Path, run: RunDirectory) -> list[Target]:
    tensors = folder / "tensors.safetensors"
    replace_tensors(tensors, _TENSORS, {"round": "3", "order": "[1]"})
    plain = tensors.read_bytes()
    log = folder / "log.jsonl"
    lines = b'{"round": 0, "accuracy": 0.5}\n{"round": 1, "clients": [0, 1], "loss": null}\n'
    document = folder / "document.json"
    environment: Tree = {"format": 1, "fedsim": "0.1.0", "packages": {"torch": "2.10"}}
    run.config.write_text('name = "x"\n')
    return [
        Target(
            name="tensor file",
            seeds=[plain],
            feed=written(tensors, lambda: read_tensors(tensors)),
        ),
        Target(
            name="JSON document",
            seeds=[environment, {"a": [1, 2.5, None, {"b": "c"}]}],
            feed=written(document, lambda: read_json(document)),
            form=DOCUMENT,
        ),
        Target(
            name="environment of a run",
            seeds=[environment],
            feed=written(run.environment, lambda: RunDirectory.open(run.root)),
            form=DOCUMENT,
        ),
        Target(name="JSON lines", seeds=[lines], feed=lambda text: parse_lines(text, "log")),
        Target(
            name="rounds",
            seeds=[lines],
            feed=written(run.root / "rounds.jsonl", lambda: (run.rounds(), run.rounds_after(0))),
        ),
        Target(
            name="scores",
            seeds=[b'{"observation": "a", "attack": "b", "round": 1, "psnr_db": [1.0]}\n' * 2],
            feed=written(run.root / "scores.jsonl", run.scores),
        ),
        Target(
            name="note of a lock",
            seeds=[{"pid": 1, "host": "one", "since": "2026-01-01T00:00:00", "doing": "attacking"}],
            feed=written(folder / lock.NAME, lambda: _left_by(folder)),
            form=DOCUMENT,
        ),
        Target(name="log", seeds=[lines], feed=written(log, lambda: read_lines(log))),
    ]


def _left_by(folder: Path) -> str:
    with lock.locked(folder, "reading it") as left_by:
        if left_by is None:
            raise FedsimError("nobody can be made out")
        return left_by


def _observation() -> Observation:
    weights = {"w": torch.ones(3, 4), "b": torch.tensor(0.5)}
    return Observation(
        round=1,
        sender="client-0",
        receiver="server",
        kind=Kind.GRADIENT,
        update={name: one * 2 for name, one in weights.items()},
        visible={name: one > 0 for name, one in weights.items()},
        weights=weights,
        num_examples=4,
        num_bytes=100,
        isolated="exact",
        expected_error=0.1,
    )


def _record_targets(run: RunDirectory) -> list[Target]:
    identity = run.write_observation(_observation(), members=["client-0"], told_after=2)
    seen = run.root / "observations" / f"{identity}.json"
    guess = Reconstruction(
        inputs=torch.rand(2, 1, 4, 4),
        labels=torch.tensor([1, 2]),
        steps=3,
        snapshots=(Snapshot(step=1, inputs=torch.rand(2, 1, 4, 4), matching_loss=0.5),),
        notes={"why": "because", "how much": 2.0},
    )
    run.write_reconstruction(read_json(seen), "dlg", guess)
    found = run.root / "reconstructions" / f"{identity}--dlg.json"
    parcel = Parcel(kind=MessageKind.MODEL, tensors={"model": torch.rand(6)})
    said = Heard(sender=0, receiver=1, round=1, hop=0, num_bytes=24, parcel=parcel)
    view = View(round=1, hop=0, ear="peer-1", messages=[said], own={"update": torch.rand(6)})
    add_to_view(run, view)
    heard = run.views / f"{view.stem}.json"
    seal(run, 1, "client-0", torch.rand(2, 1, 4, 4), torch.tensor([1, 2]), update=_TENSORS)
    truth = run.root / "truth" / "round-00001-client-0.safetensors"
    run.write_alarms(1, "client-0", [{"check": "x", "message": "y", "value": 1.0, "threshold": 2}])
    alarms = run.root / "alarms" / "round-00001-client-0.json"

    def read_guess() -> object:
        return [run.read_reconstruction(one) for one in run.reconstruction_records()]

    def read_seen() -> object:
        return run.observation_records(), run.read_observation(identity)

    def read_truth() -> object:
        return unseal(run, 1, "client-0"), unseal_update(run, 1, "client-0")

    def both(name: str, record: Path, read: Callable[[], object]) -> list[Target]:
        tensors = record.with_suffix(".safetensors")
        whole, seed = record.read_bytes(), tensors.read_bytes()

        def feed_tensors(content: bytes) -> object:
            record.write_bytes(whole)
            tensors.write_bytes(content)
            return read()

        def feed_record(content: bytes) -> object:
            tensors.write_bytes(seed)
            record.write_bytes(content)
            return read()

        return [
            Target(
                name=f"{name} record", seeds=[read_json(record)], feed=feed_record, form=DOCUMENT
            ),
            Target(name=f"{name} tensors", seeds=[seed], feed=feed_tensors),
        ]

    return [
        *both("observation", seen, read_seen),
        *both("reconstruction", found, read_guess),
        *both("view", heard, lambda: read_view(run, view.stem)),
        Target(name="truth", seeds=[truth.read_bytes()], feed=written(truth, read_truth)),
        Target(
            name="alarms",
            seeds=[read_json(alarms)],
            feed=written(alarms, lambda: run.alarms(1, "client-0")),
            form=DOCUMENT,
        ),
    ]


def _checkpoint_targets(run: RunDirectory) -> list[Target]:
    weights = {"w": torch.ones(3, 4), "b": torch.zeros(4)}
    checkpoint.save(run, 3, to_record(weights), FedAvg())
    served = run.checkpoint.read_bytes()
    late = Addressed(
        sender=0,
        to=(1,),
        round=2,
        hop=0,
        arrays=to_record({"values": torch.ones(2), "places": torch.tensor([1, 3])}),
        about=ConfigRecord({"kind": "sparse-change", "chunk": -1}),
    )
    relay_checkpoint.save(run, 3, weights, {1: [late]}, {2}, {3})
    relayed = run.checkpoint.read_bytes()
    return [
        Target(
            name="checkpoint of a server",
            seeds=[served],
            feed=written(run.checkpoint, lambda: checkpoint.restore(run, FedAvg())),
        ),
        Target(
            name="checkpoint of a relay",
            seeds=[relayed],
            feed=written(run.checkpoint, lambda: relay_checkpoint.restore(run)),
        ),
    ]


# messages


def _arrays(tree: Mapping[str, Tree]) -> ArrayRecord:
    try:
        return ArrayRecord(
            {
                name: Array(dtype, tuple(shape), stype, data)
                for name, (dtype, shape, stype, data) in tree.items()
            }
        )
    except Exception as error:
        raise Unbuildable from error


def _config(tree: Mapping[str, Tree]) -> ConfigRecord:
    try:
        return ConfigRecord(dict(tree))
    except Exception as error:
        raise Unbuildable from error


def _message(tree: Tree) -> RecordDict:
    """Return the message that a tree stands for: arrays, numbers and settings, by record."""
    try:
        content = RecordDict()
        for name, arrays in tree["arrays"].items():
            content[name] = _arrays(arrays)
        for name, config in tree["configs"].items():
            content[name] = _config(config)
        for name, numbers in tree["metrics"].items():
            content[name] = MetricRecord(dict(numbers))
    except Exception as error:
        raise Unbuildable from error
    return content


def _tree_of(content: RecordDict) -> Tree:
    return {
        "arrays": {name: _array_tree(one) for name, one in content.array_records.items()},
        "configs": {name: dict(one) for name, one in content.config_records.items()},
        "metrics": {name: dict(one) for name, one in content.metric_records.items()},
    }


def _array_tree(record: ArrayRecord) -> Tree:
    return {name: [one.dtype, list(one.shape), one.stype, one.data] for name, one in record.items()}


def _wire_targets() -> list[Target]:
    expected = {
        "w": torch.zeros(3, 4),
        "b": torch.zeros(4),
        "n": torch.zeros((), dtype=torch.int64),
    }
    buffers = {"mean": torch.zeros(4)}
    content = RecordDict({"arrays": to_record(expected), "buffers": to_record(buffers)})
    content[METRICS] = MetricRecord({"num-examples": 4, "train_loss": 0.5})
    words = np.array([1.5, 0, 0, 0, 2.5, 0, 1.5, 0] * 8, dtype=np.float32).view(np.uint32)
    packed = RecordDict({"arrays": to_record({"b": torch.zeros(4), "n": expected["n"]})})
    packed.array_records["arrays"]["w"] = Array("float32", (3, 4), PACKED, pack(words[:12]))
    packed["buffers"] = content["buffers"]
    packed[METRICS] = content[METRICS]
    measured = RecordDict(
        {
            METRICS: MetricRecord(
                {"num-examples": 4, "accuracy": 0.5, "loss": 1.0, "train_loss": 2.0}
            )
        }
    )

    def update(tree: Tree) -> object:
        return read_update(_message(tree), expected=expected, expected_buffers=buffers)

    def plain(tree: Tree) -> object:
        return to_tensors(_arrays(tree))

    def metrics(tree: Tree) -> object:
        message = _message(tree)
        read_training_metrics(message)
        return read_metrics(message)

    forms = [words, words * 0, np.arange(64, dtype=np.uint32) * 77_777_777]
    halves = np.arange(64, dtype=np.float32).view(np.uint32)
    noise = np.random.default_rng(0).standard_normal(64).astype(np.float32).view(np.uint32)
    return [
        Target(name="update", seeds=[_tree_of(content), _tree_of(packed)], feed=update),
        Target(
            name="weights sent down",
            seeds=[_array_tree(content.array_records["arrays"])],
            feed=plain,
            refusals=(FedsimError, ValueError),
        ),
        Target(name="metrics", seeds=[_tree_of(measured)], feed=metrics),
        Target(
            name="packed tensor",
            seeds=[pack(one) for one in (*forms, halves, noise)],
            feed=lambda data: unpack(data, 64) if isinstance(data, bytes) else None,
            refusals=(ValueError,),
        ),
    ]


def _peer_targets() -> list[Target]:
    size = 12
    parcels = [
        Parcel(kind=MessageKind.MODEL, tensors={"model": torch.ones(size)}),
        Parcel(
            kind=MessageKind.SHARE,
            tensors={"numerator": torch.ones(size), "mass": torch.ones(1, dtype=torch.float64)},
        ),
        Parcel(
            kind=MessageKind.SPARSE_CHANGE,
            tensors={"values": torch.ones(2), "places": torch.tensor([1, 3])},
        ),
        Parcel(kind=MessageKind.REQUEST),
        Parcel(
            kind=MessageKind.PARTIAL_SUM,
            tensors={"chunk": torch.ones(4)},
            chunk=1,
            num_chunks=3,
            members=(0, 1),
        ),
    ]
    said = RecordDict()
    for place, parcel in enumerate(parcels):
        put_post(said, place, [1, 2], parcel)
    posts = posts_of(said, sender=0, server_round=1, hop=0, receivers=[1, 2])
    brought = RecordDict()
    deliver(brought, posts)
    one, other = Keyring.new("run", 0), Keyring.new("run", 1)
    one, other = one.meeting({1: other.public}), other.meeting({0: one.public})
    where = Where(purpose="hop", round=1, hop=0)
    sealed = RecordDict()
    put_sealed(sealed, posts, one, where)
    in_transit = RecordDict()
    deliver(in_transit, posts_of(sealed, sender=0, server_round=1, hop=0, receivers=[1]))
    inside = [_to_bytes(post, place) for place, post in enumerate(posts)]
    told = RecordDict(
        {"public-keys": ConfigRecord({"peers": [0, 1], "public-key": [one.public, other.public]})}
    )

    def relay(tree: Tree) -> object:
        found = posts_of(_message(tree), sender=0, server_round=1, hop=0, receivers=[1, 2])
        return [_opened(post, size) for post in found]

    def peer(tree: Tree) -> object:
        return [_opened(post, size) for post in delivered(_message(tree))]

    def decrypt(tree: Tree) -> object:
        return [unsealed(post, other, where) for post in delivered(_message(tree))]

    def within(data: Tree) -> object:
        if not isinstance(data, bytes):
            raise Unbuildable
        opened, _ = _from_bytes(posts[0], data)
        return _opened(opened, size)

    def keys(tree: Tree) -> object:
        return Keyring.new("run", 5).meeting(roster_of(_message(tree)))

    return [
        Target(name="parcels at the relay", seeds=[_tree_of(said)], feed=relay),
        Target(name="parcels at a peer", seeds=[_tree_of(brought)], feed=peer),
        Target(name="encrypted parcels", seeds=[_tree_of(in_transit)], feed=decrypt),
        Target(name="inside an encrypted parcel", seeds=inside, feed=within),
        Target(name="public keys", seeds=[_tree_of(told)], feed=keys),
        Target(
            name="public key of a peer",
            seeds=[_tree_of(RecordDict({"public-keys": ConfigRecord({"public-key": one.public})}))],
            feed=lambda tree: public_of(_message(tree)),
        ),
        Target(
            name="keyring",
            seeds=[_json(one.to_json())],
            feed=lambda text: Keyring.from_json(text.decode(errors="replace")),
            form=DOCUMENT,
            refusals=(KeysDiffer,),
        ),
    ]


def _opened(post: Addressed, size: int) -> object:
    return open_parcel(post, kinds=set(MessageKind), size=size, dtype=torch.float32)


def _json(text: str) -> Tree:
    return json.loads(text)


def _secure_targets() -> list[Target]:
    keys = {0: PublicKeys(bytes(32), bytes(32)), 1: PublicKeys(bytes(32), bytes(32))}
    record = RecordDict()
    record["secure"] = messages.pack_keys(keys)
    shares = RecordDict({"secure": messages.pack_unmasking([0, 1], {0: bytes(48), 1: bytes(48)})})
    revealed = Revealed({0: bytes(16)}, {1: bytes(16)})
    open_ = RecordDict({"secure": messages.pack_revealed(revealed)})
    masked = RecordDict({"masked": messages.pack_masked(np.arange(18, dtype=np.uint32))})
    layout = Layout({"w": (3, 4), "b": (4,)}, {})
    member = Member(0, "round 1", 2, bytes(32), bytes(16), bytes(16), keys=keys)
    reads: list[tuple[str, RecordDict, Callable[[RecordDict], object]]] = [
        ("public keys", record, messages.read_keys),
        ("shares", shares, messages.read_sealed),
        ("survivors", shares, messages.read_clients),
        ("what is revealed", open_, lambda one: messages.read_revealed(one, [0], [1])),
        ("masked update", masked, lambda one: messages.read_masked(one, layout)),
    ]

    def feeding(read: Callable[[RecordDict], object]) -> Callable[[Tree], object]:
        return lambda tree: read(_message(tree))

    return [
        *(
            Target(name=f"secure sum: {name}", seeds=[_tree_of(seed)], feed=feeding(read))
            for name, seed, read in reads
        ),
        Target(
            name="secure sum: secrets of a member",
            seeds=[_json(member.to_json())],
            feed=lambda text: Member.from_json(text.decode(errors="replace")),
            form=DOCUMENT,
            refusals=(ProtocolError,),
        ),
    ]


# text


def _text_targets(folder: Path) -> list[Target]:
    links = folder / "links.txt"
    experiments = [text.encode() for text in shipped().values()]

    def experiment(text: bytes) -> object:
        return parse_experiment(text.decode(errors="replace"))

    return [
        Target(name="experiment (TOML)", seeds=experiments, feed=experiment),
        Target(
            name="edge file",
            seeds=[b"# ring\n0 1\n1,2\n2 3 # x\n3 0\n"],
            feed=written(links, lambda: edges(4, path=str(links))),
            refusals=(ValueError,),
        ),
    ]


# data sets

AS_PUBLISHED = (
    b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04"
    b"K\x00\x85U\x01b\x87Rq\x05(K\x01K\x02K\x0c\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07"
    b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x18abcdefghijklmnopqrstuvwxtb"
    b"U\x06labels]q\x08(K\x01K\x02eu."
)
"""A batch of two images of 12 bytes as Python 2 wrote it, as the published files are."""


def _data_targets(folder: Path) -> list[Target]:
    images = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    idx = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in images.shape)
    idx += images.tobytes()
    plain, packed = folder / "plain-idx", folder / "packed-idx"
    batch = {"data": np.zeros((2, 12), np.uint8), "labels": [1, 2], "names": ["a", "b"]}
    cifar = folder / "batch"
    mat = folder / "x.mat"
    mats = []
    for compressed in (False, True):
        stream = io.BytesIO()
        savemat(
            stream,
            {"X": np.zeros((4, 4, 3, 2), np.uint8), "y": np.array([[1], [10]], np.uint8)},
            do_compression=compressed,
        )
        mats.append(stream.getvalue())
    return [
        Target(name="idx", seeds=[idx], feed=written(plain, lambda: read_idx(plain))),
        Target(
            name="idx, packed",
            seeds=[gzip.compress(idx, mtime=0)],
            feed=written(packed.with_name("packed-idx.gz"), lambda: read_idx(packed)),
        ),
        Target(
            name="CIFAR (pickle)",
            seeds=[pickle.dumps(batch, protocol=4), AS_PUBLISHED],
            feed=written(cifar, lambda: read_pickled_arrays(cifar)),
        ),
        Target(name="SVHN (MATLAB)", seeds=mats, feed=written(mat, lambda: read_mat(mat))),
        *_table_targets(folder),
        *_corpus_targets(folder),
    ]


_ROWS = b"".join(b"%d, red, %.1f, no\n%d, green, %.1f, yes\n" % (n, n, n, n / 2) for n in range(20))
_SCHEMA: Tree = {
    "label": "bought",
    "classes": ["no", "yes"],
    "categories": {"colour": []},
    "numbers": {
        "age": {"low": 0, "high": 90, "whole": True},
        "weight": {"low": 0.0, "high": 50.0},
    },
    "drop": [],
    "delimiter": ",",
}
_CENSUS = (
    b"39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, "
    b"Male, 2174, 0, 40, United-States, <=50K\n"
    b"52, Self-emp-not-inc, 209642, HS-grad, 9, Married-civ-spouse, Exec-managerial, Husband, "
    b"White, Male, 0, 0, 45, United-States, >50K\n"
)


def _table_targets(folder: Path) -> list[Target]:
    rows = b"age, colour, weight, bought\n" + _ROWS
    table, schema = folder / "table.csv", folder / "schema.json"
    for file in ("adult.data", "adult.test"):
        (folder / file).write_bytes(_CENSUS)

    def described(content: bytes) -> object:
        table.write_bytes(rows)
        schema.write_bytes(content)
        return csv_table(root=folder, file=table.name, schema=schema.name)

    def described_in_toml(content: bytes) -> object:
        table.write_bytes(rows)
        schema.with_suffix(".toml").write_bytes(content)
        return csv_table(root=folder, file=table.name, schema="schema.toml")

    return [
        Target(
            name="rows (CSV)",
            seeds=[rows],
            feed=written(
                table, lambda: csv_table(root=folder, file=table.name, schema=dict(_SCHEMA))
            ),
        ),
        Target(
            name="rows (CSV), packed",
            seeds=[gzip.compress(rows, mtime=0)],
            feed=written(
                folder / "table.csv.gz",
                lambda: csv_table(root=folder, file="table.csv.gz", schema=dict(_SCHEMA)),
            ),
        ),
        Target(name="schema of rows (JSON)", seeds=[_SCHEMA], feed=described, form=DOCUMENT),
        Target(
            name="schema of rows (TOML)",
            seeds=[tomli_w.dumps(_SCHEMA).encode()],
            feed=described_in_toml,
        ),
        Target(
            name="Adult",
            seeds=[_CENSUS],
            feed=written(folder / "adult.data", lambda: adult(root=folder)),
        ),
    ]


def _corpus_targets(folder: Path) -> list[Target]:
    lines = b"sentence\tlabel\n" + b"The cat sat.\t1\nA dog ran off.\t0\n" * 6
    texts, words = folder / "texts.tsv", folder / "vocab.txt"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(one) for one in range(ord("a"), ord("z") + 1)]
    listed = "\n".join([*special, *letters, *(f"##{one}" for one in letters), "."]) + "\n"
    words.write_text(listed)
    known = folder / "known.txt"  # what learns one takes long
    known.write_text(listed)
    pieces = folder / "tokenizer.json"
    tokenizer = BertWordPieceTokenizer(str(words), lowercase=True)

    def read(task: Literal["classes", "causal"]) -> object:
        return tsv(root=folder, file=texts.name, task=task, vocabulary=str(known), length=8)

    return [
        Target(
            name="texts with classes (TSV)",
            seeds=[lines],
            feed=written(texts, lambda: read("classes")),
        ),
        Target(name="texts (TSV)", seeds=[lines], feed=written(texts, lambda: read("causal"))),
        Target(
            name="vocabulary, a token per line",
            seeds=[listed.encode()],
            feed=written(words, lambda: read_vocabulary(words)),
        ),
        Target(
            name="vocabulary (JSON)",
            seeds=[json.loads(tokenizer.to_str())],
            feed=written(pieces, lambda: read_vocabulary(pieces)),
            form=DOCUMENT,
        ),
    ]
