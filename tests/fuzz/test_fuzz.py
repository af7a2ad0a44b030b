"""A sample of mutated inputs for each parser; `python -m tests.fuzz` runs more."""

from pathlib import Path

import pytest

from tests.fuzz.harness import parent


@pytest.fixture(scope="module")
def records() -> list[dict[str, object]]:
    """What came of fifty or so mutated inputs of each parser."""
    return parent(range(60))


def test_no_mutated_input_brings_a_parser_down(records: list[dict[str, object]]) -> None:
    assert [one for one in records if "target" not in one] == []


def test_mutations_are_neither_all_refused_nor_all_accepted(
    records: list[dict[str, object]],
) -> None:
    parsers = [one for one in records if "target" in one]

    assert len(parsers) >= 55
    tried = sum(int(str(one["accepted"])) + int(str(one["refused"])) for one in parsers)
    assert tried >= 1500
    for one in parsers:
        assert int(str(one["refused"])) > 0, one  # else nothing was really changed
    assert sum(int(str(one["accepted"])) > 0 for one in parsers) >= 30


def test_the_page_on_security_names_every_parser(records: list[dict[str, object]]) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "security.md").read_text()

    assert [one["target"] for one in records if f"| {one.get('target', '')} |" not in page] == []


def test_a_parser_that_fails_otherwise_than_documented_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FEDSIM_FUZZ_BREAK", "1")

    broken = parent(range(30), only="self test")

    found = {str(one["finding"]).partition(":")[0] for one in broken if "target" not in one}
    assert found == {"KeyError", "TooLong", "it ran out of memory"}
