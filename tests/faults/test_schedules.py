"""Anything may go wrong at any message: a sample of `python -m tests.faults`."""

from pathlib import Path

import pytest

from tests.faults.harness import FEDERATIONS, play

NUM_SCHEDULES = 40


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(NUM_SCHEDULES))
def test_what_a_schedule_of_faults_leaves_is_what_sound_messages_lead_to(
    tmp_path: Path, seed: int
) -> None:
    outcome = play(seed, tmp_path)

    assert outcome.federation in FEDERATIONS
    assert outcome.ended == "completed" or outcome.ended.startswith("round ")
