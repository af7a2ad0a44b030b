"""One schedule of faults: a federation is run through it, and what it leaves is checked.

Nothing here asks the code under test what it should have come to: sound replies are told from
unsound ones by numpy, means are taken anew, and peers are played again from what really reached
them.
"""

import hashlib
import io
import json
import random
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, RecordDict

from clients.app import app
from fedsim.config import Experiment, parse_experiment
from fedsim.driver import forget_after_checkpoint
from fedsim.engines.in_process import InProcessGrid
from fedsim.engines.local import FIRST_NODE
from fedsim.errors import RunFailed
from fedsim.files import Record, part_of, read_tensors
from fedsim.peers import federation_of
from fedsim.records import RunDirectory
from fedsim.seeds import stream
from fedsim.setup import task_of
from fedsim.wire import shared_parameters
from server import peers, rounds
from tests.faults import grid as faults
from tests.faults.damage import payload
from tests.faults.grid import Call, Faulty, Injected, Killed

NUM_ROUNDS = 4

CENTRAL = {
    "fedsgd": ("fedsgd", 4, ""),
    "fedavg": ("fedavg", 4, ""),
    "secure aggregation": (
        "fedsgd",
        5,
        '[[defenses]]\nname = "secure-aggregation"\noptions = { threshold = 3 }',
    ),
}
PEERS = {
    "d-psgd": ("ring", ""),
    "push-sum": ("one-peer-exponential", ""),
    "gossip": ("ring", 'style = "push-pull"'),
    "ring-all-reduce": ("ring", ""),
}
FEDERATIONS = (*CENTRAL, *PEERS)
ASIDE = (peers.REPORT, peers.ADOPT)


class Wrong(AssertionError):
    """What a schedule left is not as it should be."""


@dataclass
class Outcome:
    """What came of a schedule.

    Attributes:
        seed: Names it.
        federation: One of FEDERATIONS.
        ended: "completed", or why the run stopped.
        faults: How often each fault took place.
        rounds: Rounds recorded.
        updated: Rounds whose new weights were computed anew and compared.
        silent: Faults without any sign, after which soundness is in the eye of the beholder.
        killed: Whether the run was killed, and gone on with.
    """

    seed: int
    federation: str
    ended: str = "completed"
    faults: dict[str, int] = field(default_factory=dict)
    rounds: int = 0
    updated: int = 0
    silent: int = 0
    killed: bool = False


def experiment_of(federation: str) -> Experiment:
    """Return the experiment behind a name of FEDERATIONS."""
    if federation in CENTRAL:
        algorithm, clients, text = CENTRAL[federation]
        training = f'algorithm = "{algorithm}", batch_size = 4, max_local_steps = 2'
        text = f"training = {{ {training} }}\n{text}"
    else:
        topology, options = PEERS[federation]
        clients = 4
        text = f"""
        training = {{ batch_size = 4, learning_rate = 0.5 }}
        topology = {{ name = "{topology}" }}
        protocol = {{ name = "{federation}", options = {{ {options} }} }}
        """
    return parse_experiment(
        f'name = "faults"\nrounds = {NUM_ROUNDS}\npartition = {{ clients = {clients} }}\n'
        f'model = {{ name = "mlp", options = {{ hidden = [4] }} }}\n{text}'
    )


def play(seed: int, folder: Path) -> Outcome:
    """Run the schedule that a seed draws.

    Raises:
        Wrong: Something that must hold does not.
    """
    rng = random.Random(seed)
    outcome = Outcome(seed, rng.choice(FEDERATIONS))
    experiment = experiment_of(outcome.federation)
    rate = rng.choice([0.03, 0.1, 0.3])
    kill_at = rng.randrange(2, 14) if rng.random() < 0.25 else None
    run = RunDirectory.create(folder, f"schedule-{seed}")
    train = peers.train if experiment.decentralised else rounds.train
    keeper = _Keeper(run)
    grids: list[Faulty] = []
    while True:
        inner = InProcessGrid(experiment, run, app)
        grid = Faulty(
            inner, seed=f"{seed}/{len(grids)}", rate=rate, kill_at=kill_at, look=keeper.look
        )
        grids.append(grid)
        try:
            train(experiment, run, grid)
        except Killed:
            outcome.killed, kill_at = True, None
            keeper.look()
            run.repair()
            if experiment.decentralised:
                forget_after_checkpoint(run)
            keeper.forget_after_checkpoint()
            continue
        except RunFailed as error:
            outcome.ended = str(error)
        keeper.look()
        break
    for grid in grids:
        for one in grid.injected:
            outcome.faults[one.kind] = outcome.faults.get(one.kind, 0) + 1
    _check_rounds(run, outcome, keeper)
    checked = _Central if outcome.federation in CENTRAL else _Peers
    checked(experiment, run, grids, outcome, folder).check()
    return outcome


