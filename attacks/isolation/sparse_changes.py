"""Updates of a peer that says only the largest entries of its changes, as CHOCO-SGD does.

Everybody holds a copy c_i of each neighbour's model; peer i steps, y_i = x_i - lr g_i, and says the
largest entries of y_i - c_i. Where it says an entry, y_i is known; so its update is, where x_i was.
All of x_i is known at the common start. Later x_i = y_i + gamma sum_j W_ij (c_j - c_i) is, at the
entries said a round before, by whoever has the copies of all neighbours of i. An entry that is said
after a pause holds the steps of all rounds since, and those cannot be told apart. What is never
said is in no message.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.isolation.updates import Isolated


@dataclass(frozen=True, kw_only=True, eq=False)
class SparseChange:
    """One message: entries of a change, (n,), and where they are, (n,) int64."""

    values: Tensor
    places: Tensor


def isolate_sparse_changes(
    said: Mapping[int, Mapping[int, SparseChange]],
    victim: int,
    *,
    start: Tensor,
    row: Callable[[int], Mapping[int, float]],
    gamma: float,
    learning_rate: float | None,
    rounds: int,
) -> list[Isolated]:
    """Return the updates of one peer at the entries that it said, round by round.

    A round is exact where all its entries were known before the step, and then shows these alone;
    otherwise it is an estimate, from the copies that were heard, at all entries said.

    Args:
        said: By peer and round, what was heard of the victim and of its neighbours, and what the
            adversary's own peers said.
        victim: Whose updates.
        start: Weights (D,) that all peers start from.
        row: round -> the victim's row of the mixing matrix, by peer.
        gamma: How far peers move towards the copies.
        learning_rate: Step size; None where updates are changes of weights.
        rounds: How many have passed.
    """
    copies: dict[int, Tensor] = {}
    model, known = start.double(), torch.ones(start.shape, dtype=torch.bool)
    found: list[Isolated] = []
    for number in range(1, rounds + 1):
        message = said.get(victim, {}).get(number)
        for peer in row(number):
            if number in said.get(peer, {}):
                copies[peer] = _changed(copies.get(peer, start.double()), said[peer][number])
        if message is None:
            known = torch.zeros_like(known)
            continue
        copy = copies[victim]
        here = torch.zeros_like(known)
        here[message.places] = True
        sure = here & known
        exact = bool(sure.any())
        visible = sure if exact else here
        change = torch.where(visible, copy - model, 0.0)
        update = change if learning_rate is None else change / -learning_rate
        found.append(
            Isolated(
                peer=victim,
                round=number,
                update=update.to(start.dtype),
                visible=visible,
                how="exact" if exact else "estimated",
                expected_error=None,
                noise_gain=None,
                weights=model.to(start.dtype),
                weights_how="exact" if bool(known.all()) else "estimated",
                weights_error=None,
                num_heard=1,
            )
        )
        neighbours = {peer: weight for peer, weight in row(number).items() if peer != victim}
        heard = [peer for peer in sorted(neighbours) if number in said.get(peer, {})]
        model = copy.clone()
        for peer in heard:
            model += gamma * neighbours[peer] * (copies[peer] - copy)
        whole = all(peer in heard for peer, weight in neighbours.items() if weight > 0)
        known = here if whole else torch.zeros_like(known)
    return found


def _changed(copy: Tensor, change: SparseChange) -> Tensor:
    copy = copy.clone()
    copy[change.places] += change.values.to(copy)
    return copy
