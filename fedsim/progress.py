"""What attack workers are on, and their guesses so far: for whoever looks on, and for nobody else.

While a worker has a job, `progress/WORKER.json` in the run directory says which, and
`progress/WORKER.safetensors` holds its newest guesses. Nothing reads them back into a run, no
result depends on them, and they are gone when the job is done or its worker was ended, by whatever.
Those of workers that were killed together with the pool that they belong to stay; what is said of
their job in `progress/WORKER.json` tells them from others.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import torch
from torch import Tensor

from attacks.matching.snapshots import looked_on_by
from attacks.observation import Snapshot
from fedsim.files import Record, replace_json, replace_tensors

SHOWN_AS = "FEDSIM_SHOWN_AS"
"""Environment variable: what the files of a worker are called, so that others can remove them."""
PAUSE_S = 0.3
"""Seconds, at least, between two guesses of one job that are written."""
MOST_IMAGES = 16
"""Images of one guess that are written."""
MOST_NUMBERS = 2**20
"""Pixels of one job that are written, four bytes each; images beyond are not shown."""


class Shown:
    """Shows what one worker does.

    Args:
        root: The run directory.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root / "progress"
        self.stem = os.environ.get(SHOWN_AS) or new_name()

    @contextlib.contextmanager
    def job(
        self,
        attack: str,
        observations: Sequence[str],
        rngs: Sequence[torch.Generator],
        *,
        time_budget_s: float,
    ) -> Iterator[None]:
        """Show one job while it lasts. What cannot be written is not shown, and stops nobody.

        Args:
            attack: Its title.
            observations: What is attacked, one per victim.
            rngs: The generator of each victim: a guess comes with that of its own.
            time_budget_s: What the attack is allowed, per victim.
        """
        view = _View(self.folder / self.stem, attack, observations, rngs, time_budget_s)
        view.write()
        try:
            with looked_on_by(view.look):
                yield
        finally:
            with contextlib.suppress(OSError):
                for suffix in (".json", ".safetensors"):
                    (self.folder / f"{self.stem}{suffix}").unlink(missing_ok=True)


def new_name() -> str:
    """Return a name for the files of a worker that no other has."""
    return uuid4().hex[:12]


def clear(root: Path, worker: str) -> None:
    """Remove what a worker that was ended left, also what it had written in part."""
    folder = root / "progress"
    with contextlib.suppress(OSError):
        for path in (*folder.glob(f"{worker}.*"), *folder.glob(f".{worker}.*.part")):
            path.unlink(missing_ok=True)


class _View:
    """What is shown of one job."""

    def __init__(
        self,
        stem: Path,
        attack: str,
        observations: Sequence[str],
        rngs: Sequence[torch.Generator],
        time_budget_s: float,
    ) -> None:
        self.stem = stem
        self.rngs = rngs
        self.observations = observations
        self.record: Record = {
            "attack": attack,
            "observations": list(observations),
            "started": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "time_budget_s": time_budget_s,
            "guesses": {},
        }
        self.guesses: dict[str, Tensor] = {}
        self.written = -PAUSE_S

    def write(self) -> None:
        """Write what there is to see, or nothing."""
        self.written = time.monotonic()
        with contextlib.suppress(OSError, torch.OutOfMemoryError):
            if self.guesses:
                replace_tensors(self.stem.with_suffix(".safetensors"), self.guesses)
            replace_json(self.stem.with_suffix(".json"), self.record)

    def look(self, guess: Snapshot, rng: torch.Generator | None) -> None:
        """Take in a guess so far, of the victim with this generator, and write it now and then."""
        owners = [one for one, own in zip(self.observations, self.rngs, strict=True) if own is rng]
        if not owners and len(self.observations) == 1:
            owners = list(self.observations)
        if len(owners) != 1 or guess.inputs.dim() not in (2, 4):
            return
        held = sum(one.numel() for key, one in self.guesses.items() if key != owners[0])
        room = (MOST_NUMBERS - held) // max(1, guess.inputs[:1].numel())
        shown = guess.inputs[: min(MOST_IMAGES, max(0, room))].detach()
        if not len(shown):
            return
        self.guesses[owners[0]] = shown
        self.record["guesses"][owners[0]] = {"step": guess.step, "images": len(shown)}
        if time.monotonic() - self.written >= PAUSE_S:
            self.write()
