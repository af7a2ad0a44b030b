"""Names and the objects behind them."""

from pathlib import Path

import pytest

from attacks import ATTACKS
from fedsim.catalog import load, nearest, resolve, summary
from fedsim.errors import ConfigError

TABLE = {"dumps": "json:dumps", "loads": "json:loads"}


def test_the_nearest_name_is_offered_or_else_all_of_them() -> None:
    assert nearest("invert-gradients", ATTACKS) == "; did you mean 'inverting-gradients'?"
    assert nearest("zzzz", TABLE) == "; there are dumps, loads"
    assert nearest("zzzz", []) == ""


def test_a_name_stands_for_the_object_in_its_table_or_for_itself() -> None:
    import json

    assert resolve("dumps", TABLE, "function") is json.dumps
    assert resolve("json:JSONDecoder", TABLE, "function") is json.JSONDecoder


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown function 'dump'; did you mean 'dumps'\?"):
        resolve("dump", TABLE, "function")


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("no_such_package.part:Name", r"no module 'no_such_package.part' .*PYTHONPATH\?"),
        ("json.no_such_part:Name", "no module 'json.no_such_part'"),
        ("json:JSONDecode", r"no 'JSONDecode' in module 'json'; did you mean 'JSONDecoder'\?"),
        (":Name", "':Name' must have the form package.module:Name"),
        (".json:Name", "'.json:Name' must have the form"),
        ("json:", "'json:' must have the form"),
    ],
)
def test_a_reference_to_nothing_is_refused(reference: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(reference)


def test_a_module_that_lacks_a_module_of_its_own_is_not_reported_as_missing_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "absent_and_more.py").write_text("import absent\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    with pytest.raises(ModuleNotFoundError, match="'absent'"):
        load("absent_and_more:Name")


def test_the_summary_is_the_first_line_of_the_docstring() -> None:
    assert summary("fedsim.catalog:nearest").startswith('Return "; did you mean')
