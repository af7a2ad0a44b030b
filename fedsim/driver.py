"""One run from beginning to end: check, train, attack beside it, score, report."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from fedsim.catalog import resolve
from fedsim.config import Experiment, parse_experiment, read_experiment
from fedsim.engines import ENGINES
from fedsim.errors import ConfigError, FedsimError, RunFailed, trail
from fedsim.files import Record, digest, part_of, read_json, read_tensors, reading
from fedsim.lock import locked
from fedsim.pool import AttackPool, ProcessPool
from fedsim.records import RunDirectory
from fedsim.report.page import build as build_report
from fedsim.scoring import Scorer
from fedsim.stages.attack import Follower
from fedsim.stages.isolate import Isolator
from fedsim.stages.prepare import Plan, check, write_plan
from fedsim.stages.score import score
from fedsim.stages.summarize import summarize
from fedsim.views import forget_views
from fedsim.writers import Writer, open_writers

PAUSE_S = 0.1
"""Seconds between two looks at the run directory."""


class Engine(Protocol):
    """What runs the two apps."""

    def __init__(self, experiment: Experiment, run: RunDirectory) -> None: ...

    def open_pool(self) -> AttackPool:
        """Start the processes that run attacks."""

    def train(self) -> None:
        """Run all rounds."""

    def close(self) -> None:
        """End what the engine started."""

    # An engine whose adversary hears beside the rounds has `rounds_heard() -> Iterable[int] | None`
    # as well: the rounds of which everything was heard; None if that is when they are recorded.


@dataclass
class Progress:
    """Where a run stands, for whoever watches.

    Attributes:
        run: Its directory.
        plan: What it does.
        rounds: Records of the rounds so far.
        scores: Scores so far.
        waiting: Attacks queued, running, or not scored yet.
        stage: What is being done, for people.
    """

    run: RunDirectory
    plan: Plan
    rounds: list[Record] = field(default_factory=list)
    scores: list[Record] = field(default_factory=list)
    waiting: int = 0
    stage: str = "training"


Watch = Callable[[Progress], None]
"""Called whenever something may have changed, from a thread of its own."""


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        directory: The run directory.
        summary: What `summary.json` holds.
    """

    directory: Path
    summary: dict[str, Any]

    @property
    def report(self) -> Path:
        """The page for people."""
        return RunDirectory(self.directory).report

    @property
    def weights(self) -> dict[str, Tensor]:
        """The final weights, by name."""
        return final_weights(RunDirectory(self.directory))

    @property
    def events(self) -> list[Record]:
        """Faults, refused replies, crashed attacks, resumes."""
        return RunDirectory(self.directory).events()

    @property
    def scores(self) -> list[Record]:
        """The scores, one per observation and attack."""
        return RunDirectory(self.directory).scores()


def run(
    experiment: Experiment | Path | str,
    *,
    overrides: Sequence[str] = (),
    watch: Watch | None = None,
    into: RunDirectory | None = None,
) -> RunResult:
    """Run an experiment: train, eavesdrop, invert, score, report.

    Args:
        experiment: A checked experiment, a TOML file, or the name of a shipped one.
        overrides: `key=value` texts, as `--set` takes them.
        watch: Told of progress.
        into: A run directory that holds nothing yet; unset means a new one.

    Raises:
        ConfigError: The experiment cannot be run; nothing was started.
        DataMissing: Its data are not there; nothing was started.
        RunFailed: It ended early; the message names the run directory, whose records are kept.
    """
    if not isinstance(experiment, Experiment):
        experiment = read_experiment(experiment, overrides)
    elif overrides:
        experiment = parse_experiment(experiment.to_toml(), overrides=overrides)
    plan = check(experiment)
    directory = into or RunDirectory.create(Path(experiment.output.directory), experiment.name)
    with _alone(directory, "running"):
        with _recording(directory):
            write_plan(plan, directory)
        return _go(plan, directory, watch)


def resume(path: Path, *, watch: Watch | None = None) -> RunResult:
    """Go on with a run that was interrupted; it ends with the bits of one that was not.

    Raises:
        ConfigError: `path` is not a run directory, or another process works on it.
        RunFailed: It ended early again.
    """
    directory = RunDirectory.open(path)
    plan = check(parse_experiment(directory.config_text(), where=str(directory.config)))
    with _alone(directory, "going on with it"):
        with _recording(directory):
            directory.repair()
            whole = directory.summary.is_file() and read_json(directory.summary)["status"] == "done"
            if not whole:
                if plan.experiment.decentralised:
                    forget_after_checkpoint(directory)
                directory.append_event("resumed", "the run goes on after its last whole round")
        return _go(plan, directory, watch)


