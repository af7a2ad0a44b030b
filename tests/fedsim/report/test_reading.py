"""What pages and logs say of an experiment, and what they keep to themselves."""

import pytest

from fedsim.records import RunDirectory
from fedsim.report.reading import attack_labels, settings, without_paths


def test_settings_go_by_dotted_key_and_attacks_by_label(finished_run: RunDirectory) -> None:
    found = settings(finished_run)

    assert found["training.batch_size"] == 2
    assert found["attacks.labels-only.name"] == "label"
    assert attack_labels(finished_run) == ["dlg", "labels-only", "IG"]


def test_settings_name_no_folder_and_no_machine(finished_run: RunDirectory) -> None:
    found = settings(finished_run)

    assert "somebody" in finished_run.config.read_text()
    assert not {"output.directory", "data.root", "engine.address"} & set(found)
    assert "somebody" not in str(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot write '/home/ann/runs/a-0001/x.json'", "cannot write '\u2026/x.json'"),
        ("no data in /srv/data sets", "no data in \u2026/data sets"),
        ("~/private/thing is not there", "\u2026/thing is not there"),
        ("File /a/b/c.py, line 3", "File \u2026/c.py, line 3"),
        ("see https://arxiv.org/abs/1906.08935", "see https://arxiv.org/abs/1906.08935"),
        ("1/2 of all, 3 / 4, and/or", "1/2 of all, 3 / 4, and/or"),
        ("runs/a-0001/report.html", "runs/a-0001/report.html"),
    ],
)
def test_paths_are_cut_down_to_their_last_part(text: str, expected: str) -> None:
    assert without_paths(text) == expected
