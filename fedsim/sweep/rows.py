"""From the run directories of a sweep to its rows: a row per cell, and one per cell and seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, Literal

from fedsim.config import AttackConfig
from fedsim.files import Record, read_json
from fedsim.quality import baseline_values, examples, measured, modality_of, scale_of
from fedsim.records import RunDirectory
from fedsim.schemas.document import Modality
from fedsim.schemas.sweep import AttackerRow, PublishedRow, SweepCell, SweepSeed
from fedsim.stages.summarize import utility
from fedsim.sweep.cells import Cell, Job
from fedsim.sweep.job import Outcome
from fedsim.sweep.statistics import exact_share, mean_interval, median_interval
from fedsim.sweep.traffic import packed_bytes

Outcomes = Mapping[str, Outcome]
"""How jobs ended, by digest."""


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """What one attacker got in one run.

    Attributes:
        modality: What private examples are.
        scores: One per attacked update.
        values: How close it came, one per private example, PSNR or accuracy; the data mean's where
            there is no guess.
        ssim: Likewise, of images.
        guessed: The values of guessed examples alone.
        recovered: Examples at or above the threshold.
        data_mean: The value of the data mean, one per private example.
    """

    modality: Modality = "image"
    scores: list[Record] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    guessed: list[float] = field(default_factory=list)
    recovered: int = 0
    data_mean: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the runs of one cell and seed hold.

    Attributes:
        seed: The seed.
        status: done; failed; or missing, where a job has not been run yet.
        reason: Why a job failed.
        leakage: The attacked run.
        utility: The run that measures utility.
        attacked: What each attacker got, by role.
        refused: Attackers that cannot attack this, and why.
        seconds: Wall time of its jobs.
    """

    seed: int
    status: Literal["done", "failed", "missing"]
    reason: str | None = None
    leakage: RunDirectory | None = None
    utility: RunDirectory | None = None
    attacked: Mapping[str, Attacked] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def accuracy(self) -> float | None:
        """At the last evaluation of the run that measures utility."""
        return None if self.utility is None else utility(self.utility.rounds()).accuracy

    @property
    def utility_rounds(self) -> int | None:
        """Rounds behind it."""
        return None if self.utility is None else utility(self.utility.rounds()).round

    @property
    def bytes_up(self) -> float | None:
        """Mean array bytes of an update of the attacked run, packed."""
        if self.leakage is None:
            return None
        if (packed := packed_bytes(self.leakage)) is not None:
            return packed
        rounds = [one for one in self.leakage.rounds() if one.get("clients")]
        updates = sum(len(one["clients"]) for one in rounds)
        sent = sum(one.get("bytes_between") or one.get("bytes_up", 0) for one in rounds)
        return sent / updates if updates else None

    @property
    def privacy(self) -> tuple[float | None, float | None]:
        """Epsilon and delta of the training that measures utility, if anybody counts them."""
        if self.utility is None or not self.utility.summary.is_file():
            return None, None
        spent = read_json(self.utility.summary)
        return spent.get("epsilon"), spent.get("delta")


def measure(cell: Cell, folder: Path, outcomes: Outcomes) -> list[Measured]:
    """Read what the runs of a cell hold, seed by seed."""
    return [
        _measured(seed, cell.leakage[seed], cell.utility[seed], folder, outcomes)
        for seed in cell.leakage
    ]


def _measured(seed: int, leakage: Job, trained: Job, folder: Path, outcomes: Outcomes) -> Measured:
    jobs = list({job.digest: job for job in (leakage, trained)}.values())
    ended = [outcomes[job.digest] for job in jobs if job.digest in outcomes]
    reasons = [one.reason for one in ended if one.reason]
    status: Literal["done", "failed", "missing"] = "done"
    if len(ended) < len(jobs):
        status = "missing"
    if reasons:
        status = "failed"
    attacked_run = _run_of(leakage, folder, outcomes)
    return Measured(
        seed=seed,
        status=status,
        reason="; ".join(dict.fromkeys(reasons)) or None,
        leakage=attacked_run,
        utility=_run_of(trained, folder, outcomes),
        attacked={} if attacked_run is None else _attacked(attacked_run),
        refused=outcomes[leakage.digest].refused if leakage.digest in outcomes else {},
        seconds=sum(one.seconds for one in ended),
    )


