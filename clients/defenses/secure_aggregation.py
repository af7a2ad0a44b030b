"""Secure aggregation (Bonawitz et al., CCS 2017, https://eprint.iacr.org/2017/281).

The server learns the sum of a round and who took part, no update of one client. The protocol runs
as messages between server and clients; see `fedsim.secure_sum`.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from attacks.defense import Family, add_noise, clients_behind, error_in_mean, unit_of_mean
from attacks.observation import AttackFailed, Kind, Knowledge, Observation
from fedsim.catalog import resolve
from fedsim.config import Experiment
from fedsim.defenses import Place, ServerDefense, build_chain
from fedsim.errors import ConfigError
from fedsim.secure_sum.settings import Settings
from fedsim.setup import shares_of, task_of
from fedsim.threat import threat_of

LINEAR = frozenset({"fedsgd", "fedavg", "fedavgm", "fedadam", "fedadagrad", "fedyogi", "fedprox"})
"""Strategies for which the weighted mean of all updates is as good as the updates."""


@dataclass(frozen=True, kw_only=True)
class SecureAggregation(Settings):
    """Clients mask their updates so that the server can read nothing but the sum.

    Its settings are those that server and clients share: `fedsim.secure_sum.settings.Settings`.
    """

    place: ClassVar[Place] = Place.WIRE

    def read(self, seen: Observation, known: Knowledge) -> tuple[Observation, Knowledge]:
        """Say how exact the mean is; nothing can be said of one client's masked update.

        Raises:
            AttackFailed: A masked update was heard.
        """
        if seen.kind is Kind.MASKED_SHARE:
            raise AttackFailed(
                "a masked update looks uniformly random to whoever lacks the masks; attack the "
                "mean of the round ('all')"
            )
        if seen.kind is not Kind.AGGREGATE:
            return seen, known
        deviation = self.quantiser.deviation * error_in_mean(seen, known)
        return seen, add_noise(known, dict.fromkeys(seen.update, deviation), Family.GAUSSIAN)

    def estimated(self, seen: Observation, known: Knowledge) -> "SecureAggregation":
        """Read the step off the mean: sums of levels lie on a grid.

        Smaller values are written down more exactly: the smallest quarter says how wide it is.
        """
        if seen.kind is not Kind.AGGREGATE or not seen.update:
            return self
        values = torch.cat([one.flatten() for one in seen.update.values()]).double().abs()
        gaps = torch.unique(values)[: 2 + len(values) // 4].diff()
        if not len(gaps):
            return self
        step = float(gaps.min()) * clients_behind(seen, known) / unit_of_mean(seen, known)
        return replace(self, clip=step * self.quantiser.most)

    def check(
        self,
        experiment: Experiment,
        model: nn.Module,  # noqa: ARG002 - any model can be summed
    ) -> None:
        """Refuse what cannot be summed in secret, or gives a client away.

        Raises:
            ConfigError: Strategy, threshold, field or adversary do not fit.
        """
        chain = build_chain(experiment)
        if sum(isinstance(one, Settings) for one in chain.values()) > 1:
            raise ConfigError("defenses: updates can be summed in secret once, not twice")
        for title, one in chain.items():
            if isinstance(one, ServerDefense):
                raise ConfigError(
                    f"defenses: '{title}' treats updates one by one at the server, which secure "
                    "aggregation shows their sum alone; leave out one of the two"
                )
        self._check_strategy(experiment)
        self._check_clients(experiment)
        self._check_field(experiment)
        threat = threat_of(experiment)
        if threat.active and not threat.hears_sum:
            raise ConfigError(
                f"threat '{threat.name}' attacks clients one by one, and secure aggregation shows "
                "the server sums alone; set adversary.threat = 'malicious-aggregate-server'"
            )

    def _check_strategy(self, experiment: Experiment) -> None:
        name = experiment.server.strategy or experiment.training.algorithm
        if name in LINEAR:
            return
        if ":" in name and getattr(resolve(name, {}, "strategy"), "takes_mean", False):
            return
        raise ConfigError(
            f"server.strategy '{name}' needs each client's update, and secure aggregation gives "
            f"the server their mean alone; choose one of {', '.join(sorted(LINEAR))}, or one of "
            "your own with the attribute `takes_mean = True`"
        )

    def _check_clients(self, experiment: Experiment) -> None:
        drawn = experiment.server.clients_per_round or experiment.partition.clients
        threshold = self.threshold_of(drawn)
        if not 2 <= threshold <= drawn:
            raise ConfigError(
                f"secure-aggregation: threshold must be from 2 to {drawn}, the clients of a round, "
                f"got {threshold}"
                + ("; the sum of one client is its update" if threshold < 2 else "")
            )
        for stage, clients in self.drop.items():
            for client in clients:
                if not 0 <= client < experiment.partition.clients:
                    raise ConfigError(
                        f"secure-aggregation: drop.{stage} must name clients from 0 to "
                        f"{experiment.partition.clients - 1}, got {client}"
                    )

    def _check_field(self, experiment: Experiment) -> None:
        shares = shares_of(experiment, task_of(experiment))
        drawn = experiment.server.clients_per_round or experiment.partition.clients
        used = [experiment.training.num_distinct(len(share)) for share in shares]
        most = sum(sorted(used)[-drawn:])
        if most * self.quantiser.most >= 2 ** (self.field_bits - 1):
            fits = int(math.log2(2 ** (self.field_bits - 1) / most)) + 1
            raise ConfigError(
                f"secure-aggregation: a sum over {most} examples, the most of a round, does not "
                f"fit into {self.field_bits} bits with {self.bits} bits per coordinate; set bits = "
                f"{fits} or less" + (", or field_bits = 64" if self.field_bits == 32 else "")
            )
