"""Client Privacy Leakage (Wei et al., 2020, https://arxiv.org/abs/2004.10397).

The search of iDLG with two more ideas. It starts from a small random patch, tiled over the image,
which is said to need fewer steps than noise; and it asks that the model, shown the guess, gives it
its label (a squared distance between its probabilities and the label). Pixels are searched for as
they are, from one start, as published.
Differs from the paper: a line search; at most 1,200 steps, where 300 published ones hold up to
6,000; the label of one example is read off the bias where there is one, and those of several by
our rule (`attacks.labels`); double precision. We know no published weight of the label term; ours
is so small that it decides between guesses that match the gradient alike, and nothing more: at the
truth the term is not zero, as the model is not sure of private examples, and pulls away from it.
"""

from dataclasses import dataclass

from attacks.matching.effort import Effort
from attacks.matching.squared_distance import SquaredDistanceSearch
from attacks.matching.starts import Start


@dataclass(frozen=True, kw_only=True)
class CPL(SquaredDistanceSearch):
    """Read the labels, then find inputs that match gradient and labels, from a tiled patch.

    Attributes:
        steps: Most L-BFGS steps of one restart.
        restarts: Most restarts; those after the first run together, and only if it gets stuck.
        tolerance: Distance to the gradient heard, relative to its norm, at which to stop.
        double: Compute in double precision.
        start: Where to start from (`attacks.matching.starts`).
        label_weight: Weight of the label term, against the squared distance of gradients.
        natural: Whether to search in coordinates weighted like natural images, as `attacks.dlg`
            does, or in pixels.
    """

    steps: int = 1_200
    restarts: int = 1
    tolerance: float = 1e-4
    double: bool = True
    start: Start = "patterned"
    label_weight: float = 1e-6
    natural: bool = False

    @property
    def effort(self) -> Effort:
        """How long and how to search, from the settings."""
        return Effort(
            steps=self.steps,
            restarts=self.restarts,
            tolerance=self.tolerance,
            start=self.start,
            natural=self.natural,
            label_weight=self.label_weight,
        )
