"""Every defense has a page that says whom it protects, from whom, and what is left to read."""

import re
from pathlib import Path

import pytest

from fedsim.catalog import load
from fedsim.defenses import DEFENSES

PAGES = Path(__file__).resolve().parents[1] / "docs" / "defenses"
SECTIONS = ("Settings", "What it costs", "Who it protects from", "How it is read")


@pytest.mark.parametrize("name", DEFENSES)
def test_every_defense_has_a_page_with_what_a_reader_wants_to_know(name: str) -> None:
    path = PAGES / f"{name}.md"
    assert path.is_file(), f"write {path.relative_to(PAGES.parents[1])}"

    titles = re.findall(r"^## (.*)$", path.read_text(), re.MULTILINE)

    missing = [want for want in SECTIONS if not any(title.startswith(want) for title in titles)]
    assert missing == []


@pytest.mark.parametrize("name", DEFENSES)
def test_no_page_calls_a_defense_safe(name: str) -> None:
    path = PAGES / f"{name}.md"
    text = path.read_text() if path.is_file() else ""
    assert not re.search(r"\bis safe\b|\bare safe\b|\bunbreakable\b", text)


@pytest.mark.parametrize("name", DEFENSES)
def test_every_defense_says_where_it_comes_from_or_that_it_is_ours(name: str) -> None:
    module = __import__(load(DEFENSES[name]).__module__, fromlist=["_"]).__doc__ or ""
    assert re.search(r"https?://|arxiv|arXiv|doi|No paper", module), "cite a paper or say: No paper"


def test_no_page_is_left_of_a_defense_that_is_gone() -> None:
    assert [path.stem for path in PAGES.glob("*.md") if path.stem not in DEFENSES] == []
