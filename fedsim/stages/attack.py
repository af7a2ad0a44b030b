"""Follow a run directory: attack each observation as it appears, score each guess as it comes."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from attacks.observation import ManyAtOnce
from fedsim.config import Experiment
from fedsim.files import Record, read_json
from fedsim.named_attacks import build_attack
from fedsim.pool import AttackPool, Job
from fedsim.records import RunDirectory

OnAnswer = Callable[[Record], None]
"""Told of the record of each reconstruction that is wholly there."""


class Follower:
    """Keeps the attack workers busy with what a run directory holds.

    An attack that inverts several victims in one computation gets all of a round together, when
    the round is over; what it computes thus never depends on how fast anybody was. One that joins
    rounds starts once that many of a victim were heard, and again with each further one. What was
    attacked before (by a run that was interrupted, say) is not attacked again, unless it belongs
    to such a round of which something is missing.

    Args:
        experiment: Says which attacks.
        run: The run directory, which may still grow.
        pool: Where attacks run.
        on_answer: Told of each reconstruction.
    """

    def __init__(
        self, experiment: Experiment, run: RunDirectory, pool: AttackPool, on_answer: OnAnswer
    ) -> None:
        self.experiment = experiment
        self.run = run
        self.pool = pool
        self.on_answer = on_answer
        self.together = {
            config.title
            for config in experiment.attacks
            if config.join_rounds == 1 and isinstance(build_attack(config), ManyAtOnce)
        }
        self.seen: set[str] = set()
        self.rounds_read = 0
        self.in_rounds: dict[int, list[str]] = {}
        self.done = {
            (record["observation"], record["attack"]) for record in run.reconstruction_records()
        }

    def step(self, *, trained: bool = False, over: Iterable[int] | None = None) -> None:
        """Queue what is new, and pass on what came back.

        Args:
            trained: Whether no round is still open.
            over: Rounds of which all observations are there by now, where they are told from
                what was heard; None where rounds that were recorded are.
        """
        if over is None:
            # before the observations: of a round that is over by now, all are there
            records, self.rounds_read = self.run.rounds_after(self.rounds_read)
            over = [record["round"] for record in records]
        new = self._new_observations()
        for observation in new:
            record = read_json(self._path(observation))
            number = record.get("told_after") or record["round"]
            self.in_rounds.setdefault(number, []).append(observation)
        self._submit(new, list(self.in_rounds) if trained else over)
        for answer in self.pool.poll():
            self._pass_on(answer)

    def _submit(self, new: Iterable[str], rounds_over: Iterable[int]) -> None:
        alone = [one for one in self.experiment.attacks if one.title not in self.together]
        for observation in new:
            for attack in alone:
                if (observation, attack.title) not in self.done and self._joined(
                    observation, attack.join_rounds
                ):
                    self.pool.submit(Job((observation,), attack.title, attack.time_budget_s))
        for number in sorted(set(rounds_over)):
            victims = tuple(sorted(self.in_rounds.pop(number, ())))
            for attack in self.experiment.attacks:
                missing = [one for one in victims if (one, attack.title) not in self.done]
                if attack.title in self.together and missing:
                    self.pool.submit(Job(victims, attack.title, attack.time_budget_s))

    def _joined(self, observation: str, num_rounds: int) -> bool:
        """Whether so many rounds of this victim were heard, up to this one."""
        if num_rounds == 1:
            return True
        record = read_json(self._path(observation))
        return len(self.run.observations_of(record["sender"], last=record["round"])) >= num_rounds

    def _pass_on(self, answer: Record) -> None:
        observation, attack = answer["observation"], answer["attack"]
        if (observation, attack) in self.done:  # it was there before, and has the same bits now
            return
        if answer.get("lost"):  # no worker wrote it down: the failure is recorded here
            record = read_json(self._path(observation))
            self.run.write_reconstruction(record, attack, None, reason=answer["reason"])
            self.run.append_event("attack-lost", f"{attack} on {observation}: {answer['reason']}")
        stem = f"{observation}--{attack}"
        self.on_answer(read_json(self.run.root / "reconstructions" / f"{stem}.json"))

    def _new_observations(self) -> list[str]:
        # names alone: this is done ten times a second beside the training, whatever there is
        folder = self.run.root / "observations"
        names = os.listdir(folder) if folder.is_dir() else []  # noqa: PTH208
        there = {name.removesuffix(".json") for name in names if name.endswith(".json")}
        new = sorted(there - self.seen)
        self.seen.update(new)
        return new

    def _path(self, observation: str) -> Path:
        return self.run.root / "observations" / f"{observation}.json"
