"""A gate: attack fresh updates of an experiment until a claim about them is proved or lost.

The claim is on a share: at most so many of the updates that such clients send give an image away,
or a text, or a row of a table. Each attacked update is one trial; a trial is lost when an example
behind it is recovered. With no
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
from fedsim.data.load import load_data
from fedsim.driver import RunResult
from fedsim.errors import ConfigError, RunFailed
from fedsim.files import Record
from fedsim.quality import SCALES, Scale, baseline, baseline_values, examples, measured, values
from fedsim.records import RunDirectory
from fedsim.report.wording import count, duration, percent
from fedsim.schemas.document import Modality
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
        success_accuracy: Accuracy from which a text or a row counts as recovered.
        modality: What clients hold.
        tolerated: Share of updates that may give an example away.
        confidence: One-sided.
        victims: Updates to attack; None for as few as can prove the claim.
    """

    threshold_db: float = 30.0
    success_accuracy: float = 0.9
    modality: Modality = "image"
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
        if not 0 < self.success_accuracy <= 1:
            raise ConfigError(
                f"the accuracy must be above 0 and at most 1, got {self.success_accuracy:g}"
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
    def scale(self) -> Scale:
        """On which examples are compared."""
        return SCALES[self.modality]

    @property
    def loss(self) -> str:
        """What an update must not do, in words."""
        value = self.threshold_db if self.modality == "image" else self.success_accuracy
        one = f"{'an' if self.modality == 'image' else 'a'} {self.scale.noun}"
        return f"{one} away to {self.scale.limit_in_full(value)}".replace("\u00a0", " ")

    @property
    def words(self) -> str:
        """The claim as a sentence."""
        return (
            f"at most {percent(self.tolerated)} of updates give {self.loss}, with "
            f"{percent(self.confidence)} confidence"
        )


def claim_of(
    experiment: Experiment,
    *,
    max_psnr: float | None,
    max_accuracy: float | None,
    max_success_rate: float | None,
    tolerate: float,
    confidence: float,
    victims: int | None,
) -> Claim:
    """Return the claim that options of the command line make of an experiment.

    Args:
        experiment: As read; its data say what an example is.
        max_psnr: No image may be recovered to so many dB.
        max_accuracy: No text or row may be recovered to such a share.
        max_success_rate: Share of updates that may give an example away, to the experiment's own
            threshold.
        tolerate: That share, with the other two.
        confidence: Of the claim.
        victims: Updates to attack; None for as few as can prove it.

    Raises:
        ConfigError: Not one of the three is given, or one that its data do not go with.
    """
    if sum(one is not None for one in (max_psnr, max_accuracy, max_success_rate)) != 1:
        raise ConfigError(
            "give either --max-psnr or --max-success-rate; of text and tables either "
            "--max-accuracy or --max-success-rate"
        )
    data = experiment.data
    modality = load_data(data.name, root=data.root, options=data.options).modality
    scale = SCALES[modality]
    if max_psnr is not None and modality != "image":
        raise ConfigError(
            f"--max-psnr is about images, and data '{data.name}' holds {scale.nouns}; give "
            f"--max-accuracy, from 0 to 1: the share of {scale.part} that none may reach"
        )
    if max_accuracy is not None and modality == "image":
        raise ConfigError(
            f"--max-accuracy is about text and tables, and data '{data.name}' holds images; give "
            "--max-psnr, in dB"
        )
    own = experiment.score
    return Claim(
        threshold_db=own.success_threshold_db if max_psnr is None else max_psnr,
        success_accuracy=own.success_accuracy if max_accuracy is None else max_accuracy,
        modality=modality,
        tolerated=tolerate if max_success_rate is None else max_success_rate,
        confidence=confidence,
        victims=victims,
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
        """Updates of which an example was recovered."""
        return sum(any(one["recovered"] for one in examples(score)) for score in self.scores)


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
    with one of which a part crashed, unless an example is lost all the same.

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
                    update={
                        "success_threshold_db": claim.threshold_db,
                        "success_accuracy": claim.success_accuracy,
                    }
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
    """Whether an attack shows something: that an example is lost, or that all of it found none."""
    if score["status"] not in ("done", "unfinished"):
        return False
    if any(one["recovered"] for one in examples(score)):
        return True
    return bool(values(score)) and score.get("observation") not in crashed


def _crashed(run: RunResult) -> set[str]:
    """Return the updates at which a part of the attack ended by an error."""
    records = RunDirectory(run.directory).reconstruction_records()
    return {one["observation"] for one in records if one.get("notes", {}).get("crashed")}


def _record(
    experiment: Experiment, claim: Claim, attack: AttackConfig, tally: Tally, seconds: float
) -> GateRecord:
    scores, broken = tally.scores, tally.broken
    found = spread(value for one in scores for value in values(one))
    means = [value for one in scores for value in baseline_values(one)]
    mean = median(means) if means else None
    is_image = claim.modality == "image"
    passed = len(scores) >= claim.planned and broken <= claim.allowed
    share = exact_share(broken, len(scores), claim.confidence)
    assert share is not None  # noqa: S101 - a gate ends only after a trial
    told: dict[str, Any] = {
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
        "psnr_db": found if is_image else None,
        "baseline_psnr_db": mean if is_image else None,
        "modality": claim.modality,
        "success_accuracy": None if is_image else claim.success_accuracy,
        "accuracy": None if is_image else found,
        "baseline_accuracy": None if is_image else mean,
        "seeds": tally.seeds,
        "runs": tally.runs,
        "seconds": round(seconds, 3),
    }
    return GateRecord(**told, verdict=_verdict(told, claim))


def _verdict(told: Record, claim: Claim) -> str:
    who = f"{told['attack']} within {duration(told['time_budget_s'])} per update"
    lost = f"{told['broken']} of {count(told['victims'], 'update')}"
    share = told["share"]
    interval = (
        f"share {percent(share.value)}, {percent(told['confidence'])} interval "
        f"{percent(share.low)} to {percent(share.high)}"
    )
    if told["passed"]:
        return (
            f"passed: {lost} gave {claim.loss} to {who} ({interval}); the share is at "
            f"most {percent(told['bound'])}"
        )
    return (
        f"failed: {lost} gave {claim.loss} to {who} ({interval}); "
        f"{told['allowed']} of {told['planned']} are allowed"
    )


def lines_of(record: GateRecord) -> list[str]:
    """Return what `fedsim gate` prints."""
    found, scale = measured(record), SCALES[record.modality]
    closest = f"no {scale.noun} was guessed"
    if found is not None:
        closest = (
            f"{scale.title} median {scale.written(found.median)}, best {scale.written(found.best)}"
        )
    private = count(record.num_images, f"private {scale.noun}")
    counted = f"{private} under {count(len(record.seeds), 'seed')}"
    lost = f"; {count(record.failed, 'attack')} came to no guess and counted not" * bool(
        record.failed
    )
    return [
        f"{record.experiment}, defense {record.defense}, threat {record.threat}",
        f"claim: {record.claim}",
        record.verdict,
        f"{closest}; guessing the data mean gives {scale.written(baseline(record))}",
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
