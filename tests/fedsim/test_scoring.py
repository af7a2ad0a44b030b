"""Scores of a process of its own are those of the run itself, and none is lost with it."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fedsim
from attacks.observation import Kind, Observation, Reconstruction
from fedsim import scoring
from fedsim.config import parse_experiment
from fedsim.files import Record, read_json
from fedsim.records import RunDirectory
from fedsim.scoring import Scorer
from fedsim.stages.score import score_one
from fedsim.truth import seal
from server import rounds

NUM_VICTIMS = 2 * scoring.AHEAD + 3  # more than the process is handed at once
SETTINGS: Record = {
    "public_sample": torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(1)),
    "seed": 0,
    "threat": "curious-server",
    "defense": "none",
    "success_threshold_db": 30.0,
}


@pytest.fixture
def run(tmp_path: Path, rng: torch.Generator) -> RunDirectory:
    """A run with a guess at each of some victims' two images; every third attack failed."""
    run = RunDirectory.create(tmp_path, "one")
    run.config.write_text("")
    for victim in range(NUM_VICTIMS):
        truth = torch.rand(2, 3, 12, 12, generator=rng)
        seal(run, 1, f"client-{victim}", truth, torch.tensor([3, 1]))
        seen = Observation(
            round=1, sender=f"client-{victim}", receiver="server", kind=Kind.GRADIENT, update={}
        )
        run.write_observation(seen)
        record = read_json(run.root / f"observations/round-00001-client-{victim}-to-server.json")
        noise = 0.1 * torch.rand(truth.shape, generator=rng)
        guess = None if victim % 3 == 2 else Reconstruction(inputs=truth + noise, labels=None)
        run.write_reconstruction(record, "dlg", guess, seconds=1.0)
    return run


def here(run: RunDirectory) -> list[Record]:
    return [score_one(run, record, **SETTINGS) for record in run.reconstruction_records()]


def until(done: Callable[[], bool], scorer: Scorer) -> None:
    deadline = time.monotonic() + 120
    while not done():
        assert time.monotonic() < deadline
        scorer.step()
        time.sleep(0.02)


@pytest.fixture
def nobody_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where this process scores by itself."""
    monkeypatch.setattr(scoring, "score_one", None)


@pytest.mark.usefixtures("nobody_here")
def test_the_process_gives_the_scores_of_the_run_itself_in_order(run: RunDirectory) -> None:
    scores: list[Record] = []
    scorer = Scorer(run, SETTINGS, scores.append)
    for record in run.reconstruction_records():
        scorer.score(record, beside_training=True)
    assert scorer.waiting == NUM_VICTIMS

    until(lambda: len(scores) > 0, scorer)
    assert scorer.process is not None
    assert not Path(scorer.process.folder.name).exists()  # nothing is left if both are killed
    until(lambda: scorer.waiting == 0, scorer)
    scorer.close()

    assert scores == here(run)
    assert run.events() == []


def test_whatever_comes_after_the_training_is_scored_here_if_nothing_came_before(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "_Process", None)
    scores: list[Record] = []
    scorer = Scorer(run, SETTINGS, scores.append)

    for record in run.reconstruction_records():
        scorer.score(record, beside_training=False)
        assert scorer.waiting == 0
    scorer.close()

    assert scores == here(run)


@pytest.mark.parametrize("answered", [0, 1, NUM_VICTIMS])
def test_a_killed_process_loses_no_score(run: RunDirectory, answered: int) -> None:
    scores: list[Record] = []
    scorer = Scorer(run, SETTINGS, scores.append)
    for record in run.reconstruction_records():
        scorer.score(record, beside_training=True)
    until(lambda: len(scores) >= answered, scorer)
    process = scorer.process
    assert process is not None

    process.child.process.kill()
    until(lambda: scorer.process is None, scorer)

    assert scores == here(run)
    assert scorer.waiting == 0
    assert [one["kind"] for one in run.events()] == ["scoring-process-lost"]
    assert "code -9" in run.events()[0]["message"]
    assert not Path(process.folder.name).exists()


def test_what_cannot_be_scored_is_an_error_of_the_run_and_the_scores_before_it_are_kept(
    run: RunDirectory,
) -> None:
    records = run.reconstruction_records()
    stem = f"{records[1]['observation']}--{records[1]['attack']}"
    (run.root / f"reconstructions/{stem}.safetensors").write_bytes(b"no tensors")
    scores: list[Record] = []
    scorer = Scorer(run, SETTINGS, scores.append)
    for record in records:
        scorer.score(record, beside_training=True)

    with pytest.raises(Exception, match=stem):
        until(lambda: False, scorer)

    assert scores == [score_one(run, records[0], **SETTINGS)]
    assert stem in run.events()[0]["message"]


def test_closing_ends_a_process_that_has_work_left(run: RunDirectory) -> None:
    scorer = Scorer(run, SETTINGS, lambda score: None)
    for record in run.reconstruction_records():
        scorer.score(record, beside_training=True)
    scorer.step()
    assert scorer.process is not None
    process = scorer.process.child.process

    scorer.close()

    assert process.poll() == -9
    assert scorer.waiting == 0


EXPERIMENT = """
name = "tiny"
rounds = 3
partition = { clients = 2 }
model = { name = "mlp", options = { hidden = [6] } }
training = { batch_size = 2 }
adversary = { victims = [0] }
[[attacks]]
name = "idlg"
options = { steps = 2 }
"""


@pytest.mark.usefixtures("nobody_here")
def test_a_run_scores_while_it_trains_and_not_in_the_process_that_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, seen = rounds._Rounds.one, []

    def wait_in_round_3(self: rounds._Rounds, number: int, arrays: object) -> object:
        deadline = time.monotonic() + 120
        run = RunDirectory(tmp_path / "tiny-0001")
        while number == 3 and len(run.scores()) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        seen.append(len(run.scores()))
        return one(self, number, arrays)  # type: ignore[arg-type]

    monkeypatch.setattr(rounds._Rounds, "one", wait_in_round_3)
    sets = [f"output.directory='{tmp_path}'"]
    result = fedsim.run(parse_experiment(EXPERIMENT, overrides=sets))

    assert seen[2] == 2
    assert len(result.scores) == 3
    assert result.events == []
