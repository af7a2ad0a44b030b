"""Clients on Ray actors: the same bits for any number of workers, and workers that may die."""

import gc
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from flwr.app import RecordDict

from attacks.observation import Kind, Observation
from fedsim import pool as pool_module
from fedsim.config import Experiment, parse_experiment
from fedsim.engines import ray as engine_module
from fedsim.engines.flower_private import metadata_from
from fedsim.engines.in_process import InProcess
from fedsim.engines.local import FIRST_NODE, NO_REPLY
from fedsim.engines.parcels import Content, Reply
from fedsim.engines.ray import ClientWorker, Ray, RayGrid, RayPool
from fedsim.errors import ConfigError
from fedsim.files import Record, digest, read_tensors, replace_bytes, replace_json
from fedsim.pool import Job
from fedsim.records import RunDirectory
from fedsim.stages.isolate import Isolator
from fedsim.stages.prepare import check, write_plan
from fedsim.truth import seal

pytestmark = pytest.mark.ray

OWN_ATTACKS = '''
import os
import time
from pathlib import Path
from attacks.observation import Reconstruction


class Attack:
    """Do one thing, then guess."""

    needs = frozenset()

    def __init__(self, does: str) -> None:
        self.does = does

    def __call__(self, seen, known, *, rng, budget=None):
        if self.does.startswith("peek "):
            Path(self.does.removeprefix("peek ")).read_bytes()
        if self.does == "die":
            os._exit(7)
        if self.does == "sleep":
            time.sleep(3600)
        return Reconstruction(inputs=seen.update["x"], labels=None)
'''


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of the CPUs of this machine, two at least."""
    # Ray's workers stand back behind all other processes, and so would the tests
    os.environ.setdefault("RAY_worker_niceness", "0")
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        engine_module.join_cluster("local", 2)
        gc.collect()  # Ray leaves handles of its own processes to the collector
    yield
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        ray.shutdown()
        gc.collect()


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """An empty run directory."""
    return RunDirectory.create(tmp_path, "tiny")


def tiny(workers: int, text: str = "") -> Experiment:
    return parse_experiment(
        f"""
        name = "tiny"
        rounds = 2
        partition = {{ clients = 5 }}
        model = {{ name = "mlp", options = {{ hidden = [6] }} }}
        engine = {{ name = "ray", workers = {workers} }}
        training = {{ batch_size = 4 }}
        server = {{ clients_per_round = 4, evaluate_clients = true }}
        {text}
        """
    )


PLAIN = """
name = "tiny"
rounds = 2
partition = { clients = 5 }
model = { name = "mlp", options = { hidden = [6] } }
engine = { name = "ray", workers = 2 }
"""
SECURE = '[[defenses]]\nname = "secure-aggregation"\noptions = { threshold = 3 }'


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("text", ["", SECURE], ids=["plain", "secure-aggregation"])
def test_one_experiment_gives_the_same_bits_in_process_and_on_any_number_of_workers(
    tmp_path: Path, text: str
) -> None:
    found = []
    for workers in (0, 1, 2):
        run = RunDirectory.create(tmp_path, f"workers-{workers}")
        engine = Ray(tiny(workers, text), run) if workers else InProcess(tiny(1, text), run)
        engine.train()
        engine.close()
        assert run.events() == []
        sealed = {path.name: read_tensors(path)[0] for path in (run.root / "truth").iterdir()}
        rounds = [{k: v for k, v in one.items() if k != "seconds"} for one in run.rounds()]
        found.append(
            (
                digest(read_tensors(run.checkpoint)[0]),
                run.views_sha256(),
                {name: digest(tensors) for name, tensors in sealed.items()},
                rounds,
            )
        )

    assert found[1] == found[0]
    assert found[2] == found[0]
    assert ray.is_initialized()  # a cluster that was there before is left running


def peers(
    engine: str, protocol: str, adversary: str = "", *, encrypted: bool = False
) -> Experiment:
    return parse_experiment(
        f"""
        name = "tiny"
        rounds = 3
        partition = {{ clients = 5 }}
        model = {{ name = "mlp", options = {{ hidden = [6] }} }}
        engine = {{ name = "{engine}", workers = 2 }}
        training = {{ batch_size = 4 }}
        topology = {{ name = "ring" }}
        protocol = {{ name = "{protocol}", encrypted = {str(encrypted).lower()} }}
        adversary = {{ {adversary} }}
        """
    )


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("protocol", ["d-psgd", "gossip", "ring-all-reduce"])
def test_peers_on_workers_come_to_the_bits_of_peers_in_process(
    tmp_path: Path, protocol: str
) -> None:
    alone = RunDirectory.create(tmp_path, "alone")
    InProcess(peers("in-process", protocol), alone).train()
    spread = RunDirectory.create(tmp_path, "spread")

    engine = Ray(peers("ray", protocol), spread)
    engine.train()
    engine.close()

    assert spread.events() == []
    assert digest(read_tensors(spread.checkpoint)[0]) == digest(read_tensors(alone.checkpoint)[0])
    remembered = sorted(str(path.relative_to(alone.memory)) for path in alone.memory.rglob("*.*"))
    assert len(remembered) == 10
    for name in remembered:
        theirs, ours = (read_tensors(run.memory / name)[0] for run in (spread, alone))
        assert digest(theirs) == digest(ours)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_peers_that_encrypt_come_to_the_same_bits_on_workers(tmp_path: Path) -> None:
    alone = RunDirectory.create(tmp_path, "alone")
    InProcess(peers("in-process", "d-psgd"), alone).train()
    spread = RunDirectory.create(tmp_path, "spread")

    engine = Ray(peers("ray", "d-psgd", encrypted=True), spread)
    engine.train()
    engine.close()

    assert spread.events() == []
    assert digest(read_tensors(spread.checkpoint)[0]) == digest(read_tensors(alone.checkpoint)[0])


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("threat", ["coalition", "relay", "active-neighbour"])
def test_peers_on_workers_are_heard_to_the_bit(tmp_path: Path, threat: str) -> None:
    heard = []
    for engine in ("in-process", "ray"):
        tiny = peers(engine, "d-psgd", f'threat = "{threat}"')
        run = RunDirectory.create(tmp_path, engine)
        made = Ray(tiny, run) if engine == "ray" else InProcess(tiny, run)
        made.train()
        made.close()
        Isolator(tiny, run).step(trained=True)
        views = {path.name: path.read_bytes() for path in run.views.iterdir()}
        heard.append((views, run.views_sha256()))
        assert run.observation_records()

    assert heard[0] == heard[1]


def sick_worker(folder: str) -> type[ClientWorker]:
    """A worker that dies, or hangs, when it is told to; the folder remembers that it did once."""

    class Sick(ClientWorker):
        def answer(
            self, metadata: Sequence[dict[str, Any]], places: Sequence[int], *contents: Content
        ) -> list[Reply]:
            first = metadata_from(metadata[0])
            if first.group_id != "well" and first.dst_node_id == 1001:
                if first.group_id == "die always":
                    os._exit(1)
                marker = os.path.join(folder, first.group_id)  # noqa: PTH118 - sent by value
                if not os.path.exists(marker):  # noqa: PTH110 - sent by value
                    open(marker, "w").close()  # noqa: PTH123 - sent by value
                    if first.group_id == "die":
                        os._exit(1)
                    time.sleep(3600)
            return super().answer(metadata, places, *contents)

    return Sick


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_worker_that_dies_is_replaced_by_one_that_does_its_work_again(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "ClientWorker", sick_worker(str(tmp_path)))
    grid = RayGrid(tiny(2), run)

    def ask(group: str, timeout: float | None = None) -> dict[int, bool]:
        """Ask every client which it is; return who answered, and whether with an error."""
        messages = [
            grid.create_message(RecordDict(), "query", node, group) for node in grid.get_node_ids()
        ]
        replies = list(grid.send_and_receive(messages, timeout=timeout))
        for reply in replies:
            if reply.has_error():
                assert reply.error.code == NO_REPLY
                assert str(reply.error.reason).startswith("the worker died: ActorDiedError")
        return {reply.metadata.src_node_id - FIRST_NODE: reply.has_error() for reply in replies}

    well = dict.fromkeys(range(5), False)
    try:
        assert grid.deliver([], None) == []
        assert ask("well") == well
        assert ask("die") == well
        assert [one["kind"] for one in run.events()] == ["worker-replaced"]
        # clients of the second worker miss a round, if it dies of them, or hangs
        assert ask("die always") == well | {1: True, 3: True}
        assert ask("well") == well  # the one in its place is up
        assert ask("hang", timeout=2.0) == {0: False, 2: False, 4: False}
        assert ask("well") == well
    finally:
        grid.close()


PEERS = '[topology]\nname = "ring"\n[protocol]\nname = "d-psgd"\n'


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("text", [PEERS, SECURE], ids=["peers", "secure-aggregation"])
def test_what_may_have_been_done_in_part_is_not_done_again(
    text: str, run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "ClientWorker", sick_worker(str(tmp_path)))
    one = tiny(2, text) if text == SECURE else parse_experiment(PLAIN + text)
    grid = RayGrid(one, run)
    try:
        messages = [
            grid.create_message(RecordDict(), "query", node, "die") for node in grid.get_node_ids()
        ]
        replies = grid.send_and_receive(messages)
        lost = {one.metadata.src_node_id - FIRST_NODE for one in replies if one.has_error()}
    finally:
        grid.close()

    assert lost == {1, 3}
    assert run.events() == []


def answers(pool: RayPool, jobs: list[Job]) -> list[Record]:
    """Submit jobs and wait for all answers."""
    for job in jobs:
        pool.submit(job)
    found: list[Record] = []
    while pool.waiting:
        found += pool.poll()
        time.sleep(0.05)
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_whatever_an_attack_does_in_an_actor_it_alone_fails(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_ray_attacks.py").write_text(OWN_ATTACKS)
    monkeypatch.syspath_prepend(str(tmp_path))  # workers find what their parent finds
    monkeypatch.setattr(pool_module, "GRACE_S", 0.25)
    deeds = {
        "well": "nothing",
        "peek": f"peek {run.root}/truth/round-00001-client-0.safetensors",
        "die": "die",
        "sleep": "sleep",
    }
    attacks: list[dict[str, Any]] = [
        {"name": "own_ray_attacks:Attack", "label": label, "options": {"does": does}}
        for label, does in deeds.items()
    ]
    experiment = Experiment.model_validate(tiny(1).model_dump() | {"attacks": attacks})
    replace_bytes(run.config, experiment.to_toml().encode())
    replace_json(run.root / "knowledge.json", {})
    identity = run.write_observation(
        Observation(
            round=1,
            sender="client-0",
            receiver="server",
            kind=Kind.GRADIENT,
            update={"x": torch.ones(1, 1, 2, 2)},
        )
    )
    seal(run, 1, "client-0", torch.ones(1, 1, 2, 2), torch.tensor([1]))

    pool = RayPool(experiment, run)
    try:
        found = answers(
            pool,
            [
                Job((identity,), "well", 100.0),
                Job((identity,), "peek", 100.0),
                Job((identity,), "die", 100.0),
                Job((identity,), "sleep", 0.5),
                Job((identity,), "well", 100.0),
            ],
        )
    finally:
        pool.close()

    assert [(one["attack"], one["status"]) for one in found] == [
        ("well", "done"),
        ("peek", "failed"),
        ("die", "failed"),
        ("sleep", "failed"),
        ("well", "done"),
    ]
    assert "the truth is sealed" in found[1]["reason"]
    assert found[2]["reason"].startswith("the attack worker died: ")
    assert found[3]["reason"] == "it did not end within 1 s, and was ended"
    assert [bool(one.get("lost")) for one in found] == [False, False, True, True, False]


@pytest.mark.usefixtures("cluster")
def test_more_workers_than_cpus_are_refused(run: RunDirectory) -> None:
    said = r"engine\.workers must be at most \d+, the CPUs of this cluster, got 999"
    with pytest.raises(ConfigError, match=said):
        Ray(tiny(999), run)


def test_a_cluster_that_cannot_be_joined_is_refused(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(**_: object) -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(ray, "init", unreachable)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(engine_module, "reach_out", lambda: None)  # its token is needed here

    said = r"engine\.address: cannot join a Ray cluster at '10\.0\.0\.1:6379': nobody there"
    with pytest.raises(ConfigError, match=said):
        Ray(
            Experiment.model_validate(
                tiny(1).model_dump() | {"engine": {"name": "ray", "address": "10.0.0.1:6379"}}
            ),
            run,
        )


OWN_ACTIVE = '''
import torch
from attacks.observation import Reconstruction
from attacks.threats import Capability


class Active:
    """Send noise that depends on what was heard before."""

    needs = frozenset({Capability.CHANGE_WEIGHTS})

    def check(self, known):
        pass

    def implant(self, model, input_shape, num_classes):
        return model

    def tamper(self, weights, known, *, receiver, target, earlier, rng):
        scale = 1.0 + sum(float(seen.update["linear.bias"].norm()) for seen in earlier)
        return {name: scale * torch.randn(w.shape, generator=rng) for name, w in weights.items()}

    def __call__(self, seen, known, *, rng, budget=None):
        return Reconstruction(inputs=None, labels=None)
'''


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_malicious_server_sends_and_hears_the_same_bits_as_in_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_active_ray.py").write_text(OWN_ACTIVE)
    monkeypatch.syspath_prepend(str(tmp_path))
    attack = 'adversary = { threat = "malicious-server", victims = [0, 3] }\n'
    attack += '[[attacks]]\nname = "own_active_ray:Active"'
    found = []
    for workers in (0, 2):
        run = RunDirectory.create(tmp_path, f"workers-{workers}")
        settings = tiny(max(workers, 1), attack)
        write_plan(check(settings), run)
        engine = Ray(settings, run) if workers else InProcess(settings, run)
        engine.train()
        engine.close()
        assert run.observation_records()
        found.append(
            (
                digest(read_tensors(run.checkpoint)[0]),
                run.views_sha256(),
                [one.get("tampered") for one in run.rounds()],
            )
        )

    assert found[0] == found[1]
    assert any(found[0][2])
