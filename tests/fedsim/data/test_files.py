"""Finding files, and asking for missing ones."""

from pathlib import Path
from urllib.error import URLError

import pytest

from fedsim.data.files import locate
from fedsim.errors import DataMissing


def test_the_folder_itself_comes_before_the_one_of_that_name_inside_it(tmp_path: Path) -> None:
    inner = tmp_path / "two_words"
    inner.mkdir()
    (inner / "a").touch()
    assert locate("two-words", tmp_path, ["a"]) == inner

    (tmp_path / "a").touch()
    assert locate("two-words", tmp_path, ["a"]) == tmp_path


def test_all_files_must_be_in_one_folder(tmp_path: Path) -> None:
    (tmp_path / "a").touch()

    with pytest.raises(DataMissing, match=r"set: expected a, b in"):
        locate("set", tmp_path, ["a", "b"])


def test_an_allowed_download_fills_the_folder(tmp_path: Path) -> None:
    found = locate("set", tmp_path, ["a"], download=lambda folder: (folder / "a").touch())

    assert found == tmp_path


def test_a_download_without_a_network_ends_in_the_same_request(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise URLError("no network")

    with pytest.raises(DataMissing, match=r"expected a in .* failed: .*no network.*; place the"):
        locate("set", tmp_path, ["a"], download=fail)


def test_a_download_that_brings_something_else_is_not_taken_for_success(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="expected a in"):
        locate("set", tmp_path, ["a"], download=lambda folder: (folder / "b").touch())
