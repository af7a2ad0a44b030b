"""Several guesses at one batch of rows, put in one order and pooled (TabLeak, section 4).

Guesses are matched to each other, never to the truth, which no attack is shown.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from attacks.tabular.columns import Columns

_CELL = 0.1
"""Share of a number's range within which two values count as one, for certainty."""
_ROUNDS = 2
"""The first puts guesses in the order of the best of them, the next in that of their median."""


def aligned(guesses: Tensor, groups: Sequence[Tensor]) -> Tensor:
    """Return guesses (R, B, D) with the rows of each in one order, that of the first.

    Args:
        guesses: Relaxed rows.
        groups: Of each guess, to which group each row belongs, (B,) int64; rows are exchanged
            within a group alone. All guesses have the same number of rows in a group.
    """
    from scipy.optimize import linear_sum_assignment  # importing it takes a while

    anchor, found = guesses[0], guesses
    for _ in range(_ROUNDS):
        ordered = []
        for guess, group in zip(guesses, groups, strict=True):
            apart = torch.cdist(anchor.double(), guess.double(), p=1)
            apart = apart + 4 * guess.shape[-1] * (groups[0][:, None] != group)  # more than all
            _, order = linear_sum_assignment(apart.cpu().numpy())
            ordered.append(guess[torch.from_numpy(order).to(guess.device)])
        found = torch.stack(ordered)
        anchor = found.median(dim=0).values
    return found


def confidence(guesses: Tensor, columns: Columns) -> Tensor:
    """Return how certain guesses in one order (R, B, D) are of each feature, (B, F) in [0, 1].

    That is exp(-H), with H the entropy of what the guesses say together: one over the number of
    values that are as good as the one guessed. For numbers H is that of a normal distribution as
    wide as the guesses spread, counted in tenths of the range, the least being one.
    """
    found = []
    for column, place in columns.places():
        part = guesses[..., place].double()
        if column.categories:
            chances = part.mean(dim=0)
            found.append(torch.special.entr(chances).sum(dim=-1).neg().exp())
        else:
            spread = part[..., 0].std(dim=0, correction=0) * math.sqrt(2 * math.pi * math.e)
            found.append(_CELL / spread.clamp_min(_CELL))
    return torch.stack(found, dim=-1).clamp(0, 1).float()