def forget_after_checkpoint(directory: RunDirectory) -> None:
    """Forget a round between peers that is played again: nobody may read half of it before."""
    last = 0
    if directory.checkpoint.is_file():
        with reading(directory.checkpoint):
            last = int(read_tensors(directory.checkpoint)[1]["round"])
    directory.rewrite_log("rounds", [one for one in directory.rounds() if one["round"] <= last])
    forget_views(directory, after=last)


def attack_again(path: Path, *, watch: Watch | None = None, again: bool = False) -> RunResult:
    """Attack what a run recorded, score and report; `again` repeats attacks already made."""
    directory = RunDirectory.open(path)
    plan = check(parse_experiment(directory.config_text(), where=str(directory.config)))
    if not plan.experiment.attacks:
        raise ConfigError(f"run '{directory.name}' names no attack in its config.toml")
    if not directory.observation_records() and not any(directory.views.glob("*.json")):
        raise ConfigError(f"run '{directory.name}' has no observations: its adversary heard none")
    with _alone(directory, "attacking it"):
        with _recording(directory):
            directory.repair()
            if again:
                directory.forget_reconstructions()
        return _go(plan, directory, watch, training=False)


def score_again(path: Path) -> RunResult:
    """Score every reconstruction of a run anew, from the sealed truth."""
    directory = RunDirectory.open(path)
    plan = check(parse_experiment(directory.config_text(), where=str(directory.config)))
    with _alone(directory, "scoring it"), _recording(directory):
        score(directory, **_scoring(plan))
        before = read_json(directory.summary) if directory.summary.is_file() else {}
        seconds = before.get("seconds", {"training": 0.0, "total": 0.0})
        return _conclude(plan, directory, before.get("status", "interrupted"), seconds)


def final_weights(directory: RunDirectory) -> dict[str, Tensor]:
    """Return the weights after the last whole round, by name.

    Raises:
        ConfigError: The run has no weights yet.
    """
    if not directory.checkpoint.is_file():
        raise ConfigError(f"run '{directory.name}' has no weights yet")
    return part_of(read_tensors(directory.checkpoint)[0], "weights")


def _go(
    plan: Plan, directory: RunDirectory, watch: Watch | None, *, training: bool = True
) -> RunResult:
    start, begun = time.perf_counter(), time.time()
    experiment = plan.experiment
    writers = open_writers(experiment.output.writers, directory)
    status, trained_s = "failed", 0.0
    try:
        with _recording(directory), contextlib.ExitStack() as stack:
            engine: Engine | None = None
            if training:
                engine = resolve(experiment.engine.name, ENGINES, "engine")(experiment, directory)
                stack.callback(engine.close)
                pool = engine.open_pool()
            else:
                pool = ProcessPool(directory, experiment.engine.attack_workers)
            stack.callback(pool.close)
            rounds_heard = getattr(engine, "rounds_heard", None)
            beside = _Beside(plan, directory, pool, writers, watch, rounds_heard)
            stack.callback(beside.stop)
            if engine is None:
                beside.trained.set()
            beside.start()
            if engine is not None:
                engine.train()
                trained_s = time.perf_counter() - start
            beside.finish()
            status = "done"
    except KeyboardInterrupt:
        status = "interrupted"
        with contextlib.suppress(OSError):
            directory.append_event("interrupted", "the run was interrupted; its records are kept")
        raise
    finally:
        # whatever happened, what was recorded is summed up and shown
        with contextlib.suppress(OSError):
            directory.forget_partial(before=begun)  # of who was killed before, however lately
        total = time.perf_counter() - start
        if not training and directory.summary.is_file():
            trained_s = read_json(directory.summary)["seconds"]["training"]
        seconds = {"training": trained_s or total, "total": total}
        with _recording(directory) if status == "done" else contextlib.suppress(OSError):
            result = _conclude(plan, directory, status, seconds)
            for writer in writers:
                writer.close(result.summary)
    return result


def _conclude(
    plan: Plan, directory: RunDirectory, status: str, seconds: dict[str, float]
) -> RunResult:
    weights = digest(final_weights(directory)) if directory.checkpoint.is_file() else None
    spent = sum(record["seconds"] for record in directory.reconstruction_records())
    summary = summarize(
        directory,
        experiment=plan.experiment.name,
        engine=plan.experiment.engine.name,
        seed=plan.experiment.seed,
        weights_sha256=weights,
        status=status,
        seconds={key: round(value, 3) for key, value in (seconds | {"attacks": spent}).items()},
    )
    build_report(directory)
    return RunResult(directory.root, summary)


