"""How long, how often and in which coordinates to search by squared distance. No paper."""

from dataclasses import dataclass

from attacks.matching.starts import STARTS, Start
from attacks.settings import require_weights


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How to search, how long and how often.

    Attributes:
        steps: Most L-BFGS steps of one restart.
        restarts: Most restarts. The first runs alone; if it gets stuck, the others run together.
        tolerance: Distance to the gradient heard, relative to its norm, at which to stop.
        start: Where to start (`attacks.matching.starts`).
        natural: Whether to search in coordinates weighted like natural images, or in pixels.
        box: Weight of the mean square of what pixels leave the range by, as a fraction of the
            range, against the squared relative distance; 0 lets them leave it freely.
        label_weight: Weight of the squared distance between what the model says of the guess and
            its labels, against the squared distance of gradients; only with known labels.
        history: Curvature pairs that L-BFGS remembers.
        turns: L-BFGS steps on one example of a batch before it is the next one's turn, which is
            how DLG keeps examples from getting in each other's way; 0 moves all at once.
        refine: Whether victims that are still stuck with the labels given are searched for once
            more, labels included, from logits that favour those given.
        rescue: Whether the second restart of a single example starts from what solving layer by
            layer gives, where it gives anything.
    """

    steps: int
    restarts: int
    tolerance: float
    start: Start = "clouds"
    natural: bool = True
    box: float = 0.0
    label_weight: float = 0.0
    history: int = 100
    turns: int = 0
    refine: bool = False
    rescue: bool = False

    def __post_init__(self) -> None:
        """Refuse what would search for nothing.

        Raises:
            ValueError: A setting has no meaning.
        """
        if min(self.steps, self.turns) < 0 or self.restarts < 1 or self.history < 1:
            raise ValueError(
                "steps and turns must be at least 0, restarts and history at least 1, got "
                f"{self.steps}, {self.turns}, {self.restarts} and {self.history}"
            )
        if self.start not in STARTS:
            raise ValueError(f"start must be one of {', '.join(STARTS)}, got {self.start!r}")
        require_weights(self, "tolerance", "box", "label_weight")