class _Keeper:
    """Watches that what was recorded stays."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.logs = {"events": b"", "rounds": b""}
        self.files: dict[Path, str] = {}
        self.whole: list[Record] = []

    def look(self) -> None:
        """Compare with the last look."""
        for name, before in self.logs.items():
            path = self.run.root / f"{name}.jsonl"
            now = path.read_bytes() if path.exists() else b""
            if not now.startswith(before):
                raise Wrong(f"{name}.jsonl lost something, or it was changed")
            self.logs[name] = now
        now_there = {
            path: hashlib.sha256(path.read_bytes()).hexdigest()
            for folder in ("observations", "views")
            for path in (self.run.root / folder).rglob("*")
            if path.is_file()
        }
        for path, before_that in self.files.items():
            if now_there.get(path) != before_that:
                raise Wrong(f"{path.name} was lost or changed")
        played = len(self.run.rounds())  # views of a round grow until it is over
        self.files = {
            path: content
            for path, content in now_there.items()
            if path.parent.name != "views" or int(path.name.split("-")[1]) < played
        }

    def forget_after_checkpoint(self) -> None:
        """After a kill: a round that was begun is played again, whole ones stay."""
        self.logs["rounds"] = b""
        self.files = {}
        last = 0
        if self.run.checkpoint.is_file():
            last = int(read_tensors(self.run.checkpoint)[1]["round"])
        self.whole = [one for one in self.run.rounds() if one["round"] <= last]


def _check_rounds(run: RunDirectory, outcome: Outcome, keeper: _Keeper) -> None:
    found = run.rounds()
    outcome.rounds = max(0, len(found) - 1)
    if [one["round"] for one in found] != list(range(len(found))):
        raise Wrong(f"rounds {[one['round'] for one in found]} were recorded")
    if outcome.ended == "completed" and len(found) != NUM_ROUNDS + 1:
        raise Wrong(f"{len(found) - 1} of {NUM_ROUNDS} rounds were recorded")
    if found[: len(keeper.whole)] != keeper.whole:
        raise Wrong("a round that was whole before the kill was changed")


# what both kinds of federation check


class _Checks(ABC):
    def __init__(
        self,
        experiment: Experiment,
        run: RunDirectory,
        grids: list[Faulty],
        outcome: Outcome,
        folder: Path,
    ) -> None:
        self.experiment, self.run, self.grids = experiment, run, grids
        self.outcome, self.folder = outcome, folder
        self.events = run.events()

    def check(self) -> None:
        """Check everything."""
        for grid in self.grids:
            for one in grid.injected:
                self.told_of(grid, one)
        self.weights()

    @abstractmethod
    def weights(self) -> None:
        """Check that the weights are those of what reached the server."""

    def told_of(self, grid: Faulty, fault: Injected) -> None:
        """Check that a fault which reached the server is an event."""
        call = grid.calls[fault.call - 1]
        last = fault.call == len(grid.calls)
        if call.kind == "query" or (last and self.outcome.ended != "completed"):
            return  # clients are only being found: who does not answer is asked again
        if last and len(grid.calls) > 0 and grid is not self.grids[-1]:
            return  # killed in this call
        kinds = self.kinds(grid, call, fault)
        if kinds is None:
            return
        client, number = fault.node - FIRST_NODE, _round(call, fault.node)
        # to tell its model, a peer is asked for the round before
        numbers_of_it = {number, number + 1} if call.kind in ASIDE and number else {number}
        if not any(self.told(client, one, kinds) for one in numbers_of_it):
            said = [e for e in self.events if e.get("round") == number]
            raise Wrong(f"no event of {kinds} tells of {fault} in round {number}: {said}")
        came = fault.kind in faults.LATE and fault.call + 1 < len(grid.calls)
        if came and not self.told(client, None, {"late-reply"}):
            raise Wrong(f"no event tells of what came late: {fault}")

    def told(self, client: int, number: int | None, kinds: set[str]) -> bool:
        """Whether an event of one of these kinds is about a client in a round."""
        return any(
            one["kind"] in kinds
            and number in (None, one["round"])
            and (
                one["client"] == client
                or f"peer {client}:" in one["message"]
                or one["kind"] == "stray-reply"
            )
            for one in self.events
            if "client" in one
        )

    def kinds(self, grid: Faulty, call: Call, fault: Injected) -> set[str] | None:
        """Return the kinds of events one of which must tell of a fault; None if none needs to."""
        kind = fault.kind
        if kind in (*faults.LOST, *faults.LATE, "gone"):
            return {"no-reply"}
        if kind in faults.TWICE:
            return {"repeated-reply"}
        if kind in (*faults.ERRORS, "gone-told"):
            return {"client-failed"}
        if kind in faults.ASTRAY:
            return {"stray-reply"}
        if kind.startswith("request-"):
            return self.of_damaged_request(grid, call, fault)
        return self.of_damaged_reply(grid, call, fault)

    def of_damaged_request(self, grid: Faulty, call: Call, fault: Injected) -> set[str] | None:
        return {"client-failed", "message-refused"}

    @abstractmethod
    def of_damaged_reply(self, grid: Faulty, call: Call, fault: Injected) -> set[str] | None:
        """Return the kinds of events one of which must tell of it; None if none needs to."""


def _round(call: Call, node: int) -> int | None:
    config = call.sent[node].config_records.get("config")
    number = None if config is None else config.get("server-round")
    return number if isinstance(number, int) else None


def first_replies(call: Call) -> dict[int, Message]:
    """Return the first reply of each node to what it was asked in this call."""
    found: dict[int, Message] = {}
    for reply in call.arrived:
        node = reply.metadata.src_node_id
        if call.groups.get(node) == reply.metadata.group_id:
            found.setdefault(node, reply)
    return {node: reply for node, reply in found.items() if reply.has_content()}


def numbers(record: ArrayRecord) -> dict[str, np.ndarray[Any, Any]] | None:
    """Return the arrays of a record, decoded by numpy; None if one of them is not sound."""
    found = {}
    for name, array in record.items():
        if array.stype != "numpy.ndarray" or array.data[6:8] not in (b"\1\0", b"\2\0"):
            return None
        stream_of_bytes = io.BytesIO(array.data)
        try:
            one = np.load(stream_of_bytes, allow_pickle=False)
        except Exception:
            return None
        claimed = (array.dtype, tuple(array.shape))
        if stream_of_bytes.read() or claimed != (str(one.dtype), one.shape):
            return None
        if not np.isfinite(one).all():
            return None
        found[name] = one
    return found


# with a server


class _Central(_Checks):
    def __init__(self, *known: Any) -> None:
        super().__init__(*known)
        model = task_of(self.experiment).build_model(stream(self.experiment.seed, "model"))
        self.forms = {name: tuple(one.shape) for name, one in shared_parameters(model).items()}
        self.secure = bool(self.experiment.defenses)

    def sound(self, reply: Message) -> tuple[dict[str, np.ndarray[Any, Any]], int] | None:
        """Return the update and number of examples of a sound reply."""
        content = reply.content
        if set(content.array_records) != {"arrays"} or set(content.metric_records) != {"metrics"}:
            return None
        metrics = content.metric_records["metrics"]
        count, loss = metrics.get("num-examples"), metrics.get("train_loss")
        if not isinstance(count, int | float) or not 1 <= count <= 2**53:
            return None
        if not isinstance(loss, int | float) or not abs(loss) <= 1e308 or count != int(count):
            return None
        update = numbers(content.array_records["arrays"])
        if update is None or {k: one.shape for k, one in update.items()} != self.forms:
            return None
        if any(one.dtype != np.float32 for one in update.values()):
            return None
        return update, int(count)

    def of_damaged_reply(self, grid: Faulty, call: Call, fault: Injected) -> set[str] | None:
        if self.secure:
            if fault.kind == "reply-flipped":
                self.outcome.silent += 1
                return None
            return {"update-rejected"}
        reply = first_replies(call)[fault.node]
        if self.sound(reply) is not None:
            self.outcome.silent += 1
            return None
        return {"update-rejected"}

    def weights(self) -> None:
        """Compute the weights after every round anew, from the sound replies alone."""
        if self.secure:
            if not self.outcome.silent:
                self.secure_weights()
            return
        trained = [
            (grid, call) for grid in self.grids for call in grid.calls if call.kind == "train"
        ]
        records = {one["round"]: one for one in self.run.rounds()}
        for place, (grid, call) in enumerate(trained):
            number = _round(call, next(iter(call.sent)))
            cut = grid is not self.grids[-1] and call is grid.calls[-1]
            ended = self.outcome.ended != "completed" and place == len(trained) - 1
            if cut or ended:
                continue
            before = numbers(next(iter(call.sent.values())).array_records["arrays"])
            if place + 1 < len(trained):
                after = numbers(
                    next(iter(trained[place + 1][1].sent.values())).array_records["arrays"]
                )
                following = _round(trained[place + 1][1], next(iter(trained[place + 1][1].sent)))
                if following != (number or 0) + 1:
                    continue  # the run was killed before this round was whole: it came again
            else:
                stored = part_of(read_tensors(self.run.checkpoint)[0], "weights")
                after = {name: one.numpy() for name, one in stored.items()}
            sound = {
                node: found
                for node, reply in sorted(first_replies(call).items())
                if (found := self.sound(reply)) is not None
            }
            clients = [node - FIRST_NODE for node in sound]
            if records[number or 0]["clients"] != clients:
                raise Wrong(
                    f"round {number}: {clients} were sound, {records[number or 0]} were taken"
                )
            _same(
                self.aggregated(before or {}, list(sound.values())), after or {}, f"round {number}"
            )
            heard = {
                one["sender"] for one in self.run.observation_records() if one["round"] == number
            }
            missing = {f"client-{client}" for client in clients} - heard
            extra = heard - {f"client-{client}" for client in clients}
            if missing or (extra and not self.outcome.killed):
                raise Wrong(f"round {number}: heard {heard}, sound were {clients}")
            self.outcome.updated += 1

    def aggregated(
        self,
        before: dict[str, np.ndarray[Any, Any]],
        sound: list[tuple[dict[str, np.ndarray[Any, Any]], int]],
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Return the weights that sound replies lead to."""
        total = sum(count for _, count in sound)
        if not sound:
            return before
        mean = {
            name: np.sum(
                [count / total * update[name].astype(np.float64) for update, count in sound], axis=0
            )
            for name in before
        }
        if self.experiment.training.algorithm == "fedavg":
            return mean
        rate = self.experiment.training.learning_rate
        return {name: before[name] - rate * one for name, one in mean.items()}

    def secure_weights(self) -> None:
        """Compare each sum with the plain updates of those whose masked updates are in it."""
        plain = self.experiment.model_copy(update={"defenses": []})
        twin = InProcessGrid(plain, RunDirectory.create(self.folder, "twin"), app)
        records = {one["round"]: one for one in self.run.rounds()}
        calls = [call for call in self.grids[-1].calls if call.kind == "train"]
        for place, call in enumerate(calls):
            number = _round(call, next(iter(call.sent)))
            content = next(iter(call.sent.values()))
            before = numbers(content.array_records["arrays"]) or {}
            if self.outcome.ended != "completed" or number not in records:
                continue
            if place + 1 == len(calls):
                stored = part_of(read_tensors(self.run.checkpoint)[0], "weights")
                after = {name: one.numpy() for name, one in stored.items()}
            else:
                after = (
                    numbers(next(iter(calls[place + 1].sent.values())).array_records["arrays"])
                    or {}
                )
                if _round(calls[place + 1], next(iter(calls[place + 1].sent))) != (number or 0) + 1:
                    continue
            survivors = records[number]["clients"]
            sound = []
            for client in survivors:
                asked = RecordDict({k: v for k, v in content.items() if k in ("arrays", "config")})
                request = Message(asked, FIRST_NODE + client, "train")
                (reply,) = twin.send_and_receive([request])
                found = self.sound(reply)
                if found is None:
                    raise Wrong("the plain update of a client is not sound")
                sound.append(found)
            _same(self.aggregated(before, sound), after, f"round {number}", tolerance=1e-4)
            self.outcome.updated += 1


