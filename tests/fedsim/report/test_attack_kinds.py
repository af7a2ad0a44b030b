"""What pages say of an attack before its numbers."""

from pathlib import Path

import pytest

from fedsim.files import Record
from fedsim.records import RunDirectory
from fedsim.report.attack_kinds import AttackKind, attack_kinds

EXPERIMENT = """
[[attacks]]
name = "dlg"
join_rounds = 3
[[attacks]]
name = "inverting-gradients"
options = {labels = "oracle"}
[[attacks]]
name = "inverting-gradients"
label = "gone"
options = {setting_of_an_earlier_version = 1}
[[attacks]]
name = "nowhere.at_all:Attack"
"""


@pytest.mark.parametrize("granted", [True, False])
def test_only_attacks_that_use_what_is_granted_are_marked(tmp_path: Path, granted: bool) -> None:
    run = RunDirectory.create(tmp_path, "one")
    run.config.write_text(EXPERIMENT)
    threat: Record = {"oracle": granted, "active": False}

    kinds = attack_kinds(run, threat)

    assert kinds["dlg"] == AttackKind(join_rounds=3)
    assert kinds["inverting-gradients"] == AttackKind(oracle=True)
    # not asked: the code is not of this program, or the settings are not
    assert kinds["gone"] == kinds["nowhere.at_all.Attack"] == AttackKind(oracle=granted)


def test_an_attack_that_changes_what_is_sent_is_called_active(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "one")
    run.config.write_text('[[attacks]]\nname = "robbing-the-fed"')

    assert attack_kinds(run, None)["robbing-the-fed"].words == "active"


def test_words_name_all_there_is_to_know() -> None:
    kind = AttackKind(oracle=True, active=True, join_rounds=4)

    assert kind.words == "oracle, active, 4 rounds joined"
    assert AttackKind().words == ""
