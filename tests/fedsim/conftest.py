"""A run directory that looks like a finished run, made without training."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from attacks.observation import Kind, Observation, Reconstruction, Snapshot
from fedsim.config import Experiment, parse_experiment
from fedsim.files import Record, read_json, replace_bytes, replace_json
from fedsim.records import RunDirectory
from fedsim.seeds import stream
from fedsim.stages.prepare_peers import topology_record
from fedsim.stages.score import score
from fedsim.stages.summarize import summarize
from fedsim.threat import places_of, threat_of, threat_record
from fedsim.truth import seal

EXPERIMENT = """
name = "{name}"
description = "Eight by eight digits & <script>alert(1)</script>."
seed = {seed}
rounds = {rounds}
[partition]
clients = 3
[training]
batch_size = {batch_size}
[adversary]
grants = [{grants}]
[output]
directory = "/home/somebody/runs"
[[attacks]]
name = "dlg"
[[attacks]]
name = "label"
label = "labels-only"
[[attacks]]
name = "inverting-gradients"
label = "IG"
options = {{labels = "{labels}"}}
"""

PUBLIC = torch.from_numpy(load_digits().images[500:600]).float().div(16).unsqueeze(1)
"""A public sample, (100, 1, 8, 8)."""


@dataclass(frozen=True, kw_only=True)
class MadeRun:
    """What to pretend.

    Attributes:
        name: Of the experiment.
        seed: Of the experiment; also draws everything here.
        rounds: Whole rounds, after round 0.
        victims: Clients that were heard in every round.
        batch_size: Private images per update.
        attacks: Which of the three attacks answered.
        noise: Pixel noise of the first guess; later rounds are noisier.
        grants: Extra capabilities, as TOML; of the attacks, IG makes use of private labels.
        failing: Rounds whose attacks all failed.
        summed_up: Whether scores and summary were written.
        overrides: Of the experiment, as on the command line; with a topology and a protocol it is
            a run without a server, in which what a victim sent is told apart exactly in the first
            round and estimated from then on.
    """

    name: str = "digits"
    seed: int = 0
    rounds: int = 3
    victims: Sequence[int] = (0, 1)
    batch_size: int = 2
    attacks: Sequence[str] = ("dlg", "labels-only", "IG")
    noise: float = 0.005
    grants: str = ""
    failing: Sequence[int] = ()
    summed_up: bool = True
    overrides: Sequence[str] = ()


Make = Callable[[MadeRun], RunDirectory]


@pytest.fixture
def make_run(tmp_path: Path) -> Make:
    """Return what makes such run directories."""
    return lambda wanted: make(tmp_path / "runs", wanted)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished run that tests copy, and leave alone."""
    return make(tmp_path_factory.mktemp("made"), MadeRun())


@pytest.fixture
def finished_run(made_once: RunDirectory, tmp_path: Path) -> RunDirectory:
    """A finished run: three rounds, two victims, batches of two, three attacks."""
    return RunDirectory(shutil.copytree(made_once.root, tmp_path / "runs" / made_once.name))


def make(parent: Path, wanted: MadeRun) -> RunDirectory:
    """Make one run directory."""
    text = EXPERIMENT.format(
        name=wanted.name,
        seed=wanted.seed,
        rounds=max(wanted.rounds, 1),
        batch_size=wanted.batch_size,
        grants=wanted.grants,
        labels="oracle" if '"labels"' in wanted.grants else "recover",
    )
    experiment = parse_experiment(text, overrides=wanted.overrides)
    run = RunDirectory.create(parent, wanted.name)
    replace_json(
        run.environment,
        {
            "format": 1,
            "fedsim": "0.1.0",
            "python": "3.11.2",
            "packages": {"flwr": "1.41.0", "torch": "2.15.0", "ray": None},
            "platform": "Linux x86_64",
            "cpu_count": 2,
            "gpu": None,
            "started": "2026-01-02T03:04:05+00:00",
        },
    )
    threat = threat_of(experiment)
    places = None
    if experiment.decentralised:
        places = places_of(experiment)
        replace_json(run.topology, topology_record(experiment))
    replace_json(run.root / "threat.json", threat_record(threat, places))
    for number in range(wanted.rounds + 1):
        _train(run, wanted, number, experiment)
    for number in range(1, wanted.rounds + 1):
        for victim in wanted.victims:
            _overhear(run, wanted, number, victim)
            if experiment.decentralised:
                _tell_how(run, number, victim)
    run.append_event("reply-refused", "round 1, client 2: 'w' holds NaN or infinity", client=2)
    replace_bytes(run.config, experiment.to_toml().encode())
    if wanted.summed_up:
        score(
            run,
            public_sample=PUBLIC,
            seed=wanted.seed,
            threat=threat.name,
            defense="none",
            success_threshold_db=30.0,
        )
        summarize(
            run,
            experiment=wanted.name,
            engine="in-process",
            seed=wanted.seed,
            weights_sha256="0" * 64,
            status="done",
            seconds={"training": 1.5, "attacks": 12.25, "total": 90.0},
        )
    return run


