"""From a sweep to its cells, and from a cell to the experiments that measure it."""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import fedsim
from fedsim.config import Experiment
from fedsim.defenses import accounted, build_chain
from fedsim.errors import ConfigError
from fedsim.protocols import SERVER
from fedsim.sweep.config import UNTOLD, Level, Published, Sweep, experiment_of, merged

Purpose = Literal["leakage", "utility"]
"""What a job measures."""

CHAIN = "defenses"
"""The key that levels of several axes add to, in place of replacing it."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One experiment to run; equal experiments are one job.

    Attributes:
        digest: Of the experiment and the version of this program.
        experiment: Its output directory is not set yet.
        purpose: What it measures.
    """

    digest: str
    experiment: Experiment
    purpose: Purpose


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row of the table.

    Attributes:
        number: From 1, in the order of the sweep.
        label: How tables call it.
        family: What shares its colour.
        levels: Label of each axis' level, by name of the axis.
        published: What a paper reports.
        leakage: The job of each seed.
        utility: The job of each seed whose accuracy counts; that of `leakage` where the sweep has
            no training of its own for utility.
    """

    number: int
    label: str
    family: str
    levels: Mapping[str, str]
    published: Published
    leakage: Mapping[int, Job]
    utility: Mapping[int, Job]

    @property
    def experiment(self) -> Experiment:
        """The attacked experiment of its first seed."""
        return next(iter(self.leakage.values())).experiment

    @property
    def defense(self) -> str:
        """The chain of defenses, as records call it."""
        return self.experiment.defense_title


def cells_of(sweep: Sweep) -> list[Cell]:
    """Return every cell of a sweep: the grid, the first axis slowest, then further cells.

    Raises:
        ConfigError: One of its experiments cannot be; the message names cell and key.
    """
    names = [axis.name for axis in sweep.axes]
    wanted: list[tuple[str, dict[str, str], Sequence[Level]]] = []
    for levels in itertools.product(*(axis.all_levels() for axis in sweep.axes)):
        if levels:  # without an axis there is no grid
            labels = [level.label for level in levels]
            wanted.append((", ".join(labels), dict(zip(names, labels, strict=True)), levels))
    wanted += [(level.label, {}, [level]) for level in sweep.cells]
    if not wanted:
        wanted = [(sweep.name, {}, [])]
    labels = [label for label, _, _ in wanted]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"{sweep.name}: two cells are called '{label}'")
    return [
        _cell(sweep, number, label, axes, levels)
        for number, (label, axes, levels) in enumerate(wanted, start=1)
    ]


def jobs_of(cells: Sequence[Cell]) -> list[Job]:
    """Return what is to be run, each once: seed by seed, so that early results cover all cells."""
    seeds = list(cells[0].leakage)
    found = {
        job.digest: job
        for seed in seeds
        for cell in cells
        for job in (cell.leakage[seed], cell.utility[seed])
    }
    return list(found.values())


def _cell(
    sweep: Sweep, number: int, label: str, axes: dict[str, str], levels: Sequence[Level]
) -> Cell:
    where = f"{sweep.name}, cell '{label}'"
    base = merged(_table(sweep.experiment), sweep.set, where=where)
    attacked = _with_levels(base, levels, where)
    leakage = {seed: _leakage(sweep, attacked, seed, where) for seed in sweep.seeds}
    utility = leakage
    if sweep.utility is not None:
        trained = _with_levels(merged(base, sweep.utility.set, where=where), levels, where)
        for level in levels:
            trained = merged(trained, level.utility, where=where)
        utility = {seed: _utility(sweep, trained, seed, where) for seed in sweep.seeds}
        _refuse_noise_of_its_own(next(iter(leakage.values())).experiment, where)
    families = [level.family for level in levels if level.family]
    chain = next(iter(leakage.values())).experiment.defenses
    named = " + ".join(dict.fromkeys(one.name for one in chain)) or "none"
    return Cell(
        number=number,
        label=label,
        family=", ".join(dict.fromkeys(families)) or named,
        levels=axes,
        published=next((one.published for one in levels if _reports(one)), Published()),
        leakage=leakage,
        utility=utility,
    )


def _refuse_noise_of_its_own(attacked: Experiment, where: str) -> None:
    """Refuse a defense whose noise follows from epsilon: it depends on rounds and batches.

    A short attacked run would add less of it than the training whose accuracy and epsilon stand
    beside.
    """
    private = accounted(build_chain(attacked))
    if getattr(private, "epsilon", None) is not None:
        raise ConfigError(
            f"{where}: how much noise epsilon asks for depends on rounds and batches, which differ "
            "between the attacked run and the training for utility; give noise_multiplier in its "
            "place (the table has the epsilon that it comes to)"
        )


def _reports(level: Level) -> bool:
    return level.published != Published()


def _table(experiment: str | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(experiment, str):
        raise ConfigError(f"experiment '{experiment}' was not read; use read_sweep")
    return experiment


def _with_levels(base: Mapping[str, Any], levels: Sequence[Level], where: str) -> dict[str, Any]:
    values = dict(base)
    for level in levels:
        chain = list(values.get(CHAIN, []))
        added = level.set.get(CHAIN, [])
        if not isinstance(added, list):
            raise ConfigError(f"{where}: {CHAIN} must be a list, got {added!r}")
        values = merged(values, level.set, where=where)
        if chain or added:
            values[CHAIN] = [*chain, *added]
    return values


def _leakage(sweep: Sweep, values: Mapping[str, Any], seed: int, where: str) -> Job:
    attackers = sweep.attackers.by_role()
    adversary = dict(values.get("adversary", {}))
    grants = list(adversary.get("grants", []))
    defended = sweep.compares == "defenses" or values.get(CHAIN)
    if defended and attackers.keys() - UNTOLD and "defense" not in grants:
        grants.append("defense")  # attacks that are not told ignore it
    dumped = [one.model_dump(mode="json") for one in attackers.values()]
    values = {
        "name": sweep.name,
        **values,
        "seed": seed,
        "attacks": dumped,
        "adversary": adversary | {"grants": grants},
    }
    return _job(values, "leakage", where)


def _utility(sweep: Sweep, values: Mapping[str, Any], seed: int, where: str) -> Job:
    """Return the same training without anybody who listens."""
    adversary = dict(values.get("adversary", {}))
    quiet = {key: value for key, value in adversary.items() if key in ("threat", "public_sample")}
    if dict(values.get("protocol", {})).get("name", SERVER) != SERVER:
        # whoever sits where: equal trainings are one job
        quiet |= {"threat": "relay", "rounds": []}
    values = {
        "name": f"{sweep.name}-utility",
        **values,
        "seed": seed,
        "attacks": [],
        "adversary": quiet | {"victims": []},
    }
    return _job(values, "utility", where)


def _job(values: Mapping[str, Any], purpose: Purpose, where: str) -> Job:
    experiment = experiment_of(values, where=where)
    record = experiment.model_dump(mode="json", exclude={"output", "name", "description"})
    # where folders and machines are does not change what comes out
    record["data"].pop("root")
    record["engine"].pop("address")
    text = json.dumps([fedsim.__version__, purpose, record], sort_keys=True)
    return Job(
        digest=hashlib.sha256(text.encode()).hexdigest()[:16],
        experiment=experiment,
        purpose=purpose,
    )
