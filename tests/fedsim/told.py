"""Run directories of texts and of tables, made without training: what a report shows of them."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor

from attacks.observation import Kind, Observation, Reconstruction, Snapshot
from attacks.tabular.columns import Column, Columns
from attacks.text.tokens import IGNORED
from fedsim.config import parse_experiment
from fedsim.data.tables import encode
from fedsim.files import replace_bytes, replace_json
from fedsim.records import RunDirectory
from fedsim.schemas.data import ColumnRecord, DataRecord, TokensRecord
from fedsim.schemas.scores import Baselines, RowScore, Score, TextScore
from fedsim.stages.prepare_peers import topology_record
from fedsim.stages.summarize import summarize
from fedsim.threat import places_of, threat_of, threat_record
from fedsim.truth import seal

EXPERIMENT = """
name = "{name}"
seed = 0
rounds = 2
[data]
name = "{data}"
[model]
name = "{model}"
[partition]
clients = 3
[training]
batch_size = 2
[[attacks]]
name = "dlg"
label = "{attack}"
"""

WORDS = (
    *("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "the", "a", "patient", "was", "treat", "##ed"),
    *("for", "early", "signs", "of", "asthma", ".", ",", "she", "returns", "on", "monday", "<b>"),
)
SENTENCES = (
    "the patient was treat ##ed for early signs of asthma .",
    "she returns on monday , for the early signs .",
)
LENGTH = 14

ADULT = Columns(
    columns=[
        Column(name="age", low=17, high=90, whole=True),
        Column(name="workclass", categories=("private", "state", "self-employed")),
        Column(name="education", categories=("school", "bachelor", "master", "doctor")),
        Column(name="marital status", categories=("married", "never", "divorced")),
        Column(name="hours per week", low=1, high=99, whole=True),
        Column(name="capital gain", low=0, high=99999, whole=True),
    ]
)
ROWS: Sequence[Sequence[str | float]] = (
    (39, "state", "bachelor", "never", 40, 2174),
    (52, "self-employed", "school", "married", 45, 0),
)


def tokens_of(sentence: str) -> Tensor:
    """Return a sentence as tokens, with special ones and pads."""
    found = [WORDS.index(word) for word in f"[CLS] {sentence} [SEP]".split()]
    return torch.tensor(found + [0] * (LENGTH - len(found)))


def mangled(tokens: Tensor, wrong: Sequence[int]) -> Tensor:
    """Return tokens with others at some places of the sentence: of two the first two swapped."""
    found = tokens.clone()
    if len(wrong) > 1:
        found[[wrong[0], wrong[1]]] = tokens[[wrong[1], wrong[0]]]
    for place in wrong[2:] if len(wrong) > 1 else wrong:
        found[place] = WORDS.index("a")
    return found


def text_run(
    parent: Path,
    *,
    name: str = "told",
    overrides: Sequence[str] = (),
    head: Literal["causal", "masked"] = "causal",
    victims: tuple[int, int] = (0, 1),
    attack: str = "dlg",
) -> RunDirectory:
    """Make a run in which DLG made texts of two clients out in two rounds, worse in the second."""
    truth = torch.stack([tokens_of(one) for one in SENTENCES])
    data = DataRecord(
        name="text-folder",
        modality="text",
        class_names=[],
        words=list(WORDS),
        tokens=TokensRecord(
            vocabulary_size=len(WORDS), head=head, pad=0, start=1, end=2, mask=3, unknown=4
        ),
    )
    run, observe = _begin(parent, name, data, "bert", overrides, attack)
    for number in (1, 2):
        for order, victim in enumerate(victims):
            worse = 2 * (number - 1) + order
            wrong = [range(1, 1 + 2 * worse), range(2, 2 + worse)]
            guess = torch.stack([mangled(truth[place], list(wrong[place])) for place in (0, 1)])
            start = torch.where(truth > 4, torch.tensor(4), truth)
            half = torch.where(torch.arange(LENGTH) < 6, guess, start)
            frames = [start, half, guess]
            snapshots = tuple(
                Snapshot(step=10 * step, inputs=one, matching_loss=1.0 / (1 + step))
                for step, one in enumerate(frames)
            )
            inputs, labels = truth.clone(), torch.full_like(truth, IGNORED)
            if head == "masked":
                inputs[:, 3], labels[:, 3] = 3, truth[:, 3]
            observe(run, number, victim, inputs, labels, guess, snapshots)
            texts = []
            for place in (0, 1):
                private = truth[place] > 2
                right = (guess[place] == truth[place])[private].float().mean().item()
                texts.append(
                    TextScore(
                        truth=place,
                        guess=place,
                        accuracy=right,
                        exact=right == 1,
                        rouge1=min(1.0, right + 0.1),
                        rouge2=right / 2,
                        rouge_l=right,
                        num_tokens=int(private.sum()),
                        label=None,
                        guessed_label=None,
                        recovered=right >= 0.9,
                    )
                )
            _score(
                run, attack, number, victim, "text", texts=texts, values=[t.accuracy for t in texts]
            )
    return _end(run, name)


def table_run(
    parent: Path,
    *,
    name: str = "rows",
    overrides: Sequence[str] = (),
    sure: bool = True,
    attack: str = "dlg",
) -> RunDirectory:
    """Make a run in which DLG made rows of two clients out, worse in the second round."""
    truth = encode(ROWS, ADULT)
    data = DataRecord(
        name="adult",
        modality="table",
        class_names=["<=50K", ">50K"],
        columns=[
            ColumnRecord(
                name=one.name, categories=list(one.categories), low=one.low, high=one.high,
                whole=one.whole,
            )
            for one in ADULT.columns
        ],
    )  # fmt: skip
    run, observe = _begin(parent, name, data, "mlp", overrides, attack)
    labels = torch.tensor([0, 1])
    for number in (1, 2):
        for victim in (0, 1):
            missed = number - 1 + victim
            guess = truth.roll(1, dims=0) if missed > 1 else truth.clone()
            guess[:, 0] = (guess[:, 0] + 0.3 * missed).clamp(max=1)
            wrong = [] if not missed else [0] if missed == 1 else [0, 1, 2, 3]
            observe(run, number, victim, truth, labels, guess, ())
            rows = [
                RowScore(
                    truth=place,
                    guess=place,
                    accuracy=1 - len(wrong) / 6,
                    exact=not wrong,
                    wrong=wrong,
                    confidence=[0.42 if one in wrong else 0.93 for one in range(6)] if sure else [],
                    label=place,
                    guessed_label=place,
                    recovered=not wrong,
                )
                for place in (0, 1)
            ]
            _score(
                run, attack, number, victim, "table", rows=rows, values=[r.accuracy for r in rows]
            )
    return _end(run, name)


def _begin(
    parent: Path, name: str, data: DataRecord, model: str, overrides: Sequence[str], attack: str
) -> tuple[RunDirectory, Any]:
    text = EXPERIMENT.format(name=name, data=data.name, model=model, attack=attack)
    experiment = parse_experiment(text, overrides=overrides)
    run = RunDirectory.create(parent, name)
    places = None
    if experiment.decentralised:
        places = places_of(experiment)
        replace_json(run.topology, topology_record(experiment))
    replace_json(run.root / "threat.json", threat_record(threat_of(experiment), places))
    replace_bytes(run.config, experiment.to_toml().encode())
    replace_json(run.data, data.model_dump(mode="json"))
    for number in range(3):
        record: dict[str, Any] = {"round": number, "accuracy": 0.2 + 0.1 * number, "loss": 2.0}
        if number:
            record |= {"clients": [0, 1, 2], "replies": 3, "bytes_up": 900}
        if experiment.decentralised:
            record |= {"consensus_distance": 0.5, "peer_accuracy": [0.1, 0.2, 0.3]}
            record |= {"clients": [0, 1, 2] if number else [], "messages": 6, "bytes_between": 900}
        run.append_round(record)
    return run, partial(_observe, attack)


def _observe(
    attack: str,
    run: RunDirectory,
    number: int,
    victim: int,
    truth: Tensor,
    labels: Tensor,
    guess: Tensor,
    snapshots: tuple[Snapshot, ...],
) -> None:
    seal(run, number, f"client-{victim}", truth, labels)
    identity = run.write_observation(
        Observation(
            round=number,
            sender=f"client-{victim}",
            receiver="server",
            kind=Kind.GRADIENT,
            update={"w": torch.zeros(3)},
            weights={"w": torch.zeros(3)},
            num_examples=len(truth),
        )
    )
    seen = next(one for one in run.observation_records() if one["id"] == identity)
    found = Reconstruction(
        inputs=guess, labels=None, matching_loss=0.1, steps=20, seconds=2.0, snapshots=snapshots
    )
    run.write_reconstruction(seen, attack, found)


def _score(
    run: RunDirectory,
    attack: str,
    number: int,
    victim: int,
    modality: Any,
    *,
    values: Sequence[float | None],
    **more: Any,
) -> None:
    known = [value for value in values if value is not None]
    recovered = [value >= 0.9 for value in known]
    seen = next(
        one
        for one in run.observation_records()
        if (one["round"], one["sender"]) == (number, f"client-{victim}")
    )
    score = Score(
        observation=seen["id"],
        round=number,
        victim=f"client-{victim}",
        attack=attack,
        threat="curious-server",
        defense="none",
        status="done",
        reason=None,
        batch_size=len(values),
        images=[],
        modality=modality,
        success_accuracy=0.9,
        baseline_accuracy={
            "random_guess": [0.1] * len(values),
            "data_mean": [0.25] * len(values),
            "nearest_public": [0.5] * len(values),
        },
        tolerance=0.05 if modality == "table" else None,
        label_accuracy=None,
        success_rate=fmean(recovered),
        success_threshold_db=30.0,
        baselines=Baselines(),
        matching_loss=0.1,
        steps=20,
        seconds=2.0,
        **more,
    )
    run.append_score(score.model_dump(mode="json"))


def _end(run: RunDirectory, name: str) -> RunDirectory:
    summarize(
        run,
        experiment=name,
        engine="in-process",
        seed=0,
        weights_sha256="0" * 64,
        status="done",
        seconds={"training": 1.5, "attacks": 12.25, "total": 90.0},
    )
    return run