def _scoring(plan: Plan) -> dict[str, Any]:
    """Return what scoring needs to know of a run, by keyword."""
    return {
        "public_sample": plan.public_sample,
        "seed": plan.experiment.seed,
        "threat": plan.threat.name,
        "defense": plan.experiment.defense_title,
        "success_threshold_db": plan.experiment.score.success_threshold_db,
        "success_accuracy": plan.experiment.score.success_accuracy,
        "tolerance": plan.experiment.score.tolerance,
    }


class _Beside:
    """The thread beside the training: attacks, scores, writers, and whoever watches."""

    def __init__(
        self,
        plan: Plan,
        directory: RunDirectory,
        pool: AttackPool,
        writers: Sequence[Writer],
        watch: Watch | None,
        rounds_heard: Callable[[], Iterable[int] | None] | None = None,
    ) -> None:
        self.rounds_heard = rounds_heard
        self.plan = plan
        self.directory = directory
        self.pool = pool
        self.writers = writers
        self.watch = watch
        self.follower = Follower(plan.experiment, directory, pool, self._answered)
        self.isolator: Isolator | None = None
        if plan.experiment.decentralised and plan.experiment.adversary.rounds != []:
            self.isolator = Isolator(plan.experiment, directory)
        self.progress = Progress(
            directory, plan, rounds=directory.rounds(), scores=directory.scores()
        )
        self.scorer = Scorer(directory, _scoring(plan), self._scored)
        self.rounds_read = directory.size_of_rounds()
        self.trained = threading.Event()
        self.stopped = threading.Event()
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        """Begin to follow the run directory."""
        self.thread.start()

    def finish(self) -> None:
        """Wait until everything that was heard is attacked and scored."""
        self.progress.stage = "attacking"
        self.trained.set()
        while self.thread.is_alive():
            self.thread.join(0.2)  # short joins, so that Ctrl-C is heard
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """End the thread, whatever is left to do."""
        self.stopped.set()
        self.thread.join()
        self.scorer.close()

    def _work(self) -> None:
        try:
            self._catch_up()
            while not self.stopped.wait(PAUSE_S):
                training_ended = self.trained.is_set()  # before looking: nothing new comes after
                self._look(trained=training_ended)
                if training_ended and not self.pool.waiting and not self.scorer.waiting:
                    return
        except BaseException as error:
            self.error = error

    def _look(self, *, trained: bool) -> None:
        new, self.rounds_read = self.directory.rounds_after(self.rounds_read)
        for record in new:
            self.progress.rounds.append(record)
            for writer in self.writers:
                writer.round(record)
        over: Iterable[int] | None = None
        if self.isolator is not None:
            over = self.isolator.step(trained=trained)
        elif self.rounds_heard is not None:
            over = self.rounds_heard()
        self.follower.step(trained=trained, over=over)
        self.scorer.step()
        self.progress.waiting = self.pool.waiting + self.scorer.waiting
        if self.watch is not None:
            self.watch(self.progress)

    def _catch_up(self) -> None:
        """Score what an earlier, interrupted run reconstructed but did not score."""
        scored = {(one["observation"], one["attack"]) for one in self.progress.scores}
        for record in self.directory.reconstruction_records():
            if (record["observation"], record["attack"]) not in scored:
                self._answered(record)

    def _answered(self, record: Record) -> None:
        self.scorer.score(record, beside_training=not self.trained.is_set())

    def _scored(self, scored: Record) -> None:
        self.directory.append_score(scored)
        self.progress.scores.append(scored)
        for writer in self.writers:
            writer.score(scored)


@contextlib.contextmanager
def _alone(directory: RunDirectory, doing: str) -> Iterator[None]:
    """Let nobody else work on a run meanwhile, and note if who did before was killed."""
    with locked(directory.root, doing) as left_by:
        if left_by is not None:
            with _recording(directory):
                directory.append_event("lock-taken-over", f"{left_by}, was killed before its end")
        yield


@contextlib.contextmanager
def _recording(directory: RunDirectory) -> Iterator[None]:
    """Turn what goes wrong while a run is under way into a `RunFailed` that names the run."""
    try:
        yield
    except Exception as error:
        details: dict[str, object] = {}
        if isinstance(error, FedsimError):
            reason = str(error)
        elif isinstance(error, OSError):
            reason = f"cannot write its records: {error.strerror or error}"
        else:
            reason = f"{type(error).__name__}: {error}"
            details["trail"] = trail(error)
        with contextlib.suppress(OSError):
            directory.append_event("run-failed", reason, **details)
        raise RunFailed(f"run '{directory.root}' failed: {reason}; its records are kept") from error