def _train(run: RunDirectory, wanted: MadeRun, number: int, experiment: Experiment) -> None:
    learned = 1 - 0.9 * 0.7**number
    record: Record = {"round": number, "accuracy": learned, "loss": 2.3 * (1 - learned)}
    if number:
        record |= {"train_loss": 2.0 * (1 - learned), "clients": [0, 1], "replies": 3}
        record |= {"rejected": 1, "bytes_up": 9000, "bytes_down": 9000, "seconds": 0.5}
    if experiment.decentralised:
        peers = range(experiment.partition.clients)
        record |= {
            "clients": list(peers) if number else [],
            "consensus_distance": 0.5 * number,
            "peer_accuracy": [learned * (1 - 0.01 * peer) for peer in peers],
            "messages": 2 * len(peers) * min(number, 1),
            "bytes_between": 9000 * min(number, 1),
        }
    run.append_round(record)


def _tell_how(run: RunDirectory, number: int, victim: int) -> None:
    (path,) = (run.root / "observations").glob(f"round-{number:05d}-client-{victim}-*.json")
    told = {"isolated": "exact", "expected_error": 1e-7}
    if number > 1:
        told = {"isolated": "estimated", "expected_error": 0.25}
    replace_json(path, read_json(path) | told)


def _overhear(run: RunDirectory, wanted: MadeRun, number: int, victim: int) -> None:
    rng = stream(wanted.seed, "made", number, victim)
    digits = load_digits()
    chosen = torch.randperm(400, generator=rng)[: wanted.batch_size]
    images = torch.from_numpy(digits.images).float().div(16).unsqueeze(1)[chosen]
    labels = torch.from_numpy(digits.target)[chosen]
    seal(run, number, f"client-{victim}", images, labels)
    identity = run.write_observation(
        Observation(
            round=number,
            sender=f"client-{victim}",
            receiver="server",
            kind=Kind.GRADIENT,
            update={"w": torch.randn(3, generator=rng)},
            weights={"w": torch.zeros(3)},
            num_examples=wanted.batch_size,
        )
    )
    seen = next(one for one in run.observation_records() if one["id"] == identity)
    if number in wanted.failing:
        for attack in wanted.attacks:
            run.write_reconstruction(seen, attack, None, reason="two labels & one <row>", seconds=1)
        return
    noise = wanted.noise * 3.0 ** (number - 1) * (1 + victim)
    for attack in wanted.attacks:
        run.write_reconstruction(seen, attack, _guess(attack, images, labels, noise, rng))


def _guess(
    attack: str, images: Tensor, labels: Tensor, noise: float, rng: torch.Generator
) -> Reconstruction:
    if attack == "labels-only":
        return Reconstruction(inputs=None, labels=labels.flip(0), seconds=0.01)
    if attack == "IG":
        noise *= 3
    fog = torch.randn(images.shape, generator=rng)
    stages = [
        (images * (1 - part) + part * 0.5 + (part + noise) * fog).clamp(0, 1).flip(0)
        for part in (1.0, 0.6, 0.3, 0.1, 0.0)
    ]
    return Reconstruction(
        inputs=stages[-1],
        labels=labels.flip(0),
        matching_loss=noise,
        steps=400,
        seconds=2.5,
        finished=attack == "dlg",
        snapshots=tuple(
            Snapshot(step=100 * index, inputs=stage, matching_loss=1.0 / (index + 1))
            for index, stage in enumerate(stages)
        ),
        notes={"restarts": 2, "label rule": "sign"},
    )


AMONG_PEERS = MadeRun(
    rounds=3,
    victims=(1, 2, 4, 8),
    attacks=("dlg",),
    overrides=(
        "partition.clients=9",
        "topology.name=ring",
        "protocol.name=d-psgd",
        "adversary.threat=curious-neighbour",
    ),
)
"""A ring of nine, whose peer 0 listens: to both neighbours (1 and 8), and farther."""


@pytest.fixture(scope="session")
def made_among_peers(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished run without a server, that tests leave alone."""
    return make(tmp_path_factory.mktemp("made-among-peers"), AMONG_PEERS)
