"""Where a run stands, in words that do not say more than is known."""

import os
from pathlib import Path
from typing import Any

import pytest

from fedsim.watch.stage import Stage, covers, headline, stage_of

ROW = {
    "images": 4,
    "recovered": 3,
    "median": 41.0,
    "labels": 1.0,
    "threshold": 30.0,
    "baseline": 12.0,
}
THREAT = {"name": "curious-server+labels"}


def words(
    rows: dict[str, Any], kinds: dict[str, str] | None = None, stage: str = "training"
) -> str:
    return headline(rows, kinds or {}, THREAT, stage).replace("\u00a0", " ")


def test_what_was_recovered_stands_beside_what_guessing_gives() -> None:
    assert words({"dlg": ROW}) == (
        "The curious server has recovered 3 of 4 images so far, to 30 dB or better (dlg); "
        "guessing the data mean gives 12.0 dB."
    )
    assert "so far" not in words({"dlg": ROW}, stage="done")


def test_an_honest_attack_goes_before_an_oracle() -> None:
    worse = ROW | {"recovered": 0, "median": 14.0}

    both = words({"told": ROW, "dlg": worse}, {"told": "oracle", "dlg": ""})
    alone = words({"told": ROW}, {"told": "oracle"})

    assert "recovered none of 4 images so far to 30 dB; dlg came closest" in both
    assert "oracle" not in both
    assert "(told, an oracle)" in alone
    assert alone.startswith("The curious server, told the private labels (an oracle),")


def test_labels_alone_and_nothing_at_all_are_said_to_be_that() -> None:
    labels = ROW | {"images": 0, "recovered": 0, "median": None, "labels": 0.75}

    assert words({"label": labels}).endswith("read off 75 % of the private labels so far (label).")
    assert words({}) == "Nothing is known yet of what the curious server can see."
    assert "names no attack" in headline({}, {}, THREAT, "done", asked=False)
    assert headline({}, {}, THREAT, "done", why_nothing="nothing was heard") == (
        "Nothing was heard, so nothing is known of what this training leaks."
    )
    assert words({}, stage="waiting") == "Waiting for the run to begin."


@pytest.mark.parametrize("status", ["done", "interrupted", "failed"])
def test_the_summary_says_how_a_run_ended_unless_something_came_after(
    tmp_path: Path, status: str
) -> None:
    def stage(*, covered: bool) -> Stage:
        return stage_of(
            tmp_path,
            {"status": status},
            started=True,
            trained=False,
            covered=covered,
            working=False,
            now=1010.0,
        )

    assert stage(covered=True) == Stage(status)
    assert stage(covered=False) == Stage("training")


def test_a_summary_covers_logs_that_hold_what_it_counts() -> None:
    summary = {"rounds": 3, "leakage": [{"victims": 4}, {"victims": 2}], "unscored_attacks": 1}

    assert covers(summary, rounds=3, scores=7, others=0)
    assert covers(summary, rounds=3, scores=5, others=2)
    assert not covers(summary, rounds=4, scores=7, others=0)
    assert not covers(summary, rounds=3, scores=8, others=0)
    assert not covers(summary, rounds=3, scores=0, others=0)
    assert not covers({"leakage": [[], {"victims": "x"}]}, rounds=3, scores=0, others=0)


def test_silence_is_told_but_not_while_a_worker_is_at_work(tmp_path: Path) -> None:
    (tmp_path / "rounds.jsonl").touch()
    os.utime(tmp_path / "rounds.jsonl", (1000, 1000))

    def quiet(now: float, *, working: bool = False) -> int | None:
        found = stage_of(
            tmp_path,
            None,
            started=True,
            trained=True,
            covered=False,
            working=working,
            now=now,
        )
        assert found.name == "attacking"
        return found.quiet_s

    assert quiet(1050) is None
    assert quiet(1123) == 120
    assert quiet(1123, working=True) is None