def _run_of(job: Job, folder: Path, outcomes: Outcomes) -> RunDirectory | None:
    """Return the run of a job that ended well."""
    outcome = outcomes.get(job.digest)
    if outcome is None or outcome.status != "done":
        return None
    return RunDirectory.open(folder / outcome.run)


def _attacked(run: RunDirectory) -> dict[str, Attacked]:
    found: dict[str, Attacked] = {}
    for score in run.scores():
        if score["status"] == "unscored":
            continue
        one = found.setdefault(score["attack"], Attacked(modality=modality_of(score)))
        means, field_name = baseline_values(score), scale_of(score).field
        private: list[Record] = examples(score) or [{}] * (score["batch_size"] or 0)
        one.scores.append(score)
        one.data_mean.extend(means)
        for place, example in enumerate(private):
            missed = example.get(field_name) is None
            nothing = means[place] if means else 0.0  # where there is nothing public to guess from
            one.values.append(nothing if missed else example[field_name])
            if one.modality == "image":
                mean = score["baselines"]["data_mean"]["ssim"]
                one.ssim.append(mean[place] if missed else example["ssim"])
            if not missed:
                one.guessed.append(example[field_name])
        found[score["attack"]] = _with_recovered(one, private)
    return found


def _with_recovered(one: Attacked, private: Sequence[Mapping[str, Any]]) -> Attacked:
    more = sum(bool(example.get("recovered")) for example in private)
    return Attacked(**(vars(one) | {"recovered": one.recovered + more}))


def rows_of(
    cells: Sequence[Cell],
    measured: Mapping[int, Sequence[Measured]],
    attackers: Mapping[str, AttackConfig],
    confidence: float,
) -> list[SweepCell]:
    """Return a row per cell.

    Args:
        cells: Of the sweep.
        measured: What the runs of each cell hold, by its number.
        attackers: By role.
        confidence: Of all intervals.
    """
    rows = [_row(cell, measured[cell.number], attackers, confidence) for cell in cells]
    return [
        row.model_copy(update={"baseline_accuracy": _baseline(cell, cells, rows)})
        for cell, row in zip(cells, rows, strict=True)
    ]


def _baseline(cell: Cell, cells: Sequence[Cell], rows: Sequence[SweepCell]) -> float | None:
    """Return the accuracy of the undefended cell on these data that shares most levels."""
    plain = [
        (sum(other.levels.get(axis) == level for axis, level in cell.levels.items()), -place, row)
        for place, (other, row) in enumerate(zip(cells, rows, strict=True))
        if not other.experiment.defenses
        and other.experiment.data.name == cell.experiment.data.name
        and row.accuracy is not None
    ]
    if not plain:
        return None
    row = max(plain, key=lambda one: one[:2])[2]
    return None if row.accuracy is None else row.accuracy.value


def _row(
    cell: Cell, runs: Sequence[Measured], attackers: Mapping[str, AttackConfig], confidence: float
) -> SweepCell:
    done = [one for one in runs if one.leakage is not None]
    accuracies = [one.accuracy for one in runs if one.accuracy is not None]
    rows = {role: _attacker(role, config, runs, confidence) for role, config in attackers.items()}
    medians = {role: got.value for role, row in rows.items() if (got := measured(row)) is not None}
    spent = [(epsilon, delta) for one in runs for epsilon, delta in [one.privacy] if epsilon]
    epsilon, delta = max(spent, default=(None, None), key=lambda one: one[0] or 0.0)
    sent = [one.bytes_up for one in runs if one.bytes_up is not None]
    reasons = [one.reason for one in runs if one.reason]
    return SweepCell(
        number=cell.number,
        label=cell.label,
        family=cell.family,
        levels=dict(cell.levels),
        defense=cell.defense,
        status=_status(runs),
        reason="; ".join(dict.fromkeys(reasons)) or None,
        seeds=[one.seed for one in done],
        accuracy=mean_interval(accuracies, confidence),
        accuracy_std=stdev(accuracies) if len(accuracies) > 1 else None,
        utility_rounds=[one.utility_rounds for one in runs if one.utility_rounds is not None],
        attackers=rows,
        strongest=max(medians, key=lambda role: medians[role], default=None),
        epsilon=epsilon,
        delta=delta,
        bytes_up=fmean(sent) if sent else None,
        seconds=sum(one.seconds for one in runs),
        published=PublishedRow(**cell.published.model_dump()),
    )


