"""What an update weighs, whether or not clients packed it."""

from pathlib import Path

import pytest

from fedsim import driver
from fedsim.config import parse_experiment
from fedsim.records import RunDirectory
from fedsim.sweep.traffic import packed_bytes

TEXT = """
name = "sizes"
rounds = 1
[model]
name = "dlg-lenet"
[partition]
clients = 2
[training]
batch_size = 1
[adversary]
victims = [0, 1]
"""
CLIP = '[[defenses]]\nname = "clip"\noptions = {norm = 1e9}\n'


def run(folder: Path, text: str) -> RunDirectory:
    experiment = parse_experiment(text, overrides=[f"output.directory={folder}"])
    return RunDirectory(driver.run(experiment).directory)


def sent(found: RunDirectory) -> float:
    (last,) = (one for one in found.rounds() if one.get("clients"))
    return float(last["bytes_up"]) / len(last["clients"])


def test_an_update_weighs_the_same_whether_or_not_it_went_through_a_defense_that_does_nothing(
    tmp_path: Path,
) -> None:
    plain, clipped = run(tmp_path / "plain", TEXT), run(tmp_path / "clipped", TEXT + CLIP)

    assert packed_bytes(clipped) is None
    assert packed_bytes(plain) == pytest.approx(sent(clipped))
    assert sent(clipped) < 0.8 * sent(plain)  # much of this gradient is zero


def test_nothing_is_said_of_what_was_not_heard_whole(tmp_path: Path) -> None:
    text = TEXT.replace("victims = [0, 1]", "victims = []")
    assert packed_bytes(run(tmp_path, text)) is None
