"""Sweeps: one TOML file that says which experiments to run, checked before anything starts.

A sweep is a base experiment, a grid of overrides, seeds, and up to four attackers. Each cell of
the grid becomes one experiment per seed. What a level of an axis sets takes the place of what the
base says, key by key; `defenses` of several axes are chained in the order of the axes.
"""

import copy
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fedsim.catalog import nearest
from fedsim.config import AttackConfig, Experiment, shipped
from fedsim.errors import ConfigError
from fedsim.sections import Options, Section, checked, override, shipped_texts

Role = Literal["original", "plain", "adaptive", "auto"]
"""A paper's attacker; one that is not told of the defense, one that is, and the strongest."""
ROLES: tuple[Role, ...] = ("original", "plain", "adaptive", "auto")
UNTOLD: frozenset[Role] = frozenset({"original", "plain"})
"""Attackers that are not told of the defense."""


class Published(Section):
    """What a paper reports for a cell."""

    accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the test split that is classified right."""
    below: bool = False
    """Whether the accuracy is only known to be at most this."""
    defends: bool | None = None
    """Whether the paper says that nothing recognisable came back."""


class Level(Section):
    """One setting of an axis, or a cell of its own."""

    label: Annotated[str, Field(min_length=1)]
    """How tables call it."""
    family: str = ""
    """What it shares a colour with; empty means the names of its defenses."""
    set: Options = Field(default_factory=dict)
    """Keys of the experiment, nested or dotted."""
    utility: Options = Field(default_factory=dict)
    """Further keys for the training that measures utility."""
    published: Published = Published()
    """What a paper reports."""


class Axis(Section):
    """One direction of the grid: values of a key, or named sets of keys."""

    name: Annotated[str, Field(min_length=1)]
    """How tables call it."""
    key: str = ""
    """A dotted key of the experiment, with `values`."""
    values: list[Any] = Field(default_factory=list)
    """Values of `key`."""
    levels: list[Level] = Field(default_factory=list)
    """Named sets of keys, in place of `key` and `values`."""

    @model_validator(mode="after")
    def _one_way_or_the_other(self) -> Self:
        if bool(self.key) != bool(self.values):
            raise ValueError("key and values come together")
        if bool(self.values) == bool(self.levels):
            raise ValueError("levels, or key and values, must name at least one level; not both")
        labels = [level.label for level in self.all_levels()]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"levels: two are called '{label}'")
        return self

    def all_levels(self) -> list[Level]:
        """Return its levels; values are levels that set one key."""
        return self.levels or [
            Level(label=f"{self.name} {value}", set={self.key: value}) for value in self.values
        ]


class UtilityConfig(Section):
    """The training that measures utility, where the attacked run is too short to tell."""

    set: Options = Field(default_factory=dict)
    """Keys that differ from the attacked experiment, nested or dotted; a cell's own keys win."""
    note: str = ""
    """What readers must know of it."""


class Attackers(Section):
    """Who attacks each cell; all hear the same updates."""

    original: AttackConfig | None = None
    """That of the paper whose figures stand beside ours; not told of the defense."""
    plain: AttackConfig | None = None
    """Not told of the defense."""
    adaptive: AttackConfig | None = None
    """Told of the defense."""
    auto: AttackConfig | None = None
    """Told of the defense, with a larger budget."""

    @model_validator(mode="after")
    def _somebody(self) -> Self:
        if not self.by_role():
            raise ValueError("original, plain, adaptive or auto must name an attack")
        return self

    def by_role(self) -> dict[Role, AttackConfig]:
        """Return those there are, in order; records call them by their role."""
        found: dict[Role, AttackConfig] = {}
        for role in ROLES:
            attack: AttackConfig | None = getattr(self, role)
            if attack is not None:
                found[role] = attack.model_copy(update={"label": role})
        return found