def _status(runs: Sequence[Measured]) -> Literal["done", "partial", "failed", "missing"]:
    found = {one.status for one in runs}
    if len(found) == 1:
        return found.pop()
    return "partial" if "done" in found else "failed"


def _attacker(
    role: str, config: AttackConfig, runs: Sequence[Measured], confidence: float
) -> AttackerRow:
    plain = {"attack": config.name, "time_budget_s": config.time_budget_s}
    refused = next((one.refused[role] for one in runs if role in one.refused), None)
    found = [one.attacked[role] for one in runs if role in one.attacked]
    scores = [score for one in found for score in one.scores]
    if not scores:
        return AttackerRow(**plain, refused=refused)
    values = [value for one in found for value in one.values]
    guessed = [value for one in found for value in one.guessed]
    recovered = sum(one.recovered for one in found)
    labels = [one for one in scores if one["label_accuracy"] is not None]
    likeness = _likeness(found[0].modality, values, guessed, found, confidence)
    return AttackerRow(
        **plain,
        **likeness,
        victims=len(scores),
        failed=sum(score["status"] == "failed" for score in scores),
        unfinished=sum(score["status"] == "unfinished" for score in scores),
        num_images=len(values),
        num_recovered=recovered,
        success_rate=exact_share(recovered, len(values), confidence),
        label_accuracy=fmean(one["label_accuracy"] for one in labels) if labels else None,
        seconds_per_victim=fmean(score["seconds"] for score in scores),
    )


def _likeness(
    modality: Modality,
    values: Sequence[float],
    guessed: Sequence[float],
    found: Sequence[Attacked],
    confidence: float,
) -> Record:
    """Return how close an attacker came, in the fields of its scale."""
    means = [value for one in found for value in one.data_mean]
    told = {
        "psnr_db": median_interval(values, confidence),
        "psnr_std_db": stdev(values) if len(values) > 1 else None,
        "best_psnr_db": max(guessed, default=None),
        "data_mean_psnr_db": median(means) if means else None,
    }
    if modality == "image":
        return told | {"ssim": median(value for one in found for value in one.ssim)}
    names = ("accuracy", "accuracy_std", "best_accuracy", "data_mean_accuracy")
    return {"modality": modality, **dict(zip(names, told.values(), strict=True))}


def seeds_of(cell: Cell, runs: Sequence[Measured], folder: Path) -> list[SweepSeed]:
    """Return a row per seed of one cell."""
    return [
        SweepSeed(
            number=cell.number,
            label=cell.label,
            seed=one.seed,
            status=one.status,
            reason=one.reason,
            accuracy=one.accuracy,
            utility_rounds=one.utility_rounds,
            psnr_db=_medians(one, images=True),
            attack_accuracy=_medians(one, images=False),
            success_rate={
                role: found.recovered / len(found.values) for role, found in one.attacked.items()
            },
            epsilon=one.privacy[0],
            bytes_up=one.bytes_up,
            run=_below(one.leakage, folder),
            utility_run=_below(one.utility, folder),
        )
        for one in runs
    ]


def _medians(one: Measured, *, images: bool) -> dict[str, float | None]:
    """Return the median of each attacker on images, or of each on anything else."""
    return {
        role: median(found.values)
        for role, found in one.attacked.items()
        if (found.modality == "image") == images
    }


def _below(run: RunDirectory | None, folder: Path) -> str:
    return "" if run is None else str(run.root.relative_to(folder))
