"""What each round of an experiment costs its clients in differential privacy.

Everything is worked out from the experiment: its settings, the sizes of the clients' shares, and
the clients drawn in each round. Nothing is counted while a run is under way, so that a run that was
killed and resumed says the same as one that was not.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from fedsim.config import Experiment
from fedsim.defenses import Defense, accounted
from fedsim.privacy import Accounted, Mechanism, Share, Spent, epsilon_of, share_of
from fedsim.setup import draw_clients


def participations(experiment: Experiment, last: int, first: int = 1) -> Counter[int]:
    """Return in how many of these rounds each client is asked to train, by client number."""
    return Counter(
        client
        for server_round in range(first, last + 1)
        for client in draw_clients(experiment, server_round)
    )


class Ledger:
    """What each round of an experiment costs.

    A client takes part in a round if it was asked to train, whatever became of its answer.

    Args:
        experiment: The experiment.
        defense: The link of its chain that gives differential privacy.
        sizes: How many examples each client holds.
    """

    def __init__(self, experiment: Experiment, defense: Accounted, sizes: Sequence[int]) -> None:
        self.experiment = experiment
        self.sizes = sizes
        self.delta, self.unit = defense.delta, defense.unit
        self.planned = self._shares(participations(experiment, experiment.rounds))
        self.defenses = {share: defense.tailored(share) for share in set(self.planned)}
        self.counted, self.counts = 0, Counter[int]()

    def spent(self, server_round: int) -> Spent:
        """Return what is given away once this round is over."""
        if server_round < self.counted:
            self.counted, self.counts = 0, Counter()
        self.counts += participations(self.experiment, server_round, self.counted + 1)
        self.counted = server_round
        used = {
            self.defenses[planned].mechanism(share)
            for planned, share in zip(self.planned, self._shares(self.counts), strict=True)
        }
        worst = max((epsilon_of(one, self.delta) for one in _dearest(used)), default=0.0)
        return Spent(epsilon=worst, delta=self.delta, unit=self.unit)

    def _shares(self, rounds: Mapping[int, int]) -> list[Share]:
        training = self.experiment.training
        return [
            share_of(training, size, rounds.get(client, 0))
            for client, size in enumerate(self.sizes)
        ]


def ledger_of(
    experiment: Experiment, chain: Mapping[str, Defense], sizes: Sequence[int]
) -> Ledger | None:
    """Return what keeps the accounts of a chain; None if it gives no differential privacy."""
    defense = accounted(chain)
    return None if defense is None else Ledger(experiment, defense, sizes)


def _dearest(mechanisms: Iterable[Mechanism]) -> list[Mechanism]:
    """Leave out those that certainly cost no more than another: accounting takes its time."""

    def no_dearer(one: Mechanism, other: Mechanism) -> bool:
        return (
            one.noise_multiplier >= other.noise_multiplier
            and one.sample_rate <= other.sample_rate
            and one.num_steps <= other.num_steps
        )

    dearest: list[Mechanism] = []
    for one in mechanisms:
        if not any(no_dearer(one, other) for other in dearest):
            dearest = [other for other in dearest if not no_dearer(other, one)] + [one]
    return dearest
