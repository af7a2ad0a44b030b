"""Sections of TOML files: checked models, keys set on a command line, and what errors say.

Each section is a frozen model; the sentence under a field is its help text and stands in the JSON
schema. Unknown keys are refused with the nearest name.
"""

import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from typing import Annotated, Any, TypeVar, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from fedsim.catalog import nearest
from fedsim.errors import ConfigError


def shipped_texts(folder: str) -> dict[str, str]:
    """Return the TOML files that lie in a folder of this package: name -> text, in order."""
    entries = (resources.files("fedsim") / folder).iterdir()
    return {
        entry.name.removesuffix(".toml"): entry.read_text()
        for entry in sorted(entries, key=lambda entry: entry.name)
        if entry.name.endswith(".toml")
    }


def _finite_options(options: dict[str, Any]) -> dict[str, Any]:
    """Refuse NaN and infinity, however deep: records are JSON, which has neither."""
    for place, value in _numbers(options):
        if not math.isfinite(value):
            raise ValueError(f"{place} must be a finite number, got {value}")
    return options


def _numbers(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield place, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _numbers(part, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _numbers(part, f"{place}[{index}]")


Options = Annotated[dict[str, Any], AfterValidator(_finite_options)]
"""Settings handed to a named object as they are; the object checks them."""


class Section(BaseModel):
    """A part of a file."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


Checked = TypeVar("Checked", bound=Section)


def either(expected: str) -> WrapValidator:
    """Refuse a value that fits no branch of a union in one message, not in one per branch."""

    def check(value: object, branches: ValidatorFunctionWrapHandler) -> object:
        try:
            return branches(value)
        except ValidationError as error:
            raise PydanticCustomError("either", "{expected}", {"expected": expected}) from error

    return WrapValidator(check)


def checked(model: type[Checked], values: Mapping[str, Any], *, where: str) -> Checked:
    """Return a model of these values; `where` names them in messages.

    Raises:
        ConfigError: Something is wrong with them; the message names the place.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [f"{where}: {_explain(one, model)}" for one in error.errors()]
        raise ConfigError("\n".join(lines)) from error


def override(values: dict[str, Any], text: str, *, flag: str = "--set") -> None:
    """Set one key of a table, in place, as `--set` takes it.

    Args:
        values: As TOML gave it.
        text: `key=value`; the key is dotted, the value is TOML (or plain text).
        flag: What the user wrote it after, for messages.

    Raises:
        ConfigError: There is no such place.
    """
    key, separator, new = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"{flag} expects key=value, got '{text}'")
    try:
        value = tomllib.loads(f"value = {new}")["value"]
    except tomllib.TOMLDecodeError:
        value = new  # plain text needs no quotes on a command line
    *parents, last = key.strip().split(".")
    place: Any = values
    for parent in parents:
        place = _step(place, parent, f"{flag} {text}")
    if isinstance(place, list):
        raise ConfigError(f"{flag} {text}: '{parents[-1]}' is a list; name one of its items")
    if not isinstance(place, dict):
        raise ConfigError(f"{flag} {text}: '{'.'.join(parents)}' is not a section")
    place[last] = value


def _step(place: Any, name: str, said: str) -> Any:
    if isinstance(place, list):  # an item of a list, by number, label or name
        tables = [item if isinstance(item, dict) else {} for item in place]
        for index, (item, table) in enumerate(zip(place, tables, strict=True)):
            if name in (str(index), table.get("label"), table.get("name")):
                return item
        items = [table.get("label") or table.get("name", "") for table in tables]
        raise ConfigError(f"{said}: no item '{name}'{nearest(name, items)}")
    if not isinstance(place, dict):
        raise ConfigError(f"{said}: '{name}' is below a plain value")
    return place.setdefault(name, {})


_EXPECTED = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be greater than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "string_too_short": "must not be empty",
    "finite_number": "must be a finite number",
    "string_pattern_mismatch": "must fit the pattern {pattern}",
    "either": "must be {expected}",
}


def _explain(error: ErrorDetails, root: type[BaseModel]) -> str:
    """Say where, what was expected, what came, and what to do.

    Args:
        error: What pydantic found.
        root: The model that was checked.
    """
    place = ".".join(map(str, error["loc"]))
    kind = error["type"]
    if kind == "extra_forbidden":
        *parents, unknown = place.split(".")
        section = f" in [{'.'.join(parents)}]" if parents else ""
        known = _fields(error["loc"][:-1], root)
        return f"unknown key '{unknown}'{section}{nearest(unknown, known)}"
    if kind == "missing":
        return f"{place} is required"
    if kind == "value_error":
        message = str(error["ctx"]["error"]) if "ctx" in error else error["msg"]
        return f"{place}.{message}" if place else message
    if kind in ("literal_error", "enum"):
        came = str(error["input"])
        choices = error["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        hint = nearest(came, choices).replace("; there are", "")
        shown = ", ".join(f"'{choice}'" for choice in choices)
        return f"{place} must be one of {shown}, got {came!r}" + (hint if "mean" in hint else "")
    expected = _EXPECTED.get(kind)
    if expected is None:
        return f"{place}: {error['msg'][:1].lower()}{error['msg'][1:]}, got {error['input']!r}"
    return f"{place} {expected.format(**error.get('ctx', {}))}, got {error['input']!r}"


def _fields(location: Iterable[str | int], section: type[BaseModel]) -> list[str]:
    for part in location:
        if isinstance(part, int):
            continue
        annotation = section.model_fields[part].annotation
        inner = getattr(annotation, "__args__", (annotation,))[0]
        section = cast("type[BaseModel]", inner)
    return list(section.model_fields)
