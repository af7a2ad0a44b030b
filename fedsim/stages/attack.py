"""Follow a run directory: attack each observation as it appears, score each guess as it comes."""

import time
from collections.abc import Callable
from pathlib import Path

from fedsim.config import Experiment
from fedsim.pool import AttackPool, Job
from fedsim.records import Record, RunDirectory, read_json

OnAnswer = Callable[[Record], None]
"""Told of the record of each reconstruction that is wholly there."""


class Follower:
    """Keeps the attack workers busy with what a run directory holds.

    What was attacked before (by a run that was interrupted, say) is not attacked again.

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
        self.seen: set[str] = set()
        self.done = {
            (record["observation"], record["attack"]) for record in run.reconstruction_records()
        }

    def step(self) -> None:
        """Queue what is new, and pass on what came back."""
        for observation in self._new_observations():
            for attack in self.experiment.attacks:
                if (observation, attack.title) not in self.done:
                    self.pool.submit(Job(observation, attack.title, attack.time_budget_s))
        for answer in self.pool.poll():
            if answer.get("lost"):  # no worker wrote it down: the failure is recorded here
                record = read_json(self._path(answer["observation"]))
                self.run.write_reconstruction(
                    record, answer["attack"], None, reason=answer["reason"]
                )
            stem = f"{answer['observation']}--{answer['attack']}"
            self.on_answer(read_json(self.run.root / "reconstructions" / f"{stem}.json"))

    def drain(self, pause_s: float = 0.02) -> None:
        """Go on until nothing is left to attack."""
        self.step()
        while self.pool.waiting:
            time.sleep(pause_s)
            self.step()

    def _new_observations(self) -> list[str]:
        folder = self.run.root / "observations"
        new = sorted({path.stem for path in folder.glob("*.json")} - self.seen)
        self.seen.update(new)
        return new

    def _path(self, observation: str) -> Path:
        return self.run.root / "observations" / f"{observation}.json"
