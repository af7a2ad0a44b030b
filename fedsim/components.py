"""Build what an experiment names: look it up, check its options, call it."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fedsim.catalog import load, nearest, resolve
from fedsim.errors import ConfigError


def build(
    family: str,
    name: str,
    table: Mapping[str, str],
    *args: object,
    options: Mapping[str, object],
    **given: object,
) -> Any:
    """Return what the factory called `name` makes of `args`, `given` and the user's `options`.

    Options are the factory's parameters that `args` and `given` leave open; their annotations are
    the rules that values are checked against, and their defaults the defaults.

    Args:
        family: What `table` holds, and the section of an experiment that names it: "model".
        name: A name from `table`, `prefix:anything` where the table has `prefix:NAME`, or the
            user's own `package.module:Name`.
        table: Reference by name.
        args: Passed on as they are.
        options: What the user wrote.
        given: Passed on as they are; not options.

    Raises:
        ConfigError: No such name, no such option, or a value that an option cannot take.
    """
    factory = find(family, name, table)
    try:
        taken = inspect.signature(factory).bind_partial(*args, **given).arguments
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{family} '{name}' cannot be called as one: {error}") from error
    checked = check_options(f"{family}.options", factory, options, taken=frozenset(taken))
    return factory(*args, **given, **checked)


def find(family: str, name: str, table: Mapping[str, str]) -> Callable[..., Any]:
    """Return the factory called `name`; `prefix:rest` binds `rest` as its first argument."""
    prefix, colon, rest = name.partition(":")
    pattern = f"{prefix}:NAME"
    if colon and pattern in table:
        return functools.partial(load(table[pattern]), rest)
    factory: Callable[..., Any] = resolve(name, table, family)
    return factory


def check_options(
    where: str,
    factory: Callable[..., Any],
    options: Mapping[str, object],
    *,
    taken: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Return `options` converted to what `factory` declares.

    Args:
        where: The section that holds the options, as "model.options", for messages.
        factory: Its parameters are the options.
        options: What the user wrote.
        taken: Parameters that are not the user's to set.

    Raises:
        ConfigError: An option is unknown, missing, or has a value it cannot take.
    """
    parameters = inspect.signature(factory).parameters.values()
    named = {p.name: p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    known = {key: parameter for key, parameter in named.items() if key not in taken}
    for option in options:
        if option not in known:
            hint = nearest(option, known) or "; there are none"
            raise ConfigError(f"{where}: unknown option '{option}'{hint}")
    for option, parameter in known.items():
        if parameter.default is parameter.empty and option not in options:
            raise ConfigError(f"{where}.{option} is required")
    return {
        option: _checked(f"{where}.{option}", _rule(factory, known[option]), value)
        for option, value in options.items()
    }


def _rule(factory: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """Return the type that `parameter` declares; text is read in the factory's own module."""
    rule = parameter.annotation
    if isinstance(rule, str):  # evaluated one by one: the others may name what is not imported
        home = inspect.getmodule(getattr(factory, "func", factory))
        rule = eval(rule, vars(home))  # noqa: S307  # an annotation of code that is loaded anyway
    return Any if rule is parameter.empty else rule


def _checked(where: str, rule: Any, value: object) -> Any:
    try:
        return TypeAdapter(rule, config=ConfigDict(allow_inf_nan=False)).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"[{part}]" for part in first["loc"])
        expected = first["msg"].replace("Input should be", "must be")
        raise ConfigError(f"{where}{place} {expected}, got {value!r}") from error
