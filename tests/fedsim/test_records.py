"""The run directory: what is written reads back, and nothing is ever half there."""

import errno
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attacks.observation import Kind, Observation, Reconstruction, Snapshot
from fedsim.errors import ConfigError
from fedsim.files import digest, replace_bytes, replace_json
from fedsim.records import FORMAT, RunDirectory

SEEN = Observation(
    round=3,
    sender="client-1",
    receiver="server",
    kind=Kind.GRADIENT,
    update={"layer.weight": torch.tensor([[1.0, -0.0], [1e-45, 3.0]]), "layer.bias": torch.ones(2)},
    weights={"layer.weight": torch.eye(2), "layer.bias": torch.zeros(2)},
    buffers={"norm.mean": torch.tensor([0.5])},
    num_examples=4,
)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """An empty run directory."""
    return RunDirectory.create(tmp_path, "tiny")


def same(first: object, second: object) -> bool:
    """Whether two collections of tensors are equal to the bit; None equals None alone."""
    if not isinstance(first, dict) or not isinstance(second, dict):
        return first is second is None
    return digest(first) == digest(second)


# observations


@pytest.mark.parametrize(
    "seen",
    [
        SEEN,
        replace(SEEN, weights=None, buffers=None, num_examples=None),
        replace(SEEN, visible={"layer.bias": torch.tensor([True, False])}),
        replace(SEEN, buffers_after={"norm.mean": torch.tensor([1e-45])}),
        replace(SEEN, kind=Kind.SIZES_ONLY, update={}, visible={}),
    ],
    ids=["whole", "without weights", "with a mask", "statistics sent back", "sizes only"],
)
def test_an_observation_reads_back_as_it_was_written(run: RunDirectory, seen: Observation) -> None:
    read = run.read_observation(run.write_observation(seen))

    for part in ("update", "visible", "weights", "buffers", "buffers_after"):
        assert same(getattr(read, part), getattr(seen, part)), part
    for part in ("round", "sender", "receiver", "kind", "num_examples"):
        assert getattr(read, part) == getattr(seen, part), part


def test_weights_that_many_messages_share_are_stored_once(run: RunDirectory) -> None:
    for client in range(3):
        run.write_observation(replace(SEEN, sender=f"client-{client}"))
    models = run.root / "observations" / "models"
    assert len(list(models.glob("weights-*"))) == len(list(models.glob("buffers-*"))) == 1

    run.write_observation(replace(SEEN, round=4, weights={"layer.weight": torch.ones(2, 2)}))
    assert len(list(models.glob("weights-*"))) == 2


def test_the_digest_of_the_views_changes_with_any_bit_that_was_heard(run: RunDirectory) -> None:
    heard = set()
    for seen in (
        SEEN,
        replace(SEEN, num_examples=5),
        replace(SEEN, weights=None),
        replace(SEEN, update=dict(SEEN.update) | {"layer.bias": torch.tensor([1.0, 1.0000001])}),
    ):
        run.write_observation(seen)
        heard.add(run.views_sha256())

    assert len(heard) == 4
    run.write_observation(SEEN)
    assert run.views_sha256() in heard


def test_an_observation_that_is_not_there_is_an_error(run: RunDirectory) -> None:
    with pytest.raises(ConfigError, match="run 'tiny-0001' has no observation 'x'"):
        run.read_observation("x")


def test_an_observation_without_its_record_is_not_there_yet(run: RunDirectory) -> None:
    identity = run.write_observation(SEEN)
    (run.root / "observations" / f"{identity}.json").unlink()

    assert run.observation_records() == []


# reconstructions


@pytest.fixture
def heard(run: RunDirectory) -> dict[str, object]:
    """The record of one observation."""
    run.write_observation(SEEN)
    return run.observation_records()[0]


