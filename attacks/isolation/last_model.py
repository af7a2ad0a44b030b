"""Updates of a peer that meets others by lot, as in gossip, from the models that it says.

What it says in a round is its model after its step and before it meets anybody, y = x - lr g. So
its first step from a known start is exact. Later x is the mean of its last y and of the models that
it met; whoever hears all that it is told knows them. For others, x is about the last y that they
heard, averaged with the models that they know it met; steps since then cannot be told apart, and
the estimate is their mean.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from attacks.isolation.updates import Isolated


def isolate_from_models(
    said: Mapping[int, Tensor],
    victim: int,
    *,
    start: Tensor | None,
    met: Mapping[int, Sequence[Tensor]],
    hears_all: bool,
    learning_rate: float | None,
    rounds: int,
) -> list[Isolated]:
    """Return the update of one peer in each round in which it was heard.

    Args:
        said: By round, the model (D,) that the victim said after its step.
        victim: Whose updates.
        start: Weights (D,) that it starts from; None where they are its own.
        met: By round, the models that it averaged its own with, as far as they are known.
        hears_all: Whether `met` is complete.
        learning_rate: Step size; None where updates are changes of weights.
        rounds: How many have passed.
    """
    model = None if start is None else start.double()
    sure, since = start is not None, 0
    found: list[Isolated] = []
    for number in range(1, rounds + 1):
        if number not in said:
            sure = False
            continue
        after = said[number].double()
        if model is not None:
            change = (after - model) / (number - since)
            update = change if learning_rate is None else change / -learning_rate
            found.append(
                Isolated(
                    peer=victim,
                    round=number,
                    update=update.to(said[number].dtype),
                    how="exact" if sure else "estimated",
                    expected_error=None,
                    noise_gain=None,
                    weights=model.to(said[number].dtype),
                    weights_how="exact" if sure else "estimated",
                    num_heard=1,
                )
            )
        others = [one.double() for one in met.get(number, ())]
        model = sum(others, after) / (1 + len(others))
        sure, since = hears_all, number
    return found
