"""What a score says of guesses at texts and at rows of tables."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from attacks.observation import Kind, Observation, Reconstruction
from attacks.tabular.columns import Column, Columns
from attacks.text.tokens import IGNORED
from fedsim.files import Record, read_json, replace_json
from fedsim.records import RunDirectory
from fedsim.schemas.data import ColumnRecord, DataRecord, TokensRecord
from fedsim.stages.score import score_one
from fedsim.truth import seal

OBSERVATION = "round-00001-client-7-to-server"
TEXTS = torch.tensor([[1, 7, 4, 9, 5, 2, 0], [1, 6, 4, 8, 2, 0, 0]])
INPUTS = torch.tensor([[1, 7, 3, 9, 5, 2, 0], [1, 6, 4, 3, 2, 0, 0]])  # 3 masks a token of each
LABELS = torch.full_like(TEXTS, IGNORED)
LABELS[0, 2], LABELS[1, 3] = 4, 8
WORDS = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "is", "it", "he", "she", "old", "late"]

COLUMNS = Columns(
    columns=[Column(name="kind", categories=("a", "b", "c")), Column(name="age", low=0, high=100)]
)
ROWS = torch.tensor([[1, 0, 0, 0.2], [0, 0, 1, 0.9], [0, 1, 0, 0.5]])
CLASSES = torch.tensor([0, 1, 0])

Judge = Callable[..., Record]


def heard(folder: Path, data: DataRecord) -> RunDirectory:
    run = RunDirectory.create(folder, "one")
    replace_json(run.data, data.model_dump(mode="json", exclude_defaults=True))
    run.write_observation(
        Observation(round=1, sender="client-7", receiver="server", kind=Kind.GRADIENT, update={})
    )
    return run


def judged(
    run: RunDirectory, guess: Reconstruction | None, public: torch.Tensor, **more: object
) -> Record:
    run.write_reconstruction(
        read_json(run.root / "observations" / f"{OBSERVATION}.json"),
        "dager",
        guess,
        reason="too many tokens" if guess is None else None,
        seconds=2.0,
    )
    (record,) = run.reconstruction_records()
    settings: Record = {
        "public_sample": public,
        "seed": 0,
        "threat": "curious-server",
        "defense": "none",
        "success_threshold_db": 30.0,
    }
    return score_one(run, record, **(settings | more))


@pytest.fixture
def text(tmp_path: Path) -> Judge:
    """Return what scores a guess at two masked texts."""
    tokens = TokensRecord(vocabulary_size=10, head="masked", pad=0, start=1, end=2, mask=3)
    data = DataRecord(name="t", modality="text", class_names=[], words=WORDS, tokens=tokens)
    run = heard(tmp_path, data)
    seal(run, 1, "client-7", INPUTS, LABELS)
    public = torch.tensor([[1, 7, 4, 9, 2, 0, 0], [1, 7, 4, 8, 2, 0, 0], [1, 6, 4, 9, 2, 0, 0]])
    return lambda guess, **more: judged(run, guess, public, **more)


@pytest.fixture
def table(tmp_path: Path) -> Judge:
    """Return what scores a guess at three rows."""
    columns = [
        ColumnRecord(name="kind", categories=["a", "b", "c"]),
        ColumnRecord(name="age", low=0, high=100),
    ]
    data = DataRecord(name="t", modality="table", class_names=["n", "y"], columns=columns)
    run = heard(tmp_path, data)
    seal(run, 1, "client-7", ROWS, CLASSES)
    public = torch.tensor([[1, 0, 0, 0.4], [1, 0, 0, 0.6], [0, 1, 0, 0.5]])
    return lambda guess, **more: judged(run, guess, public, **more)


def test_texts_are_what_was_written_whatever_their_order_and_the_masks(text: Judge) -> None:
    found = text(Reconstruction(inputs=TEXTS[[1, 0]], labels=None, certified=torch.ones(2) > 0))

    assert found["modality"] == "text"
    assert [one["guess"] for one in found["texts"]] == [1, 0]
    assert [one["accuracy"] for one in found["texts"]] == [1.0, 1.0]
    assert [one["num_tokens"] for one in found["texts"]] == [4, 3]
    assert all(one["exact"] and one["rouge2"] == 1.0 for one in found["texts"])
    assert (found["success_rate"], found["certified"], found["certified_wrong"]) == (1.0, 2, 0)
    assert found["images"] == found["rows"] == []
    assert found["success_threshold_db"] == 30.0
    assert found["success_accuracy"] == 0.9


def test_each_token_counts_at_its_place_and_special_ones_nowhere(text: Judge) -> None:
    guess = TEXTS.clone()
    guess[0] = torch.tensor([1, 7, 9, 4, 5, 2, 2])  # two tokens changed places

    found = text(Reconstruction(inputs=guess, labels=None, certified=torch.ones(2) > 0))

    first = found["texts"][0]
    assert first["accuracy"] == 0.5
    assert (first["rouge1"], first["exact"], first["recovered"]) == (1.0, False, False)
    assert first["rouge2"] == 0.0
    assert first["rouge_l"] == pytest.approx(0.75)
    assert (found["success_rate"], found["certified_wrong"]) == (0.5, 1)
    assert (
        text(Reconstruction(inputs=guess, labels=None), success_accuracy=0.5)["success_rate"] == 1.0
    )


def test_guesses_without_the_update_stand_beside(text: Judge) -> None:
    found = text(Reconstruction(inputs=TEXTS, labels=None))

    baselines = found["baseline_accuracy"]
    # the most frequent token of each place: she is late
    assert baselines["data_mean"] == [pytest.approx(3 / 4), pytest.approx(1 / 3)]
    assert baselines["nearest_public"] == [pytest.approx(3 / 4), pytest.approx(2 / 3)]
    assert len(baselines["random_guess"]) == 2


def test_a_text_without_a_guess_is_a_miss(text: Judge) -> None:
    found = text(Reconstruction(inputs=TEXTS[:1], labels=None))

    missed = found["texts"][1]
    assert (missed["guess"], missed["accuracy"], missed["recovered"]) == (None, None, False)
    assert found["success_rate"] == 0.5
    failed = text(None)
    assert (failed["status"], failed["success_rate"], failed["texts"]) == ("failed", 0.0, [])


def test_what_is_no_text_is_a_failed_attack(text: Judge) -> None:
    found = text(Reconstruction(inputs=torch.rand(2, 7), labels=None))

    assert found["status"] == "failed"
    assert "must be tokens" in found["reason"]


def test_rows_are_right_feature_by_feature(table: Judge) -> None:
    guess = ROWS[[2, 0, 1]].clone()
    guess[0, 3] += 0.04  # within the tolerance
    guess[1, 3] += 0.06  # beyond it
    guess[2, :3] = torch.tensor([0.2, 0.7, 0.1])
    sure = torch.tensor([[0.9, 0.8], [0.7, 0.6], [0.5, 0.4]])

    found = table(Reconstruction(inputs=guess, labels=CLASSES[[2, 0, 1]], confidence=sure))

    rows = found["rows"]
    assert [one["guess"] for one in rows] == [1, 2, 0]
    assert [one["accuracy"] for one in rows] == [0.5, 0.5, 1.0]
    assert [one["wrong"] for one in rows] == [[1], [0], []]
    assert rows[2]["confidence"] == pytest.approx([0.9, 0.8])
    assert (found["label_accuracy"], found["tolerance"]) == (1.0, 0.05)
    assert found["success_rate"] == pytest.approx(1 / 3)
    # kind a and age 50 of everybody
    assert found["baseline_accuracy"]["data_mean"] == [0.5, 0.0, 0.5]
    assert table(Reconstruction(inputs=guess, labels=None), tolerance=0.1)["success_rate"] == (
        pytest.approx(2 / 3)
    )


def test_rows_of_another_width_are_a_failed_attack(table: Judge) -> None:
    found = table(Reconstruction(inputs=torch.rand(3, 5), labels=None))

    assert found["status"] == "failed"
    assert "the guessed rows have shape (5,), the private ones (4,)" in found["reason"]


def test_a_text_without_tokens_is_not_recovered_by_guessing_nothing(tmp_path: Path) -> None:
    tokens = TokensRecord(vocabulary_size=10, head="classes", pad=0, start=1, end=2)
    data = DataRecord(name="t", modality="text", class_names=["n"], words=WORDS, tokens=tokens)
    run = heard(tmp_path, data)
    nothing = torch.tensor([[1, 2, 0]])
    seal(run, 1, "client-7", nothing, torch.zeros(1, dtype=torch.int64))

    found = judged(run, Reconstruction(inputs=nothing, labels=None), torch.tensor([[1, 7, 2]]))

    assert (found["texts"][0]["num_tokens"], found["success_rate"]) == (0, 0.0)