class Sweep(Section):
    """A grid of experiments and what is measured in each."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    """What its folder and its page are called."""
    description: str = ""
    """One line for people."""
    experiment: str | Options = Field(default_factory=dict)
    """The base: a shipped name, a file (beside the sweep), or a table."""
    set: Options = Field(default_factory=dict)
    """Keys that differ from the base, nested or dotted."""
    seeds: Annotated[list[int], Field(min_length=1, default_factory=lambda: [0])]
    """Each cell is run with each of them."""
    axes: list[Axis] = Field(default_factory=list)
    """The grid is their product."""
    cells: list[Level] = Field(default_factory=list)
    """Further cells, outside the grid."""
    utility: UtilityConfig | None = None
    """A training of its own for utility; unset means that of the attacked run."""
    compares: Literal["defenses", "adversaries"] = "defenses"
    """What cells differ in, and the page is about: defenses, by what they cost; or who listens
    where (topologies, protocols, threats), by whose images it gets, of all that any cell is
    after."""
    attackers: Attackers
    """Up to four attackers."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Of all intervals."""

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must differ from each other")
        names = [axis.name for axis in self.axes]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"axes: two are called '{name}'")
        return self


def shipped_sweeps() -> dict[str, str]:
    """Return the shipped sweeps: name -> TOML text."""
    return shipped_texts("sweeps")


def read_sweep(source: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read and check a sweep; its base experiment becomes a table.

    Args:
        source: A TOML file, or the name of a shipped sweep.
        overrides: `key=value` texts. A key of the sweep changes the sweep; any other is one of the
            experiment, for all cells.

    Raises:
        ConfigError: Something is wrong with it; the message names the place.
    """
    path, name = Path(source), str(source)
    try:
        text = path.read_text() if path.is_file() else shipped_sweeps().get(name)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source}: cannot be read: {error}") from error
    if text is None and (path.suffix or len(path.parts) > 1):
        raise ConfigError(f"no sweep file '{source}'")
    if text is None:
        raise ConfigError(f"no sweep called '{source}'{nearest(name, shipped_sweeps())}")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: not valid TOML: {error}") from error
    for one in overrides:
        own = one.split(".", 1)[0].split("=", 1)[0].strip() in Sweep.model_fields
        override(values if own else values.setdefault("set", {}), one)
    values["experiment"] = _base(values.get("experiment", {}), path.parent)
    return parse_sweep(values, where=name)


def parse_sweep(values: Mapping[str, Any], *, where: str = "sweep") -> Sweep:
    """Check a sweep given as a table; `where` names it in messages.

    Raises:
        ConfigError: Something is wrong with it; the message names the place.
    """
    return checked(Sweep, values, where=where)


def _base(experiment: object, folder: Path) -> object:
    """Return the table of a base that is named."""
    if not isinstance(experiment, str):
        return experiment
    for path in (folder / experiment, Path(experiment)):
        if path.is_file():
            return tomllib.loads(path.read_text())
    if experiment in shipped():
        return tomllib.loads(shipped()[experiment])
    raise ConfigError(f"experiment: no experiment '{experiment}'{nearest(experiment, shipped())}")


def merged(base: Mapping[str, Any], keys: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Return `base` with `keys` set in it; dotted keys and nested tables mean the same.

    Raises:
        ConfigError: A key lies below a plain value.
    """
    result = copy.deepcopy(dict(base))
    for key, value in keys.items():
        place = result
        *parents, last = key.split(".")
        for parent in parents:
            inner = place.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{where}: '{key}' is below a plain value or a list")
            place = inner
        there = place.get(last)
        if isinstance(value, Mapping) and isinstance(there, Mapping) and last != "options":
            place[last] = merged(there, value, where=where)
        else:
            place[last] = copy.deepcopy(value)
    return result


def experiment_of(values: Mapping[str, Any], *, where: str) -> Experiment:
    """Return the checked experiment of a table.

    Raises:
        ConfigError: Something is wrong with it; the message names the place.
    """
    return checked(Experiment, values, where=where)
