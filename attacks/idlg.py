"""Improved Deep Leakage from Gradients (Zhao et al., 2020, https://arxiv.org/abs/2001.02610).

The labels are read off the classifier's gradient first (`attacks.labels`), then the inputs alone
are searched for as in `attacks.dlg`, with the same differences from the paper. The rule for the
labels of several examples is not the paper's, which has one for a single example only; where it
was wrong, no inputs match, and the search goes on for labels, too, from those that were read.
Behind trained networks the search often ends far outside the pixel range at a gradient hundreds of
times too long; the second restart of one example therefore starts from the closed form
(`attacks.closed_form`) where it gives anything, without which 5 of 10 were lost.
"""

from dataclasses import dataclass

from attacks.matching.effort import Effort
from attacks.matching.squared_distance import SquaredDistanceSearch
from attacks.matching.starts import Start


@dataclass(frozen=True, kw_only=True)
class IDLG(SquaredDistanceSearch):
    """Read the labels, then find inputs whose gradient is the observed one.

    Attributes:
        steps: Most L-BFGS steps of one restart.
        restarts: Most restarts; those after the first run together, and only if it gets stuck.
        tolerance: Distance to the gradient heard, relative to its norm, at which to stop.
        double: Compute in double precision.
        start: Where to start from (`attacks.matching.starts`).
        box: Weight of the mean square of what pixels leave the range by, against the squared
            relative distance of gradients; 0 lets them leave it freely, as published.
        refine: Whether a batch that stays stuck with its labels is searched for with labels that
            may change.
        rescue: Whether one example that is stuck starts again from the closed form.
    """

    steps: int = 400
    restarts: int = 4
    tolerance: float = 1e-4
    double: bool = True
    start: Start = "clouds"
    box: float = 0.0
    refine: bool = True
    rescue: bool = True

    @property
    def effort(self) -> Effort:
        """How long and how to search, from the settings."""
        return Effort(
            steps=self.steps,
            restarts=self.restarts,
            tolerance=self.tolerance,
            start=self.start,
            box=self.box,
            refine=self.refine,
            rescue=self.rescue,
        )
