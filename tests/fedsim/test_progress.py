"""What an attack worker shows of the job that it is on."""

from pathlib import Path

import pytest
import torch

from attacks.matching.snapshots import onlooker
from attacks.observation import Snapshot
from fedsim import progress
from fedsim.files import Record, read_json, read_tensors
from fedsim.progress import Shown
from fedsim.schemas import DOCUMENTS

NAMES = ("round-00001-client-0-to-server", "round-00001-client-1-to-server")


def generators(num: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(num)]


def guess(step: int, *shape: int) -> Snapshot:
    return Snapshot(step=step, inputs=torch.full(shape, 0.5), matching_loss=1.0)


def shown_in(folder: Path) -> Record:
    (path,) = (folder / "progress").glob("*.json")
    return read_json(path)


def tell(*told: object) -> None:
    look = onlooker()
    assert look is not None
    look(*told)  # type: ignore[arg-type]


def test_a_job_is_there_while_it_lasts_and_gone_afterwards(tmp_path: Path) -> None:
    with Shown(tmp_path).job("dlg", NAMES, generators(2), time_budget_s=10.0):
        record = shown_in(tmp_path)
        DOCUMENTS["progress"].model_validate(record)

        assert record["attack"] == "dlg"
        assert record["observations"] == list(NAMES)
        assert record["guesses"] == {}

    assert list((tmp_path / "progress").iterdir()) == []
    assert onlooker() is None


def test_a_job_that_fails_is_gone_as_well(tmp_path: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        Shown(tmp_path).job("dlg", NAMES, generators(2), time_budget_s=10.0),
    ):
        raise ZeroDivisionError

    assert list((tmp_path / "progress").iterdir()) == []


def test_each_guess_is_that_of_the_victim_with_its_generator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PAUSE_S", 0.0)
    rngs = generators(2)
    with Shown(tmp_path).job("dlg", NAMES, rngs, time_budget_s=10.0):
        tell(guess(3, 2, 1, 8, 8), rngs[1])
        tell(guess(5, 2, 1, 8, 8), None)  # of which of the two, nobody can say
        tell(guess(5, 2, 1, 8, 8), torch.Generator())
        record = shown_in(tmp_path)
        DOCUMENTS["progress"].model_validate(record)
        (path,) = (tmp_path / "progress").glob("*.safetensors")
        tensors, _ = read_tensors(path)

    assert record["guesses"] == {NAMES[1]: {"step": 3, "images": 2}}
    assert {name: tuple(one.shape) for name, one in tensors.items()} == {NAMES[1]: (2, 1, 8, 8)}


def test_the_only_victim_needs_no_generator_to_be_known_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PAUSE_S", 0.0)
    with Shown(tmp_path).job("dlg", NAMES[:1], generators(1), time_budget_s=10.0):
        tell(guess(7, 1, 3, 8, 8), None)

        assert shown_in(tmp_path)["guesses"] == {NAMES[0]: {"step": 7, "images": 1}}


def test_guesses_are_written_now_and_then_and_no_more_of_them_than_fit(tmp_path: Path) -> None:
    rngs = generators(1)
    with Shown(tmp_path).job("dlg", NAMES[:1], rngs, time_budget_s=10.0):
        tell(guess(1, 64, 3, 8, 8), rngs[0])  # at once after the start: not written
        assert shown_in(tmp_path)["guesses"] == {}

    view = progress._View(tmp_path / "progress" / "x", "dlg", NAMES, generators(2), 10.0)
    view.look(guess(1, 64, 3, 8, 8), view.rngs[0])
    view.look(guess(1, 1, 3, 1024, 1024), view.rngs[1])  # larger than all that may be written

    assert view.record["guesses"] == {NAMES[0]: {"step": 1, "images": progress.MOST_IMAGES}}


def test_a_folder_that_cannot_be_written_stops_no_attack(tmp_path: Path) -> None:
    (tmp_path / "progress").write_text("a file where the folder should be")
    done = False

    with Shown(tmp_path).job("dlg", NAMES, generators(2), time_budget_s=10.0):
        done = True

    assert done
