"""A gate: attack fresh updates of an experiment until a claim about them is proved or lost.

The claim is on a share: at most so many of the updates that such clients send give an image away.
Each attacked update is one trial; a trial is lost when an image behind it is recovered. With no
lost trial, 59 of them show that the share is at most 5 %, with 95 % confidence (Clopper and
Pearson, 1934). Trials come from runs under seeds of their own, so that weights, shares of the data
and batches are drawn anew; of a run, only different clients are attacked.
"""

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any
from xml.etree import ElementTree

from attacks.threats import Capability
from fedsim import driver
from fedsim.config import AttackConfig, Experiment, parse_experiment
from fedsim.driver import RunResult
from fedsim.errors import ConfigError, RunFailed
from fedsim.files import Record
from fedsim.records import RunDirectory
from fedsim.report.wording import count, decibels, duration, percent
from fedsim.schemas.gate import GateRecord
from fedsim.seeds import stream
from fedsim.stages.spreads import spread
from fedsim.sweep.statistics import exact_share, upper_bound

PER_RUN = 8
"""Updates attacked in one run, at most: between runs the gate may end early."""
TITLE = "gate"
"""What records call the attack."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What is tested.

    Attributes:
        threshold_db: PSNR from which an image counts as recovered.
        tolerated: Share of updates that may give an image away.
        confidence: One-sided.
        victims: Updates to attack; None for as few as can prove the claim.
    """

    threshold_db: float
    tolerated: float = 0.05
    confidence: float = 0.95
    victims: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be proved."""
        if not 0 < self.tolerated < 1:
            raise ConfigError(
                f"the tolerated share must be above 0 and below 1, got {self.tolerated}; no number "
                "of attacks proves that none succeeds"
            )
        if not 0 < self.confidence < 1:
            raise ConfigError(f"confidence must be above 0 and below 1, got {self.confidence}")
        if self.victims is not None and self.victims < self.fewest:
            raise ConfigError(
                f"victims must be at least {self.fewest} to show a share of at most "
                f"{self.tolerated:g} with confidence {self.confidence:g}, got {self.victims}"
            )

    @property
    def fewest(self) -> int:
        """The fewest trials that prove it, if none is lost."""
        return math.ceil(math.log(1 - self.confidence) / math.log(1 - self.tolerated))

    @property
    def planned(self) -> int:
        """Trials, if nothing ends it early."""
        return self.victims or self.fewest

    @property
    def allowed(self) -> int:
        """Trials that may be lost of those planned."""
        lost = 0
        while upper_bound(lost + 1, self.planned, self.confidence) <= self.tolerated:
            lost += 1
        return lost

    @property
    def words(self) -> str:
        """The claim as a sentence."""
        return (
            f"at most {percent(self.tolerated)} of updates give an image away to "
            f"{self.threshold_db:g} dB, with {percent(self.confidence)} confidence"
        )


@dataclass
class Tally:
    """What came out so far.

    Attributes:
        scores: Of attacks that came to a guess, in order.
        failed: Attacks that came to none; they count neither way.
        seeds: Of the runs.
        runs: Their directories' names.
    """

    scores: list[Record] = field(default_factory=list)
    failed: int = 0
    seeds: list[int] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)

    @property
    def broken(self) -> int:
        """Updates of which an image was recovered."""
        return sum(any(image["recovered"] for image in one["images"]) for one in self.scores)


Watch = Callable[[Tally, int], None]
"""Told of the tally and the planned number after each run."""


def gate(
    experiment: Experiment,
    claim: Claim,
    *,
    attack: AttackConfig,
    workers: int,
    watch: Watch | None = None,
) -> GateRecord:
    """Test a claim on fresh updates of an experiment.

    It ends early once more trials are lost than the claim allows of all that are planned. An attack
    that comes to no guess (or crashes, or is lost) is no trial: another update takes its place. So
    with one of which a part crashed, unless an image is lost all the same.

    Args:
        experiment: As read; its attacks are replaced. Its rounds and victims say which updates are
            in question.
        claim: What is tested.
        attack: What every update is attacked with; it is granted `defense`.
        workers: Processes that run attacks.
        watch: Told of progress.

    Raises:
        ConfigError: The experiment cannot be run or attacked.
        RunFailed: A run failed, or too many attacks came to no guess.
    """
    start = time.perf_counter()
    tally = Tally()
    last: RunResult | None = None
    for fresh in _fresh(experiment, claim, attack, workers):
        last = driver.run(fresh)
        _count(tally, last, fresh.seed, claim)
        if watch is not None:
            watch(tally, claim.planned)
        if tally.broken > claim.allowed or len(tally.scores) >= claim.planned:
            break
        if tally.failed > claim.planned:
            raise RunFailed(
                f"{tally.failed} attacks came to no guess, or a part of them crashed, which says "
                f"nothing about safety; the last run, '{last.directory}', says why"
            )
    seconds = time.perf_counter() - start
    return _record(experiment, claim, attack, tally, seconds)


def attack_of(experiment: Experiment, name: str, time_budget_s: float | None) -> AttackConfig:
    """Return the attack to use: as the experiment has it, or by name with its default settings.

    Args:
        experiment: May name the attack, with settings and a time budget.
        name: Its title there, or a name from `fedsim list attacks`.
        time_budget_s: Seconds per update; None for those of the attack.

    Raises:
        ConfigError: The time budget is none.
    """
    named = [one for one in experiment.attacks if name in (one.title, one.name)]
    found = named[0] if named else AttackConfig(name=name)
    if time_budget_s is None:
        return found
    if not time_budget_s > 0:
        raise ConfigError(f"--time-budget must be above 0, got {time_budget_s:g}")
    return found.model_copy(update={"time_budget_s": time_budget_s})


def _fresh(
    experiment: Experiment, claim: Claim, attack: AttackConfig, workers: int
) -> Iterator[Experiment]:
    """Yield the experiment under one seed after another, each with some other victims."""
    adversary = experiment.adversary
    heard = experiment.rounds if adversary.rounds == "all" else len(adversary.rounds)
    every = range(experiment.partition.clients)
    choice = list(every) if adversary.victims == "all" else sorted(set(adversary.victims))
    most = max(1, min(len(choice), PER_RUN // heard))
    grants = [*adversary.grants]
    if Capability.DEFENSE not in grants:
        grants.append(Capability.DEFENSE)
    seed = experiment.seed
    while True:
        drawn = stream_choice(seed, choice, most)
        changed = adversary.model_copy(update={"victims": drawn, "grants": grants})
        text = experiment.model_copy(
            update={
                "seed": seed,
                "adversary": changed,
                "attacks": [attack.model_copy(update={"label": TITLE})],
                "score": experiment.score.model_copy(
                    update={"success_threshold_db": claim.threshold_db}
                ),
                "engine": experiment.engine.model_copy(update={"attack_workers": workers}),
            }
        ).to_toml()
        yield parse_experiment(text)  # checked again, as a whole
        seed += 1


def stream_choice(seed: int, choice: Sequence[int], most: int) -> list[int]:
    """Return so many of the clients, drawn by this seed, in order."""
    import torch

    order = torch.randperm(len(choice), generator=stream(seed, "gate", "victims"))[:most]
    return sorted(choice[place] for place in order.tolist())


def _count(tally: Tally, run: RunResult, seed: int, claim: Claim) -> None:
    """Add the trials of a run, in order of its scores, up to the planned number."""
    scores = run.scores
    crashed = _crashed(run)
    sound = [one for one in scores if _is_trial(one, crashed)]
    tally.failed += len(scores) - len(sound)
    tally.scores += sound[: claim.planned - len(tally.scores)]
    tally.seeds.append(seed)
    tally.runs.append(run.directory.name)
    if not scores:
        raise RunFailed(
            f"run '{run.directory}' has no attacked update: its adversary heard none; "
            "see adversary.rounds, adversary.victims and server.clients_per_round"
        )


def _is_trial(score: Record, crashed: Collection[str]) -> bool:
    """Whether an attack shows something: that an image is lost, or that all of it found none."""
    if score["status"] not in ("done", "unfinished"):
        return False
    if any(image["recovered"] for image in score["images"]):
        return True
    guessed = any(image["psnr_db"] is not None for image in score["images"])
    return guessed and score.get("observation") not in crashed


def _crashed(run: RunResult) -> set[str]:
    """Return the updates at which a part of the attack ended by an error."""
    records = RunDirectory(run.directory).reconstruction_records()
    return {one["observation"] for one in records if one.get("notes", {}).get("crashed")}


def _record(
    experiment: Experiment, claim: Claim, attack: AttackConfig, tally: Tally, seconds: float
) -> GateRecord:
    scores, broken = tally.scores, tally.broken
    images = [image for score in scores for image in score["images"]]
    means = [value for one in scores for value in one["baselines"]["data_mean"]["psnr_db"]]
    passed = len(scores) >= claim.planned and broken <= claim.allowed
    share = exact_share(broken, len(scores), claim.confidence)
    assert share is not None  # noqa: S101 - a gate ends only after a trial
    values: dict[str, Any] = {
        "experiment": experiment.name,
        "defense": experiment.defense_title,
        "threat": experiment.adversary.threat,
        "passed": passed,
        "claim": claim.words,
        "attack": attack.name,
        "time_budget_s": attack.time_budget_s,
        "threshold_db": claim.threshold_db,
        "tolerated": claim.tolerated,
        "confidence": claim.confidence,
        "planned": claim.planned,
        "allowed": claim.allowed,
        "victims": len(scores),
        "broken": broken,
        "share": share,
        "bound": upper_bound(broken, len(scores), claim.confidence),
        "failed": tally.failed,
        "unfinished": sum(one["status"] == "unfinished" for one in scores),
        "num_images": sum(one["batch_size"] for one in scores),
        "psnr_db": spread(image["psnr_db"] for image in images),
        "baseline_psnr_db": median(means) if means else None,
        "seeds": tally.seeds,
        "runs": tally.runs,
        "seconds": round(seconds, 3),
    }
    return GateRecord(**values, verdict=_verdict(values))


def _verdict(values: Record) -> str:
    who = f"{values['attack']} within {duration(values['time_budget_s'])} per update"
    lost = f"{values['broken']} of {count(values['victims'], 'update')}"
    share = values["share"]
    interval = (
        f"share {percent(share.value)}, {percent(values['confidence'])} interval "
        f"{percent(share.low)} to {percent(share.high)}"
    )
    limit = f"{values['threshold_db']:g} dB"
    if values["passed"]:
        return (
            f"passed: {lost} gave an image away to {limit} to {who} ({interval}); the share is at "
            f"most {percent(values['bound'])}"
        )
    return (
        f"failed: {lost} gave an image away to {limit} to {who} ({interval}); "
        f"{values['allowed']} of {values['planned']} are allowed"
    )


def lines_of(record: GateRecord) -> list[str]:
    """Return what `fedsim gate` prints."""
    found = record.psnr_db
    closest = "no image was guessed"
    if found is not None:
        closest = f"PSNR median {decibels(found.median)}, best {decibels(found.best)}"
    counted = (
        f"{count(record.num_images, 'private image')} under {count(len(record.seeds), 'seed')}"
    )
    lost = f"; {count(record.failed, 'attack')} came to no guess and counted not" * bool(
        record.failed
    )
    return [
        f"{record.experiment}, defense {record.defense}, threat {record.threat}",
        f"claim: {record.claim}",
        record.verdict,
        f"{closest}; guessing the data mean gives {decibels(record.baseline_psnr_db)}",
        f"{counted}, {duration(record.seconds)}{lost}",
    ]


def junit(record: GateRecord) -> bytes:
    """Return the verdict as JUnit XML: one test, which passes or fails."""
    failures = "0" if record.passed else "1"
    attributes = {"name": "fedsim gate", "tests": "1", "failures": failures, "errors": "0"}
    suites = ElementTree.Element("testsuites", attributes | {"time": f"{record.seconds:.3f}"})
    suite = ElementTree.SubElement(
        suites, "testsuite", attributes | {"time": f"{record.seconds:.3f}"}
    )
    case = ElementTree.SubElement(
        suite,
        "testcase",
        {
            "classname": f"fedsim.{record.experiment}",
            "name": record.claim,
            "time": f"{record.seconds:.3f}",
        },
    )
    text = "\n".join(lines_of(record))
    if not record.passed:
        failure = ElementTree.SubElement(
            case, "failure", {"message": record.verdict, "type": "leak"}
        )
        failure.text = text
    ElementTree.SubElement(case, "system-out").text = text
    ElementTree.indent(suites)
    text = ElementTree.tostring(suites, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'.encode()
