"""The families of names that experiments may use, for `fedsim list`."""

import tomllib
from collections.abc import Callable, Mapping

from attacks import ATTACKS
from attacks.threats import THREATS
from fedsim.catalog import CHECKS, load, nearest, summary
from fedsim.config import shipped
from fedsim.data import DATASETS, PARTITIONERS
from fedsim.defenses import DEFENSES
from fedsim.engines import ENGINES
from fedsim.errors import ConfigError
from fedsim.models import MODELS
from fedsim.protocols import PROTOCOLS
from fedsim.sweep.config import shipped_sweeps
from fedsim.topologies import MIXINGS, TOPOLOGIES

Lines = list[tuple[str, str]]


def _table(table: Mapping[str, str]) -> Lines:
    return [(name, summary(reference)) for name, reference in table.items()]


def _experiments() -> Lines:
    return [(name, tomllib.loads(text)["description"]) for name, text in shipped().items()]


def _sweeps() -> Lines:
    return [(name, tomllib.loads(text)["description"]) for name, text in shipped_sweeps().items()]


def _strategies() -> Lines:
    return _table(load("server:STRATEGIES"))


FAMILIES: dict[str, Callable[[], Lines]] = {
    "attacks": lambda: _table(ATTACKS),
    "checks": lambda: _table(load(CHECKS)),
    "defenses": lambda: _table(DEFENSES),
    "engines": lambda: _table(ENGINES),
    "experiments": _experiments,
    "mixings": lambda: _table(MIXINGS),
    "models": lambda: _table(MODELS),
    "partitions": lambda: _table(PARTITIONERS),
    "protocols": lambda: _table(PROTOCOLS),
    "strategies": _strategies,
    "sweeps": _sweeps,
    "tasks": lambda: _table(DATASETS),
    "threats": lambda: [(name, threat.summary) for name, threat in THREATS.items()],
    "topologies": lambda: _table(TOPOLOGIES),
}
"""What `fedsim list` can list."""


def entries(family: str) -> Lines:
    """Return the names of a family, with one line each.

    Raises:
        ConfigError: There is no such family.
    """
    if family not in FAMILIES:
        raise ConfigError(f"unknown family '{family}'{nearest(family, FAMILIES)}")
    return FAMILIES[family]()
