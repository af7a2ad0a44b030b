"""How a guess came about: a dozen looks at the best one so far.

Somebody may look on while an attack runs (`looked_on_by`): they are told each look as it is taken,
and once in a while where the search stands. An attack computes the same whether anybody does.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import replace

import torch
from torch import Tensor

from attacks.observation import Snapshot

_LOOKS = 12
SHOW_S = 0.5
"""Seconds between two looks that are for an onlooker alone."""

Onlooker = Callable[[Snapshot, torch.Generator | None], None]
"""Told a guess so far, and the generator of the victim it is of, where there are several."""

_ONLOOKER: ContextVar[Onlooker | None] = ContextVar("onlooker", default=None)


@contextlib.contextmanager
def looked_on_by(onlooker: Onlooker) -> Iterator[None]:
    """Have somebody told of the looks that attacks take in this context."""
    token = _ONLOOKER.set(onlooker)
    try:
        yield
    finally:
        _ONLOOKER.reset(token)


def onlooker() -> Onlooker | None:
    """Return who looks on, if anybody does."""
    return _ONLOOKER.get()


def looks_due(steps: int) -> set[int]:
    """Return the log-spaced steps at which to look, from the start to `steps`."""
    return {round((steps + 1) ** (k / (_LOOKS - 1))) - 1 for k in range(_LOOKS)}


class Snapshots:
    """Keeps the best guess at log-spaced steps, the start and the end included.

    Args:
        inputs_of: One row of an optimizer's points -> inputs (B, *input_shape).
        steps: The step at which the run ends at the latest.
        input_range: Inputs are clamped to it.
        rng: The victim's generator, which tells an onlooker whose guess it is.
        shown: Whether an onlooker is told; not, where looks are gathered afterwards.
    """

    def __init__(
        self,
        inputs_of: Callable[[Tensor], Tensor],
        *,
        steps: int,
        input_range: tuple[float, float],
        rng: torch.Generator | None = None,
        shown: bool = True,
    ) -> None:
        self.inputs_of = inputs_of
        self.input_range = input_range
        self.due = looks_due(steps)
        self.rng = rng
        self.shown = shown
        self.taken: list[Snapshot] = []
        self.told_at = time.monotonic()

    def look(self, step: int, points: Tensor, values: Tensor) -> None:
        """Keep the best of `points`, (R, ...), by `values`, (R,), if it is time to."""
        if step in self.due:
            self.keep(step, points, values)
        elif self.shown and onlooker() and time.monotonic() - self.told_at >= SHOW_S:
            best = int(values.nan_to_num(torch.inf).argmin())
            self._tell(self._snapshot(step, points[best], float(values[best])))

    def end(self, step: int, points: Tensor, values: Tensor) -> tuple[Snapshot, ...]:
        """Keep where the run ended, unless it just did, and return all."""
        if not self.taken or self.taken[-1].step != step:
            self.keep(step, points, values)
        return tuple(self.taken)

    def keep(self, step: int, points: Tensor, values: Tensor) -> None:
        """Keep the best of `points`, (R, ...), by `values`, (R,)."""
        best = int(values.nan_to_num(torch.inf).argmin())
        loss = float(values[best])
        if self.taken and not loss < self.taken[-1].matching_loss:
            self.taken.append(replace(self.taken[-1], step=step))
            return
        self.taken.append(self._snapshot(step, points[best], loss))
        self._tell(self.taken[-1])

    def _snapshot(self, step: int, point: Tensor, loss: float) -> Snapshot:
        with torch.no_grad():
            inputs = self.inputs_of(point).clamp(*self.input_range).float()
        return Snapshot(step=step, inputs=inputs, matching_loss=loss)

    def _tell(self, guess: Snapshot) -> None:
        if self.shown and (told := onlooker()) is not None:
            told(guess, self.rng)
            self.told_at = time.monotonic()