def test_a_reconstruction_reads_back_with_its_snapshots_and_a_loss_that_is_no_number(
    run: RunDirectory, heard: dict[str, object]
) -> None:
    guess = Reconstruction(
        inputs=torch.rand(4, 1, 2, 2),
        labels=torch.tensor([3, 1, 4, 1]),
        matching_loss=float("nan"),
        steps=20,
        seconds=1.5,
        finished=False,
        snapshots=(
            Snapshot(step=0, inputs=torch.zeros(4, 1, 2, 2), matching_loss=2.0),
            Snapshot(step=10, inputs=torch.ones(4, 1, 2, 2), matching_loss=float("inf")),
        ),
        certified=torch.tensor([True, False, True, True]),
        notes={"rule": "sign", "restarts": 2, "best": float("nan")},
    )

    run.write_reconstruction(heard, "dlg", guess)
    [(record, read)] = run.reconstructions()

    assert (record["status"], record["victim"], record["round"]) == ("unfinished", "client-1", 3)
    assert same({"x": read.inputs, "y": read.labels}, {"x": guess.inputs, "y": guess.labels})
    assert (read.matching_loss, read.steps, read.seconds, read.finished) == (None, 20, 1.5, False)
    assert read.certified is not None
    assert read.certified.tolist() == [True, False, True, True]
    assert record["num_certified"] == 3
    assert [one.step for one in read.snapshots] == [0, 10]
    assert read.snapshots[0].matching_loss == 2.0
    assert read.snapshots[1].matching_loss != read.snapshots[1].matching_loss  # NaN
    assert torch.equal(read.snapshots[1].inputs, torch.ones(4, 1, 2, 2))
    assert read.notes == {"rule": "sign", "restarts": 2.0, "best": None}


def test_an_attack_that_proves_nothing_says_so(run: RunDirectory, heard: dict[str, object]) -> None:
    run.write_reconstruction(heard, "dlg", Reconstruction(inputs=torch.ones(1, 1), labels=None))
    [(record, read)] = run.reconstructions()

    assert record["num_certified"] is None
    assert read.certified is None


def test_a_failed_attack_is_recorded_with_its_reason(
    run: RunDirectory, heard: dict[str, object]
) -> None:
    run.write_reconstruction(heard, "dlg", None, reason="no bias", seconds=0.25)
    [(record, read)] = run.reconstructions()

    assert (record["status"], record["reason"], record["seconds"]) == ("failed", "no bias", 0.25)
    assert read.inputs is None
    assert read.labels is None
    assert not read.finished


def test_a_failed_attack_shows_no_guess_of_an_attempt_that_was_killed_half_way(
    run: RunDirectory, heard: dict[str, object]
) -> None:
    guess = Reconstruction(inputs=torch.rand(4, 1, 2, 2), labels=None)
    run.write_reconstruction(heard, "dlg", guess)

    run.write_reconstruction(heard, "dlg", None, reason="second attempt")

    assert run.read_reconstruction(run.reconstruction_records()[0]).inputs is None


def test_forgetting_reconstructions_forgets_their_scores_and_nothing_else(
    run: RunDirectory, heard: dict[str, object]
) -> None:
    run.write_reconstruction(heard, "dlg", None, reason="x")
    run.append_score({"observation": heard["id"], "attack": "dlg", "round": 3})
    run.append_round({"round": 3})

    run.forget_reconstructions()

    assert (run.reconstruction_records(), run.scores()) == ([], [])
    assert run.rounds() == [{"round": 3}]
    assert run.observation_records() == [heard]


# logs


def test_half_a_line_is_not_read_and_a_repair_cuts_it_off(run: RunDirectory) -> None:
    run.append_round({"round": 1})
    with (run.root / "rounds.jsonl").open("ab") as file:
        file.write(b'{"round": 2, "lo')
    part = run.root / "observations" / ".x.json.1.part"
    part.write_bytes(b"{")
    os.utime(part, (0, 0))

    assert run.rounds() == [{"round": 1}]
    assert run.rounds_after(0)[0] == [{"round": 1}]
    run.repair()
    run.append_round({"round": 2})

    assert run.rounds() == [{"round": 1}, {"round": 2}]
    assert list(run.root.rglob(".*")) == []


