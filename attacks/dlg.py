"""Deep Leakage from Gradients (Zhu et al., 2019, https://arxiv.org/abs/1906.08935).

Inputs and soft labels are searched for together until the gradient they give is the one heard,
in squared distance, by L-BFGS. Differs from the paper: a line search, without which some searches
diverge (4 of 24 in `benchmarks/README.md`); coordinates weighted like natural images and starts
drawn with the same weights (`attacks.matching.coordinates`), which save most of the steps; double
precision; further restarts only if the first gets stuck. Several examples are searched for at
once, where the paper takes turns among them (`turns` does): in these coordinates that is slower
and fails more often, see `docs/attacks/dlg.md`.
"""

from dataclasses import dataclass
from typing import ClassVar

from attacks.matching.effort import Effort
from attacks.matching.squared_distance import SquaredDistanceSearch
from attacks.matching.starts import Start


@dataclass(frozen=True, kw_only=True)
class DLG(SquaredDistanceSearch):
    """Find inputs and labels whose gradient is the observed one.

    Attributes:
        steps: Most L-BFGS steps of one restart.
        restarts: Most restarts; those after the first run together, and only if it gets stuck.
        tolerance: Distance to the gradient heard, relative to its norm, at which to stop.
        double: Compute in double precision.
        start: Where to start from (`attacks.matching.starts`).
        turns: L-BFGS steps on one example of a batch before it is the next one's turn; the paper
            has 1; 0 moves all at once.
    """

    steps: int = 400
    restarts: int = 4
    tolerance: float = 1e-4
    double: bool = True
    start: Start = "clouds"
    turns: int = 0

    reads_labels: ClassVar[bool] = False

    @property
    def effort(self) -> Effort:
        """How long and how to search, from the settings."""
        return Effort(
            steps=self.steps,
            restarts=self.restarts,
            tolerance=self.tolerance,
            start=self.start,
            turns=self.turns,
        )
