"""Building what an experiment names."""

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from fedsim.components import build, find
from fedsim.errors import ConfigError

TABLE = {
    "thing": "fedsim_test_things:thing",
    "many:NAME": "fedsim_test_things:of_many",
    "bare": "fedsim_test_things:bare",
}

THINGS = """
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

if TYPE_CHECKING:
    from somewhere_slow import Thing


def thing(size: int, *, rng: object, width: Annotated[int, Field(ge=1)] = 3,
          folder: Path | None = None, sizes: tuple[float, ...] = ()) -> Thing:
    return size, rng, width, folder, sizes


def of_many(name: str, size: int, *, width: int) -> tuple[object, ...]:
    return name, size, width


@dataclass
class Settings:
    steps: int = 1


def bare():
    return "bare"
"""


@pytest.fixture(autouse=True)
def things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fedsim_test_things.py").write_text(THINGS)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_options_are_converted_to_what_the_factory_declares() -> None:
    options = {"width": 5, "folder": "here", "sizes": [1, 2]}

    built = build("part", "thing", TABLE, 7, options=options, rng="rng")

    assert built == (7, "rng", 5, Path("here"), (1.0, 2.0))


def test_what_is_not_set_keeps_the_factorys_default() -> None:
    assert build("part", "thing", TABLE, 7, options={}, rng=0) == (7, 0, 3, None, ())


def test_a_name_after_a_prefix_becomes_the_first_argument() -> None:
    built = build("part", "many:a/b:c", TABLE, 7, options={"width": 1})

    assert built == ("a/b:c", 7, 1)


def test_a_reference_of_the_users_own_needs_no_table() -> None:
    built = build("part", "fedsim_test_things:Settings", TABLE, options={"steps": 4})

    assert built.steps == 4


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("thingg", {}, r"unknown part 'thingg'; did you mean 'thing'\?"),
        ("thing", {"widht": 3}, r"part.options: unknown option 'widht'; did you mean 'width'\?"),
        ("thing", {"rng": 3}, "part.options: unknown option 'rng'"),
        ("thing", {"size": 3}, "part.options: unknown option 'size'"),
        ("thing", {"width": 0}, "part.options.width must be greater than or equal to 1, got 0"),
        ("thing", {"width": "x"}, "part.options.width must be a valid integer.*, got 'x'"),
        ("thing", {"sizes": [1, "x"]}, r"part.options.sizes\[1\] must be a valid number"),
        ("thing", {"sizes": [float("nan")]}, r"part.options.sizes\[0\] must be a finite number"),
        ("many:x", {}, "part.options.width is required"),
        ("bare", {}, "part 'bare' cannot be called as one: too many positional arguments"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(
    name: str, options: dict[str, object], message: str
) -> None:
    given = {"rng": 0} if name == "thing" else {}

    with pytest.raises(ConfigError, match=message):
        build("part", name, TABLE, 7, options=options, **given)


def test_a_factory_that_is_found_is_not_yet_called() -> None:
    assert find("part", "bare", TABLE)() == "bare"


def test_annotations_that_are_not_text_work_as_well() -> None:
    def rule(*, width: Annotated[int, Field(ge=1)]) -> int:
        return width

    from fedsim.components import check_options

    assert check_options("here", rule, {"width": "2"}) == {"width": 2}