def test_a_repair_leaves_what_others_are_writing(run: RunDirectory) -> None:
    part = run.root / "reconstructions" / ".x.json.1.part"
    part.write_bytes(b"{")

    run.repair()
    run.forget_partial(before=part.stat().st_mtime)
    assert part.read_bytes() == b"{"

    run.forget_partial(before=part.stat().st_mtime + 1)
    assert not part.exists()


def test_a_log_is_read_on_from_where_one_stopped(run: RunDirectory) -> None:
    assert run.rounds_after(run.size_of_rounds()) == ([], 0)
    run.append_round({"round": 1})
    first, place = run.rounds_after(0)
    run.append_round({"round": 2})

    second, end = run.rounds_after(place)

    assert (first, second) == ([{"round": 1}], [{"round": 2}])
    assert run.rounds_after(end) == ([], end)
    assert end == run.size_of_rounds()


def test_a_round_that_was_repeated_counts_once_as_it_went_last(run: RunDirectory) -> None:
    for record in ({"round": 1, "loss": 2}, {"round": 2, "loss": 2}, {"round": 2, "loss": 1}):
        run.append_round(record)

    assert run.rounds() == [{"round": 1, "loss": 2}, {"round": 2, "loss": 1}]


def test_scores_are_the_newest_of_each_attack_in_order_of_round(run: RunDirectory) -> None:
    for round_, observation, value in ((2, "b", 1), (1, "a", 1), (2, "b", 2)):
        run.append_score(
            {"round": round_, "observation": observation, "attack": "dlg", "value": value}
        )

    assert [(one["round"], one["value"]) for one in run.scores()] == [(1, 1), (2, 2)]


def test_an_event_carries_its_time_kind_and_details(run: RunDirectory) -> None:
    run.append_event("client-failed", "round 1, client 0: boom", round=1, client=0)

    [event] = run.events()
    assert event.pop("time").endswith("+00:00")
    assert event == {
        "kind": "client-failed",
        "message": "round 1, client 0: boom",
        "round": 1,
        "client": 0,
    }


# the directory


def test_runs_are_numbered_and_their_names_fit_a_file_system(tmp_path: Path) -> None:
    names = [RunDirectory.create(tmp_path / "runs", "a b/..").name for _ in range(2)]

    assert names == ["a-b-..-0001", "a-b-..-0002"]
    assert RunDirectory.create(tmp_path, "///").name == "run-0001"


def test_the_truth_is_for_the_owner_alone(run: RunDirectory) -> None:
    assert stat.S_IMODE((run.root / "truth").stat().st_mode) == 0o700


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOSPC, errno.EROFS])
def test_a_run_that_cannot_be_made_is_refused_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", refuse)

    said = f"cannot make a run directory in .*: {os.strerror(code)}; choose another place"
    with pytest.raises(ConfigError, match=said):
        RunDirectory.create(tmp_path / "runs", "tiny")


def test_a_folder_that_is_no_run_or_of_the_future_is_refused(run: RunDirectory) -> None:
    with pytest.raises(ConfigError, match=r"is not a run directory: it has no config\.toml"):
        RunDirectory.open(run.root)
    replace_bytes(run.config, b"")
    assert RunDirectory.open(run.root) == run

    replace_json(run.environment, {"format": FORMAT + 1})
    with pytest.raises(ConfigError, match=r"has run directory format 2, .* update fedsim"):
        RunDirectory.open(run.root)


def test_an_oracle_has_labels_only_where_they_were_written(run: RunDirectory) -> None:
    run.write_oracle_labels(1, "client-0", torch.tensor([7, 7]))

    labels = run.read_oracle_labels(1, "client-0")
    assert labels is not None
    assert labels.tolist() == [7, 7]
    assert labels.dtype == torch.int64
    assert run.read_oracle_labels(1, "client-1") is None
