"""The process that runs attacks: reads observations and knowledge, writes reconstructions.

It never loads a data set, does not import the truth, and refuses every attempt that Python sees,
its own reading of tensors included, to open a file below `truth/`. Started as
`python -m fedsim.attacking RUN`, it takes one JSON job per line from standard input, which names an
attack and the observations to attack, and answers one JSON line each, a list with an answer per
observation; end of input ends it.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import torch

from attacks.observation import (
    AttackFailed,
    Budget,
    Knowledge,
    ManyAtOnce,
    Observation,
    only,
)
from fedsim.config import Experiment, parse_experiment
from fedsim.errors import trail
from fedsim.files import Record, read_json
from fedsim.guesses import sound
from fedsim.knowledge import knowledge_about, read_knowledge
from fedsim.line_process import answers_to_parent
from fedsim.named_attacks import build_attack
from fedsim.progress import Shown
from fedsim.records import RunDirectory
from fedsim.seeds import stream


class AttackWorker:
    """Runs the attacks of one run on its observations, one job at a time.

    Args:
        root: The run directory.
    """

    def __init__(self, root: str) -> None:
        torch.set_num_threads(1)
        self.run = RunDirectory.open(Path(root))
        self.experiment: Experiment = parse_experiment(
            self.run.config_text(), where=str(self.run.config)
        )
        self.configs = {config.title: config for config in self.experiment.attacks}
        self.attacks = {title: build_attack(config) for title, config in self.configs.items()}
        self.known = read_knowledge(self.run)
        self.device = _device(self.experiment.engine.attack_device)
        self.shown = Shown(self.run.root)

    def attack(self, observations: Sequence[str], title: str) -> list[Record]:
        """Attack observations, each of another victim, and write what came of each.

        Several are one computation, whose time is shared out among them.

        Returns:
            Status and reason per observation, in order.
        """
        budget = Budget(self.configs[title].time_budget_s * len(observations))
        jobs = [self._prepare(observation, title) for observation in observations]
        outcomes: Sequence[object]
        rngs = [one.rng for one in jobs]
        time_budget_s = self.configs[title].time_budget_s
        try:
            with self.shown.job(title, observations, rngs, time_budget_s=time_budget_s):
                outcomes = self._run(title, jobs, budget)
        except AttackFailed as failed:
            outcomes = [failed] * len(jobs)
        except Exception as error:
            outcomes = [error] * len(jobs)
        share = budget.elapsed / len(jobs)
        return [
            self._write(observation, title, outcome, seconds=share, shared=len(jobs) > 1)
            for observation, outcome in zip(observations, outcomes, strict=True)
        ]

    def _prepare(self, observation: str, title: str) -> "_Victim":
        seen = self._hear(observation)
        rounds = self.configs[title].join_rounds
        joined = self.run.observations_of(seen.sender, last=seen.round)[-rounds:]
        earlier = [self._hear(one) for one in joined[:-1]]
        return _Victim(
            seen=[*earlier, seen] if rounds > 1 else seen,
            known=knowledge_about(self.known, self.run, seen),
            rng=stream(self.experiment.seed, "attack", title, observation),
        )

    def _hear(self, observation: str) -> Observation:
        return _on(self.run.read_observation(observation), self.device)

    def _run(self, title: str, victims: Sequence["_Victim"], budget: Budget) -> Sequence[object]:
        attack = self.attacks[title]
        if len(victims) == 1 or not isinstance(attack, ManyAtOnce):
            return [attack(one.seen, one.known, rng=one.rng, budget=budget) for one in victims]
        guesses = attack.many(
            [only(one.seen) for one in victims],
            [one.known for one in victims],
            rngs=[one.rng for one in victims],
            budget=budget,
        )
        if not isinstance(guesses, Sequence) or len(guesses) != len(victims):
            got = len(guesses) if isinstance(guesses, Sequence) else type(guesses).__name__
            raise TypeError(
                f"`many` must return one guess per victim, {len(victims)} of them, got {got}"
            )
        return guesses

    def _write(
        self, observation: str, title: str, outcome: object, *, seconds: float, shared: bool
    ) -> Record:
        guess, reason = None, None
        try:
            if isinstance(outcome, Exception):
                raise outcome
            guess = sound(outcome, self.known)
        except AttackFailed as failed:
            reason = str(failed)
        except Exception as error:
            reason = f"the attack crashed: {type(error).__name__}: {error}"
            self.run.append_event(
                "attack-crashed",
                f"{title} on {observation}: {reason}",
                trail=trail(error),
            )
        if guess is not None and shared:
            guess = replace(guess, seconds=seconds)
        record = read_json(self.run.root / "observations" / f"{observation}.json")
        self.run.write_reconstruction(record, title, guess, reason=reason, seconds=seconds)
        status = "failed" if guess is None else "done" if guess.finished else "unfinished"
        return {"observation": observation, "attack": title, "status": status, "reason": reason}


@dataclass(frozen=True, kw_only=True)
class _Victim:
    """What an attack is given about one victim."""

    seen: Observation | list[Observation]
    known: Knowledge
    rng: torch.Generator


SEALED = ("truth", "memory", "scores.jsonl", "summary.json", "report.html", "pictures")
"""Of a run, what holds private data, or says how close a guess came."""
SEALED_WRITERS = ("tensorboard", "mlflow")
"""The same, as writers keep it: they hold pictures of originals, too."""


def seal_off(root: Path) -> None:
    """Make every attempt of this process to open what is sealed of a run an error.

    Files that compiled code opens by itself are out of reach: this guards against mistakes, not
    against an attack written to cheat.
    """
    parts = (*SEALED, *SEALED_WRITERS)
    sealed = tuple(os.path.realpath(root / part) + os.sep for part in parts)

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        # the file itself, or one below it
        if (os.path.realpath(os.fsdecode(arguments[0])) + os.sep).startswith(sealed):
            raise PermissionError("the truth is sealed: attack workers may not open it")

    sys.addaudithook(refuse)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _on(seen: Observation, device: torch.device) -> Observation:
    if device.type == "cpu":
        return seen
    moved = {
        part: {name: tensor.to(device) for name, tensor in tensors.items()}
        for part in ("update", "visible", "weights", "buffers", "buffers_after")
        if (tensors := getattr(seen, part)) is not None
    }
    return replace(seen, **moved)  # type: ignore[arg-type]


def serve(root: str, jobs: Sequence[str] | TextIO, answers: TextIO) -> None:
    """Attack whatever `jobs` asks for, one JSON line each, and answer on `answers`."""
    worker = AttackWorker(root)
    for line in jobs:
        job = json.loads(line)
        answers.write(json.dumps(worker.attack(job["observations"], job["attack"])) + "\n")
        answers.flush()


def main() -> None:
    """Run as a process of its own."""
    root = sys.argv[1]
    answers = answers_to_parent()
    seal_off(Path(root))
    serve(root, sys.stdin, answers)


if __name__ == "__main__":
    main()
