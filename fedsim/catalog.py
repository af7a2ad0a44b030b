"""Names that experiments may use, and the objects behind them.

A name is looked up in one table per family; the table holds text (`package.module:Name`), so that
a lookup loads only what it finds. A name may also be such a reference itself: the user's own.
"""

import difflib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedsim.errors import ConfigError

CLIENTS_TOGETHER = "clients.together:prepare"
CLIENT_APP = "clients.app:app"
SERVER_APP = "server.app:app"
PARTICIPANT = "clients.participant:participant"
BUILD_STRATEGY = "server.strategies:build_strategy"
BUILD_CHECKS = "clients.checking:build_checks"
CHECKS = "clients.checks:CHECKS"
"""The two ends, and how what belongs to them is built, by reference: fedsim never imports them."""


def nearest(name: str, names: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the closest name, or all names when none is close."""
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; there are {', '.join(names)}" if names else ""


def load(reference: str) -> Any:
    """Return the object behind `package.module:Name`.

    Raises:
        ConfigError: The module or the name is not there.
    """
    module_name, _, attribute = reference.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise ConfigError(f"'{reference}' must have the form package.module:Name")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"no module '{module_name}' (in '{reference}'); is it installed, or on PYTHONPATH?"
            ) from error
        raise
    if not hasattr(module, attribute):
        public = [name for name in vars(module) if not name.startswith("_")]
        raise ConfigError(f"no '{attribute}' in module '{module_name}'{nearest(attribute, public)}")
    return getattr(module, attribute)


def search_path() -> str:
    """Return where this process finds modules, as PYTHONPATH: its workers must find the same."""
    return os.pathsep.join(place or str(Path.cwd()) for place in sys.path)


def resolve(name: str, table: Mapping[str, str], family: str) -> Any:
    """Return the object called `name` in `table`, or behind `name` if it is a reference itself.

    Raises:
        ConfigError: There is no such name; the message offers the nearest one.
    """
    if ":" in name and name not in table:
        return load(name)
    if name not in table:
        raise ConfigError(f"unknown {family} '{name}'{nearest(name, table)}")
    return load(table[name])


def summary(reference: str) -> str:
    """Return the first line of the docstring behind `reference`, without "; see ..." at its end."""
    text = inspect.getdoc(load(reference)) or ""
    return re.sub(r"; see .*", ".", text.partition("\n")[0])