def _same(
    expected: dict[str, Any], found: dict[str, Any], where: str, tolerance: float = 1e-6
) -> None:
    for name, one in expected.items():
        room = tolerance * max(1.0, float(np.abs(one).max()))
        if not np.abs(one - found[name]).max() <= room:
            raise Wrong(f"{where}: '{name}' differs by {np.abs(one - found[name]).max():g}")


# without a server


class _Peers(_Checks):
    def __init__(self, *known: Any) -> None:
        super().__init__(*known)
        self.federation = federation_of(self.experiment)

    def payloads(self, grid: Faulty, fault: Injected) -> list[Any]:
        """Return what was in the damaged reply."""
        reply = first_replies(grid.calls[fault.call - 1]).get(fault.node)
        return (
            [] if reply is None else [payload(one) for one in reply.content.array_records.values()]
        )

    def of_damaged_reply(self, grid: Faulty, call: Call, fault: Injected) -> set[str] | None:
        how = fault.kind.removeprefix("reply-")
        if how == "flipped":  # may be a number as any other
            self.outcome.silent += 1
            return None
        if call.kind == peers.ADOPT:
            return None  # it says nothing
        if call.kind == peers.REPORT:
            following = grid.calls[fault.call] if fault.call < len(grid.calls) else call
            if following.kind == peers.REPORT and len(call.sent) == 1:
                return None  # it was only asked whether it is there
            # who is to begin anew from this model refuses it
            refused = following.kind == peers.ADOPT and self.told(
                next(iter(following.sent)) - FIRST_NODE, None, {"client-failed", "no-reply"}
            )
            return None if refused else {"update-rejected"}
        if how == "metadata" or (how == "giant" and self.rejected(call, fault)):
            return {"update-rejected"}
        mine = set(self.payloads(grid, fault))
        for later in grid.calls[fault.call :]:
            spoilt = {one.node for one in grid.injected if one.call == later.number}
            replied = set(first_replies(later)) - spoilt
            for node, _, _, content in later.taken:
                here = {payload(one) for one in content.array_records.values()}
                if node in replied and mine & here:
                    return {"message-refused", "update-rejected"}
        return None  # nobody was told

    def rejected(self, call: Call, fault: Injected) -> bool:
        metrics = first_replies(call)[fault.node].content.metric_records.get("metrics")
        count = None if metrics is None else metrics.get("num-examples")
        return count is not None and not 1 <= count <= 2**53  # type: ignore[operator]

    def of_damaged_request(self, grid: Faulty, call: Call, fault: Injected) -> set[str] | None:
        if self.federation.protocol.delivers_late:
            return None  # maybe it was heard before, and was not opened again
        return {"client-failed", "message-refused"}

    def weights(self) -> None:
        """Play every peer again, from the sound part of what reached it, each message once."""
        run = RunDirectory.create(self.folder, "again")
        again = InProcessGrid(self.experiment, run, app)
        for grid in self.grids:
            newest: dict[int, int] = {}
            for call in grid.calls:
                for node, kind, group, content in call.taken:
                    if not group:
                        continue  # it was asked which peer it plays
                    number = int(group.rpartition(".")[2])
                    if number <= newest.get(node, 0):
                        raise Wrong(f"node {node} answered request {number} after {newest[node]}")
                    newest[node] = number
                    self.again(again, kind, node, content)
        for peer in range(self.experiment.partition.clients):
            mine, other = self.remembered(self.run, peer), self.remembered(run, peer)
            # who said what last counts for unsound messages, too: they are not sent once more
            mine, other = (
                {name: one for name, one in kept.items() if not name.startswith("heard-last/")}
                for kept in (mine, other)
            )
            if mine.keys() != other.keys():
                raise Wrong(f"peer {peer} remembers {sorted(mine)}, should {sorted(other)}")
            for name, one in mine.items():
                if not torch.equal(one, other[name]):
                    raise Wrong(f"peer {peer}: '{name}' is not what sound messages lead to")
        for grid in self.grids:
            self.relayed(grid)
        if self.federation.protocol.collective and not self.outcome.silent:
            self.alike()
        self.outcome.updated += self.outcome.rounds

    def alike(self) -> None:
        """Check that all members of a collective that are not behind have one model."""
        behind = json.loads(read_tensors(self.run.checkpoint)[1]["behind"])
        models = [
            self.remembered(self.run, peer).get("state/model")
            for peer in range(self.experiment.partition.clients)
            if peer not in behind
        ]
        begun = [one for one in models if one is not None]
        if len(begun) not in (0, len(models)):
            raise Wrong("some members of a collective have a model, some are at the start")
        if any(not torch.equal(one, begun[0]) for one in begun):
            raise Wrong("members of a collective have different models")

    def again(self, grid: InProcessGrid, kind: str, node: int, content: RecordDict) -> None:
        """Have a fresh peer take what is sound of a message."""
        if kind == peers.REPORT:
            return
        unsound = [
            name
            for name, record in content.array_records.items()
            if not self.sound(record, content.config_records[name.replace("parcel", "about")])
        ]
        if unsound and self.federation.protocol.collective:
            return  # the sum is begun again: nothing may have been done
        left = {
            name: record
            for name, record in content.items()
            if name.replace("about", "parcel") not in unsound
        }
        list(grid.send_and_receive([Message(RecordDict(left), node, kind)]))

    def sound(self, record: ArrayRecord, about: Any) -> bool:
        """Whether a parcel holds what its kind must hold."""
        found = numbers(record)
        if found is None:
            return False
        size = self.federation.layout.size
        if about["chunk"] >= 0:
            size = len(np.array_split(np.empty(size), about["num-chunks"])[about["chunk"]])
        forms = {
            "model": {"model": ((size,), "float32")},
            "share": {"numerator": ((size,), "float32"), "mass": ((1,), "float64")},
            "request": {},
            "partial-sum": {"chunk": ((size,), "float32")},
            "total": {"chunk": ((size,), "float32")},
        }[about["kind"]]
        if {name: (one.shape, str(one.dtype)) for name, one in found.items()} != forms:
            return False
        return "mass" not in found or bool(found["mass"][0] > 0)

    def relayed(self, grid: Faulty) -> None:
        """Check that what peers were told is what others told them, each once."""
        steps = [call for call in grid.calls if call.kind == peers.STEP]
        late = self.federation.protocol.delivers_late
        for before, call in zip([None, *steps], steps, strict=False):
            when = _when(call)
            follows = before is not None and _when(before) == (when[0], when[1] - 1)
            said = _posts(before) if before is not None and follows else {}
            for node, content in call.sent.items():
                told = [
                    (
                        about["sender"],
                        payload(content.array_records[name.replace("about", "parcel")]),
                    )
                    for name, about in content.config_records.items()
                    if name.startswith("about-")
                ]
                if len(set(told)) != len(told):
                    raise Wrong(f"{when}: node {node} was told the same twice")
                to_it = said.get(node - FIRST_NODE, [])
                if not late and not set(told) <= {one for one, _ in to_it}:
                    raise Wrong(f"{when}: node {node} was told what nobody said to it")
                if missing := {one for one, whole in to_it if whole} - set(told):
                    senders = [sender for sender, _ in missing]
                    if not (self.federation.protocol.collective and follows):
                        raise Wrong(f"{when}: node {node} was not told what {senders} said")

    def remembered(self, run: RunDirectory, peer: int) -> dict[str, torch.Tensor]:
        """Return what a peer remembers last."""
        paths = sorted((run.memory / f"client-{peer}-peer").glob("round-*.safetensors"))
        return read_tensors(paths[-1])[0] if paths else {}


