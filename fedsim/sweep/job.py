"""One job of a sweep: run its experiment, and write down how that ended."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from fedsim import driver
from fedsim.config import AttackConfig, Experiment, OutputConfig
from fedsim.errors import ConfigError, FedsimError, trail
from fedsim.files import Record, read_json, replace_json
from fedsim.stages.prepare import check


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended.

    Attributes:
        digest: Which job.
        status: done, or failed.
        reason: Why it failed.
        run: Its run directory, below the folder of the sweep; empty if it made none.
        refused: Attackers that cannot attack this experiment, and why.
        seconds: Wall time.
    """

    digest: str
    status: Literal["done", "failed"]
    reason: str | None = None
    run: str = ""
    refused: Mapping[str, str]
    seconds: float

    def record(self) -> Record:
        """Return it as JSON holds it."""
        return {
            "digest": self.digest,
            "status": self.status,
            "reason": self.reason,
            "run": self.run,
            "refused": dict(self.refused),
            "seconds": round(self.seconds, 3),
        }


def outcome_of(folder: Path, digest: str) -> Outcome | None:
    """Return how a job ended in an earlier call, if it ended."""
    path = _path(folder, digest)
    return Outcome(**read_json(path)) if path.is_file() else None


def run_job(folder: Path, digest: str, experiment: Experiment) -> Outcome:
    """Run one experiment below the folder of a sweep; what goes wrong is the outcome.

    A run that an earlier call began and did not end is gone on with. Attackers that refuse the
    experiment before it starts are left out, and said so; the others run.
    """
    torch.set_num_threads(1)
    start = time.perf_counter()
    place = folder / "runs" / digest
    refused: dict[str, str] = {}
    status: Literal["done", "failed"] = "failed"
    reason: str | None = None
    try:
        if (begun := _begun(place)) is not None:
            refused = _noted(place)
            driver.resume(begun)
        else:
            experiment, refused = _possible(experiment)
            if refused:
                replace_json(place / "refused.json", refused)
            output = OutputConfig(directory=str(place))
            driver.run(experiment.model_copy(update={"output": output}))
        status = "done"
    except FedsimError as error:
        reason = str(error)
    except Exception as error:  # one experiment must not end the sweep
        reason = f"{type(error).__name__}: {error} (at {trail(error, 1)[0]})"
    made = _begun(place)
    outcome = Outcome(
        digest=digest,
        status=status,
        reason=reason,
        run="" if made is None else str(made.relative_to(folder)),
        refused=refused,
        seconds=time.perf_counter() - start,
    )
    replace_json(_path(folder, digest), outcome.record())
    return outcome


def failed(folder: Path, digest: str, reason: str, seconds: float) -> Outcome:
    """Write down a job whose process could not."""
    outcome = Outcome(digest=digest, status="failed", reason=reason, refused={}, seconds=seconds)
    replace_json(_path(folder, digest), outcome.record())
    return outcome


def _path(folder: Path, digest: str) -> Path:
    return folder / "jobs" / f"{digest}.json"


def _begun(place: Path) -> Path | None:
    """Return the run that is in a job's folder, if one is."""
    runs = sorted(path.parent for path in place.glob("*/config.toml"))
    return runs[-1] if runs else None


def _noted(place: Path) -> dict[str, str]:
    path = place / "refused.json"
    return dict(read_json(path)) if path.is_file() else {}


def _possible(experiment: Experiment) -> tuple[Experiment, dict[str, str]]:
    """Return the experiment with the attackers that can attack it, and why the others cannot.

    Raises:
        ConfigError: It cannot be run, or nobody can attack it.
    """
    try:
        check(experiment)
    except ConfigError as error:
        if not experiment.attacks:
            raise
        check(experiment.model_copy(update={"attacks": []}))  # is it the experiment itself?
        able: list[AttackConfig] = []
        refused: dict[str, str] = {}
        for attack in experiment.attacks:
            try:
                check(experiment.model_copy(update={"attacks": [attack]}))
            except ConfigError as reason:
                refused[attack.title] = str(reason)
            else:
                able.append(attack)
        if not able or not refused:
            raise error from None
        return experiment.model_copy(update={"attacks": able}), refused
    return experiment, {}