def _when(call: Call) -> tuple[int, int]:
    config = next(iter(call.sent.values())).config_records["config"]
    number, hop = config["server-round"], config["hop"]
    assert isinstance(number, int)
    assert isinstance(hop, int)
    return number, hop


def _posts(call: Call) -> dict[int, list[tuple[tuple[int, Any], bool]]]:
    """Return what was said to each peer: (sender, what), and whether the whole reply is sound."""
    found: dict[int, list[tuple[tuple[int, Any], bool]]] = {}
    for node, reply in first_replies(call).items():
        content = reply.content
        config: Any = content.config_records.get("config", {})
        whole = {"trained", "refused", "reasons"} <= set(config)
        whole = (
            whole and isinstance(config["refused"], list) and isinstance(config["reasons"], list)
        )
        metrics = content.metric_records.get("metrics")
        if config.get("trained"):
            whole = whole and metrics is not None and "train_loss" in metrics
            count = None if metrics is None else metrics.get("num-examples")
            whole = whole and isinstance(count, int) and 1 <= count <= 2**53
        for name, about in content.config_records.items():
            arrays = content.array_records.get(name.replace("about", "parcel"))
            if not name.startswith("about-") or arrays is None:
                continue
            to = about["to"]
            assert isinstance(to, list)
            for receiver in to:
                one = (node - FIRST_NODE, payload(arrays))
                found.setdefault(int(receiver), []).append((one, whole))
    return found
